//! Kernel, initramfs and command line: those that are named, or those that the disk would start by itself.

use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::Path;

use vhd_block::Disk;
use vhd_fs::boot::{Boot, BootFile, find_boot};
use vhd_fs::files::Files;

use super::run::RunArgs;
use crate::codes::Kind;
use crate::failure::Failure;
use crate::inside::{Volume, volumes};
use crate::output;

/// Bytes that are read at once.
const PIECE: usize = 4 << 20;
/// Bytes of a kernel or of all parts of an initramfs. None is near it.
const MAX_SIZE: u64 = 2 << 30;
/// Bytes to which the parts of an initramfs are aligned.
const ALIGNMENT: u64 = 4;
/// What a system without a configuration is given: its root, which initramfs and kernel would otherwise mount read-only.
const WITHOUT_OPTIONS: &str = "rw";
/// The first disk in the guest.
const FIRST_DISK: &str = "/dev/vda";

/// What a machine starts.
pub(super) struct Started {
    /// The name of the kernel, for people.
    pub(super) name: String,
    pub(super) kernel: File,
    pub(super) initrd: Option<File>,
    /// The command line that the disk has for its kernel.
    pub(super) command_line: String,
}

impl Started {
    /// What the command line names, without a look at any disk; `None` where the kernel is to be found.
    pub(super) fn named(args: &RunArgs) -> Result<Option<Self>, Failure> {
        let Some(kernel) = &args.kernel else {
            return Ok(None);
        };
        Ok(Some(Self {
            name: output::path_text(kernel),
            kernel: open_file(kernel)?,
            initrd: args.initrd.as_deref().map(open_file).transpose()?,
            command_line: String::new(),
        }))
    }

    /// What the first disk would start, and says what that is. An initramfs that is named takes the place of its own.
    pub(super) fn found(args: &RunArgs, disk: &Disk, image: &str) -> Result<Self, Failure> {
        let volumes = volumes(disk, None, true).map_err(|failure| failure.about(image))?;
        let boot = find(&volumes, image)?;
        let name = |file: &BootFile| format!("{}:{}", readable(&volumes)[file.volume].0.name(), file.path);
        let kernel = name(&boot.kernel);
        output::eprint(&format!("vhd: kernel {kernel} ({})\n", boot.source));
        let copy = |files: &[BootFile]| copy(&volumes, files).map_err(|failure| failure.about(image));
        let initrd = match &args.initrd {
            Some(named) => Some(open_file(named)?),
            None if boot.initrds.is_empty() => None,
            None => {
                let names: Vec<String> = boot.initrds.iter().map(name).collect();
                output::eprint(&format!("vhd: initramfs {}\n", names.join(", ")));
                Some(copy(&boot.initrds)?)
            }
        };
        let command_line = command_line(&boot, &volumes);
        output::eprint(&format!("vhd: command line {command_line}\n"));
        Ok(Self {
            kernel: copy(std::slice::from_ref(&boot.kernel))?,
            name: format!("{image}: {kernel}"),
            initrd,
            command_line,
        })
    }
}

/// The file systems that can be read.
fn readable(volumes: &[Volume]) -> Vec<(&Volume, &Files)> {
    volumes
        .iter()
        .filter_map(|volume| Some((volume, volume.files.as_ref().ok()?)))
        .collect()
}

fn find(volumes: &[Volume], image: &str) -> Result<Boot, Failure> {
    let named: Vec<(String, &Files)> = readable(volumes)
        .into_iter()
        .map(|(volume, files)| (volume.name(), files))
        .collect();
    let search = find_boot(&named);
    search
        .remarks
        .iter()
        .for_each(|remark| output::warning(format_args!("{image}: {remark}")));
    search.boot.ok_or_else(|| {
        let looked = volumes.iter().map(|volume| match &volume.files {
            Ok(files) => format!("{}: {}", volume.name(), files.format()),
            Err(error) => format!("{}: {error}", volume.name()),
        });
        let looked: Vec<String> = looked.collect();
        let message = format!(
            "no kernel on the disk: there are no entries of a boot loader (loader/entries, grub.cfg) whose files are there, no \
             vmlinuz-VERSION and no vmlinuz in its file systems ({}); name one with --kernel",
            looked.join("; ")
        );
        Failure::new(Kind::NoBootFiles, message).about(image)
    })
}

/// The command line of the entry; one that mounts the system where there is none.
fn command_line(boot: &Boot, volumes: &[Volume]) -> String {
    if let Some(options) = &boot.options {
        return options.clone();
    }
    let readable = readable(volumes);
    let root = boot.root.unwrap_or(boot.kernel.volume);
    let partition = readable[root].0.number.map(|number| number.to_string());
    format!("root={FIRST_DISK}{} {WITHOUT_OPTIONS}", partition.unwrap_or_default())
}

/// Copies files of the disk, one behind the other, into one that has no name.
fn copy(volumes: &[Volume], files: &[BootFile]) -> Result<File, Failure> {
    let total = files.iter().fold(0_u64, |total, file| total.saturating_add(file.size));
    if total > MAX_SIZE {
        let message = format!(
            "{} and what belongs to it have {total} bytes, more than {MAX_SIZE}",
            files[0].path
        );
        return Err(Failure::new(Kind::NoBootFiles, message));
    }
    let dir = std::env::temp_dir();
    let kept = |error: io::Error| Failure::io("keep a file of the disk in", &dir, &error);
    let mut to = tempfile::tempfile_in(&dir).map_err(kept)?;
    for file in files {
        let at = to.stream_position().map_err(kept)?;
        to.seek(io::SeekFrom::Start(at.next_multiple_of(ALIGNMENT)))
            .map_err(kept)?;
        copy_one(readable(volumes)[file.volume].1, file, &mut to, &kept)?;
    }
    to.rewind().map_err(kept)?;
    Ok(to)
}

fn copy_one(files: &Files, file: &BootFile, to: &mut File, kept: &dyn Fn(io::Error) -> Failure) -> Result<(), Failure> {
    let mut done = 0;
    while done < file.size {
        let piece = files.read_at(file.node, done, PIECE);
        let piece = piece.map_err(|error| Failure::from(error).about(&file.path))?;
        if piece.is_empty() {
            break;
        }
        to.write_all(&piece).map_err(kept)?;
        done += vhd_core::units::u64_from(piece.len());
    }
    Ok(())
}

/// A file that is read as a whole: nothing that a read could wait for.
fn open_file(path: &Path) -> Result<File, Failure> {
    let failed = |error: io::Error| Failure::io("open", path, &error);
    // Opening a pipe would wait for its other end.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is no regular file")));
    }
    File::open(path).map_err(failed)
}
