//! `vhd resize`: a larger or smaller disk, alone or with its whole tree, or on a server.

mod remote;

use std::fmt;
use std::path::{self, Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::{Deserialize, Serialize};
use vhd_core::chain::OpenOptions;
use vhd_core::device::LiveDevice;
use vhd_core::image::Footers;
use vhd_core::job::require_no_job;
use vhd_core::ops::Progress;
use vhd_core::ops::resize::{FilePlan, Request, Resize, ResizePlan, plan_in_use, resize_in_use};
use vhd_core::storage::{Access, HostFile, Sharing};

use crate::children::{self, ChildrenArgs};
use crate::codes::Kind;
use crate::control::{self, Along, ResizeJob};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ChainArgs, Source, SourceArgs, require_file};
use crate::output::{self, ReportArgs, path_text};
use crate::progress::ProgressArgs;
use crate::size::{NewSize, parse_new_size};
use crate::volume::WorkingCopy;
use crate::{human, interrupt};

pub(crate) const NAME: &str = "resize";

const EXAMPLES: &str = "\
Examples:
  vhd resize disk.vhd 128G
  vhd resize disk.vhd +10G --fix-gpt
  vhd resize disk.vhd 32G --shrink --dry-run
  vhd resize snap.avhd 128G --tree
  vhd resize 'nbd+unix:///?socket=/run/disk.sock' 128G       a disk that vhd nbd --resizable serves

The disk keeps its content and reads zero where it is new; file systems and partitions on it are not touched. A smaller \
disk needs --shrink and is made only if nothing is cut off: no partition, no byte that is not zero. Images that are \
based on one another have one size: --tree resizes all that the image is based on and all that are based on any of \
those, as far as their directories show. Either all images get the new size or none. After a crash the same command \
goes on. With --fix-gpt the backup of a GUID partition table is moved to the new end of the disk; then partitions can \
be enlarged by the guest's own tools. With an NBD URI the server is asked to resize the disk, which stays in use. A disk \
that `vhd nbd`, `vhd mount --rw` or `vhd vm run` has in use is made larger by that program, with --tree together with its \
snapshots; a smaller size and --fix-gpt wait until that has ended.";

/// Arguments of `vhd resize`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ResizeArgs {
    /// The image: a VHD that nothing else uses; or the NBD URI of a disk that is served
    image: PathBuf,
    /// The size of the disk: bytes, or with a suffix: 512s, 64M, 1.5G; +10G or -10G for a change
    #[arg(value_parser = parse_new_size, allow_hyphen_values = true)]
    size: NewSize,
    /// Let the disk become smaller
    #[arg(long)]
    shrink: bool,
    /// Resize all images of the tree together
    #[arg(long)]
    tree: bool,
    /// Move the backup of a GUID partition table to the end of the disk
    #[arg(long)]
    fix_gpt: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask a program that has the disk in use: refuse then
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct ResizeJson {
    image: String,
    dry_run: bool,
    size: u64,
    /// An interrupted resize went on.
    resumed: bool,
    /// The files that got the size, in this order.
    files: Vec<FileJson>,
    gpt_moved: bool,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct FileJson {
    path: String,
    #[serde(rename = "type")]
    disk_type: String,
    old_size: u64,
    moved_blocks: u64,
    moved_locators: u64,
    table_moved: bool,
    dropped_blocks: u64,
}

impl FileJson {
    fn of(file: &FilePlan) -> Self {
        Self {
            path: path_text(&file.path),
            disk_type: file.disk_type.to_string(),
            old_size: file.old_size,
            moved_blocks: file.moved_blocks,
            moved_locators: file.moved_locators,
            table_moved: file.table_moves,
            dropped_blocks: file.dropped_blocks,
        }
    }
}

impl fmt::Display for FileJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {} ({}): {}",
            self.path,
            self.disk_type,
            human::binary(self.old_size)
        )?;
        for (count, one, what) in [
            (self.moved_blocks, "block", "moved"),
            (self.moved_locators, "parent locator", "moved"),
            (self.dropped_blocks, "block", "of zeroes dropped"),
        ] {
            if count > 0 {
                write!(f, ", {} {what}", human::count(count, one))?;
            }
        }
        if self.table_moved {
            f.write_str(", table moved")?;
        }
        writeln!(f)
    }
}

impl fmt::Display for ResizeJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = human::bytes(self.size);
        match (self.files.is_empty(), self.dry_run) {
            (true, _) => writeln!(f, "{}: the disk has {size} already", self.image)?,
            (false, true) => writeln!(f, "{}: the disk would have {size}", self.image)?,
            (false, false) => writeln!(f, "{}: the disk has {size} now", self.image)?,
        }
        self.files.iter().try_for_each(|file| write!(f, "{file}"))?;
        if self.gpt_moved {
            let verb = if self.dry_run { "would be" } else { "was" };
            writeln!(f, "  the backup of the partition table {verb} moved to the end")?;
        }
        Ok(())
    }
}

pub(crate) fn run(args: &ResizeArgs) -> Result<Exit, Failure> {
    require_file(&args.image, "resized")?;
    args.chain.search.require_locks("an image is resized in place")?;
    let source = Source::or_remote(&args.image, None)?;
    let json = match source.remote() {
        Some(uri) => remote::run(args, &source.name, uri)?,
        None => {
            let size = wanted_size(args, &source)?;
            match asked_for(args, &source, size)? {
                Some(json) => json,
                None if source.on_volume().is_some() => resize_on_volume(args, source, size)?,
                None => resize(args, &args.image, args.chain.clone(), &source, size, args.dry_run)?,
            }
        }
    };
    for warning in &json.warnings {
        output::warning(warning);
    }
    output::report(args.report, NAME, &json)?;
    Ok(Exit::Ok)
}

/// The size that an image on this host is to have. A change is one of the size that it has now, which nobody can tell
/// while another job is open.
fn wanted_size(args: &ResizeArgs, source: &Source) -> Result<u64, Failure> {
    if let NewSize::Exactly(bytes) = args.size {
        return Ok(bytes);
    }
    require_no_job([&source.path])?;
    let file = HostFile::open(&source.path, Access::ReadOnly, Sharing::Unlocked)?;
    let footers = Footers::read(&file).map_err(|error| Failure::from(error).about(&source.name))?;
    changed(args.size, footers.footer.current_size, &source.name)
}

/// The size that a disk of `present` bytes is to have.
fn changed(size: NewSize, present: u64, name: &str) -> Result<u64, Failure> {
    size.of(present).map_err(|reason| Failure::usage(reason).about(name))
}

/// A file of the disk that a program has in use, if there is one that the image belongs to; of its tree, if all of that is
/// resized.
fn user_of(args: &ResizeArgs, image: &Path) -> Option<PathBuf> {
    control::user_of(image).or_else(|| {
        let opened = args.tree.then(|| OpenOptions::new().open(image).ok()).flatten()?;
        control::user_of(opened.paths().last()?)
    })
}

/// Has the program do it that has the disk in use, if there is one.
fn asked_for(args: &ResizeArgs, source: &Source, size: u64) -> Result<Option<ResizeJson>, Failure> {
    let Some(disk) = (!args.offline).then(|| user_of(args, &source.path)).flatten() else {
        return Ok(None);
    };
    let image = path::absolute(&source.path).map_err(|error| Failure::io("find", &source.path, &error))?;
    let job = ResizeJob {
        image,
        size,
        shrink: args.shrink,
        tree: args.tree,
        fix_gpt: args.fix_gpt,
        ignore_children: args.children.ignore_children,
        dry_run: args.dry_run,
    };
    let cancel = interrupt::flag_on_interrupt();
    let along = Along {
        rate: None,
        progress: &args.progress.reporter("resizing"),
        cancel: &cancel,
    };
    let resized = control::resize(&disk, job, &along)?;
    Ok(resized.map(|resized| ResizeJson {
        image: source.name.clone(),
        ..resized
    }))
}

/// Gives a disk another size that this process has in use, or says what would be done.
pub(crate) fn in_use(
    job: &ResizeJob,
    device: &LiveDevice,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<ResizeJson, Failure> {
    let options = OpenOptions::new().ignore_children(job.ignore_children);
    let request = Request {
        image: &job.image,
        size: job.size,
        shrink: job.shrink,
        tree: job.tree,
        fix_gpt: job.fix_gpt,
        options: &options,
        cancel,
    };
    let plan = match job.dry_run {
        true => plan_in_use(&request, device),
        false => resize_in_use(&request, device, progress).map(|report| report.plan),
    };
    let plan = plan.map_err(children::explain)?;
    Ok(ResizeJson::of(&path_text(&job.image), job.dry_run, false, &plan))
}

/// The same for a disk on a volume: in a copy, which takes its place. Who relies on it is looked for where it is.
fn resize_on_volume(args: &ResizeArgs, source: Source, size: u64) -> Result<ResizeJson, Failure> {
    if args.tree {
        let message = "the images of a tree can't be resized together on a volume";
        return Err(Failure::new(Kind::VolumeCannot, message).about(&source.name));
    }
    let disk = source.on_volume().expect("asked for one").clone();
    let planned = resize(args, &disk.file(), args.chain.clone(), &source, size, true)?;
    if args.dry_run || planned.files.is_empty() && !args.fix_gpt {
        return Ok(ResizeJson {
            dry_run: args.dry_run,
            ..planned
        });
    }
    let copy = WorkingCopy::of(&disk)?;
    let (source, chain) = source.in_copy(&copy, &args.chain);
    let mut json = resize(args, copy.path(), chain, &source, size, false)?;
    copy.publish()?;
    let file = path_text(&disk.file());
    json.files.iter_mut().for_each(|changed| changed.path.clone_from(&file));
    Ok(json)
}

/// Resizes an image, or says what would be done.
fn resize(
    args: &ResizeArgs,
    image: &Path,
    chain: ChainArgs,
    source: &Source,
    size: u64,
    dry_run: bool,
) -> Result<ResizeJson, Failure> {
    let options = SourceArgs { from: None, chain }.options(source);
    let options = options.ignore_children(args.children.ignore_children);
    let cancel = interrupt::flag_on_interrupt();
    let request = Request {
        image,
        size,
        shrink: args.shrink,
        tree: args.tree,
        fix_gpt: args.fix_gpt,
        options: &options,
        cancel: &cancel,
    };
    let resize = Resize::prepare(&request, !dry_run).map_err(children::explain)?;
    let mut json = ResizeJson::of(&source.name, dry_run, args.fix_gpt, resize.plan());
    if !dry_run {
        json.gpt_moved = resize.run(&args.progress.reporter("resizing"))?.gpt_moved;
    }
    Ok(json)
}

impl ResizeJson {
    fn of(image: &str, dry_run: bool, fix_gpt: bool, plan: &ResizePlan) -> Self {
        let warning = format!(
            "{image}: the backup of the partition table is not at the end of the disk: --fix-gpt moves it there"
        );
        Self {
            image: image.to_owned(),
            dry_run,
            size: plan.size,
            resumed: plan.resumed,
            files: plan.files.iter().map(FileJson::of).collect(),
            gpt_moved: fix_gpt && plan.gpt_misplaced,
            warnings: (plan.gpt_misplaced && !fix_gpt)
                .then_some(warning)
                .into_iter()
                .collect(),
        }
    }
}
