//! `vhd mount` and `vhd umount`: a disk, its snapshots, partitions and files as a directory.

mod files;
mod helper;
mod layers;
mod on_demand;
mod partitions;
mod shown;
mod snapshots;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use clap::Args;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vhd_core::chain::{OpenOptions, SharedImages};
use vhd_core::device::Disk;
use vhd_core::snapshot::Manifest;
use vhd_fuse::{MountError, MountOptions};

pub(crate) use helper::arguments as helper_arguments;

use crate::background;
use crate::cli;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::in_use::{self, Frontend};
use crate::input::{Source, SourceArgs};
use crate::interrupt;
use crate::output;
use crate::volume::Held;
use on_demand::OpenDisks;

/// What ends a mount.
const SIGNALS: &[i32] = &[SIGTERM, SIGINT, SIGHUP];

/// Says that this is the process in the background.
const FORKED: &str = "--forked";

const EXAMPLES: &str = "\
Examples:
  vhd mount disk.vhd /mnt            look at /mnt/disk.raw, /mnt/partitions, /mnt/files
  vhd mount disk.vhd@monday /mnt
  vhd mount --rw disk.vhd /mnt && mkfs.ext4 /mnt/disk.raw
  vhd umount /mnt

The directory shows:
  disk.raw               the disk as a guest sees it; writable with --rw
  partitions/p1.raw ...  its partitions (MBR, GPT); extended attributes user.vhd.type, .label, .identity, .file-system
  files/p1/...           the files in them: ext2/3/4, NTFS, FAT, exFAT, XFS
  snapshots/NAME/...     disk.raw, partitions and files of each snapshot
  layers/0.raw ...       what each image of the chain stores alone, leaf first; the rest reads zero
  info.json              what `vhd info --json` says

Without --rw every image is open for reading only, and nothing of it changes. With --rw, partitions and files of the \
present state are not shown from the kernel's memory, and files/ is left out: use losetup on disk.raw. `vhd snapshot \
create` and `delete`, `vhd merge` and `vhd resize` then work on the disk while it is mounted.

As /sbin/mount.fuse.vhd (a symbolic link to vhd) it takes the arguments of mount(8), so that fstab can have: \
/images/disk.vhd /mnt fuse.vhd ro,allow_other 0 0";

/// Arguments of `vhd mount`.
#[derive(Args, Clone, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MountArgs {
    /// The image, or DISK@NAME for a snapshot
    image: PathBuf,
    /// An empty directory
    directory: PathBuf,
    /// Open the image for writing; disk.raw can be written
    #[arg(long)]
    rw: bool,
    /// Stay in the foreground, and unmount when interrupted
    #[arg(long)]
    foreground: bool,
    /// Be the process in the background
    #[arg(long, hide = true, conflicts_with = "foreground")]
    forked: bool,
    /// Let other users in, as far as modes allow
    #[arg(long)]
    allow_other: bool,
    /// Show this user as the owner of everything
    #[arg(long, value_name = "UID")]
    uid: Option<u32>,
    /// Show this group as the group of everything
    #[arg(long, value_name = "GID")]
    gid: Option<u32>,
    /// Take these permission bits away everywhere (octal)
    #[arg(long, value_name = "MODE", value_parser = octal, default_value = "0")]
    umask: u16,
    /// Replay the journals of ext3 and ext4 that were not unmounted, in memory; otherwise the state on the disk is read
    #[arg(long)]
    replay: bool,
    #[command(flatten)]
    source: SourceArgs,
}

/// Arguments of `vhd umount`.
#[derive(Args, Debug)]
#[command(after_help = UMOUNT_EXAMPLES)]
pub(crate) struct UmountArgs {
    /// The directory that was mounted on
    directory: PathBuf,
}

const UMOUNT_EXAMPLES: &str = "\
Example:
  vhd umount /mnt

It also takes away what a mount left behind whose process was killed.";

fn octal(text: &str) -> Result<u16, String> {
    let bits = u16::from_str_radix(text, 8).map_err(|error| error.to_string())?;
    if bits > 0o777 {
        Err("at most 777".into())
    } else {
        Ok(bits)
    }
}

pub(crate) fn run(args: &MountArgs) -> Result<Exit, Failure> {
    if args.source.chain.search.force_share && args.rw {
        return Err(Failure::usage(
            "--force-share takes no locks: it can't be used with --rw",
        ));
    }
    if !args.foreground && !args.forked {
        let arguments = cli::arguments().iter().skip(1).cloned().chain([FORKED.into()]);
        return background::start(arguments, |_| {})
            .map_err(|error| system("start a process in the background", &error));
    }
    let source = Source::new(&args.image, None)?;
    let (options, snapshots) = open_options(args, &source);
    let snapshots = OpenDisks::new(snapshots);
    let (shown, mut used) = open(args, &source, options, &snapshots)?;
    if let Some(live) = used.live() {
        snapshots.read_in(live);
    }
    let disk = used.disk();
    let root = shown.root(args, &source, &disk, snapshots)?;
    let options = MountOptions::new(&source.name, disk.size())
        .writable(args.rw)
        .allow_other(args.allow_other)
        .owner(args.uid, args.gid)
        .umask(args.umask);
    // From here on a signal waits until there is something to unmount.
    let signals = Signals::new(SIGNALS).map_err(|error| system("handle signals", &error))?;
    interrupt::is_handled_elsewhere(SIGNALS);
    let mount = options.mount(root, &args.directory).map_err(failed)?;
    let flushed_last = Arc::new(Mutex::new(Some(disk)));
    unmount_on_signals(signals, &args.directory, Arc::clone(&flushed_last));
    notify_service_manager();
    if args.forked {
        background::ready().map_err(|error| system("go to the background", &error))?;
    } else {
        output::eprint(&format!(
            "vhd: mounted {} on {}\n",
            source.name,
            args.directory.display()
        ));
    }
    mount.wait().map_err(failed)?;
    used.stop();
    // Nobody else may have the disk when it is closed.
    flushed_last.lock().unwrap_or_else(PoisonError::into_inner).take();
    used.close().map_err(|failure| failure.about(&source.name))?;
    Ok(Exit::Ok)
}

/// The disk, and what is shown of it. One on a volume is written by the right that the volume gives.
fn open(
    args: &MountArgs,
    source: &Source,
    options: OpenOptions,
    snapshots: &Arc<OpenDisks>,
) -> Result<(shown::Opened, in_use::Opened), Failure> {
    if let Some(disk) = source.on_volume().filter(|_| args.rw) {
        let held = Held::open(disk, &source.path, options)?;
        held.opened().warnings().iter().for_each(output::warning);
        let shown = shown::Opened::of(source, held.opened(), true)?;
        return Ok((shown, in_use::Opened::Held(held)));
    }
    let opened = options.open(&source.path)?;
    opened.warnings().iter().for_each(output::warning);
    let shown = shown::Opened::of(source, &opened, args.rw)?;
    let used = in_use::Opened::new(opened, &source.path, Shown(Arc::clone(snapshots)))?;
    Ok((shown, used))
}

/// How the disk is opened, and how its snapshots are.
fn open_options(args: &MountArgs, source: &Source) -> (OpenOptions, OpenOptions) {
    let (disk, snapshots) = (args.source.options(source), args.source.chain.options());
    if args.rw {
        // Files of the disk may be merged while it is mounted, and then nobody may read one as it was.
        return (disk.write(true), snapshots);
    }
    // Snapshots read through the files that are open already.
    let shared = Arc::<SharedImages>::default();
    (disk.foreign(true).share(Arc::clone(&shared)), snapshots.share(shared))
}

/// The snapshots that the mount shows: what becomes of them is seen when they are looked at.
struct Shown(Arc<OpenDisks>);

impl Frontend for Shown {
    fn withdraw(&self, _manifest: &Manifest) {
        // What is not being read is opened again where it is then.
        self.0.close_unused();
    }
}

pub(crate) fn run_umount(args: &UmountArgs) -> Result<Exit, Failure> {
    vhd_fuse::unmount(&args.directory).map_err(failed)?;
    Ok(Exit::Ok)
}

/// Unmounts on the first signal; the mount then ends by itself. Where files in it are open, it is detached: nobody new
/// gets in, what was written is flushed, and the process ends.
fn unmount_on_signals(mut signals: Signals, directory: &Path, disk: Arc<Mutex<Option<Disk>>>) {
    let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_owned());
    thread::spawn(move || {
        for _ in signals.forever() {
            match vhd_fuse::unmount(&directory) {
                // Somebody else was faster.
                Ok(()) | Err(MountError::NotMounted { .. }) => return,
                Err(error) => output::warning(format_args!("{error}; it is detached")),
            }
            let detached = vhd_fuse::detach(&directory);
            let disk = disk.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let flushed = disk.as_ref().map_or(Ok(()), Disk::flush);
            if let Err(error) = &flushed {
                output::eprint(&Failure::library(error.kind(), error).text());
            }
            if detached.is_ok() {
                let exit = if flushed.is_ok() { Exit::Ok } else { Exit::Failed };
                std::process::exit(exit.number().into());
            }
        }
    });
}

/// Says READY to a service manager that wants to know (`sd_notify(3)`).
fn notify_service_manager() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        output::warning(format_args!("the service manager can't be told: {error}"));
    }
}

fn system(operation: &str, error: &io::Error) -> Failure {
    Failure::new(Kind::Mount, format!("can't {operation}: {error}"))
}

fn failed(error: MountError) -> Failure {
    let kind = match &error {
        MountError::Busy { .. } | MountError::Occupied { .. } => Kind::MountBusy,
        MountError::NotMounted { .. } => Kind::NotMounted,
        _ => Kind::Mount,
    };
    // The messages name their causes themselves.
    Failure::new(kind, error)
}
