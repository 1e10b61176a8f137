//! `vhd compact`: a shorter file with the same content.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::Serialize;
use vhd_core::ErrorKind;
use vhd_core::chain::OpenedDisk;
use vhd_core::chain::dependants::Search;
use vhd_core::device::LayeredDevice;
use vhd_core::job::require_no_job;
use vhd_core::ops::compact::{CompactError, CompactOptions, CompactPlan, CompactReport, FreeSpace, Survey, compact};

use super::measure::{PartitionSpace, partition_spaces};
use super::parent_time::ParentTime;
use super::several::Several;
use crate::children;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::format_arg::FormatArg;
use crate::input::{ChainArgs, Source, SourceArgs, require_file};
use crate::output::{self, ReportArgs, path_text};
use crate::progress::ProgressArgs;
use crate::space::DiskSpace;
use crate::volume::{DiskName, WorkingCopy};
use crate::{human, interrupt};

pub(crate) const NAME: &str = "compact";

const EXAMPLES: &str = "\
Examples:
  vhd compact disk.vhd --dry-run
  vhd compact disk.vhd
  vhd compact disk.vhd --free-space
  vhd compact --json disk.vhd | jq .file_bytes

Blocks that the disk reads the same without are dropped, blocks from the end of the file move into the holes, and the \
file is cut. The content of the disk does not change, children of the image are not harmed, and an interruption or a \
crash at any time loses nothing: run it again to go on. With --free-space what the file systems on the disk do not use \
(NTFS, ext2/3/4, XFS, FAT, exFAT, swap; in MBR or GPT partitions or without) goes too: it reads zero or as before \
afterwards. A partition whose file system is not clean or not known is left alone, and it is told why.";

/// Arguments of `vhd compact`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompactArgs {
    /// The images: dynamic or differencing VHDs that nothing else uses
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Drop what the file systems on the disk do not use
    #[arg(long)]
    free_space: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Use --free-space although others rely on this image, or that cannot be known: they see the change too
    #[arg(long, visible_alias = "force", requires = "free_space")]
    ignore_children: bool,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct CompactJson {
    image: String,
    dry_run: bool,
    cancelled: bool,
    file_bytes_before: u64,
    file_bytes: u64,
    blocks: u64,
    dropped_blocks: u64,
    moved_blocks: u64,
    moved_bytes: u64,
    trimmed_bytes: u64,
    copied_bytes: u64,
    shared_bytes: u64,
    /// With --free-space: what was known of the free space of each partition.
    partitions: Vec<PartitionSpace>,
    children: Vec<String>,
    warnings: Vec<String>,
}

impl fmt::Display for CompactJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (before, after) = (human::binary(self.file_bytes_before), human::binary(self.file_bytes));
        let verb = if self.dry_run { "would become" } else { "is now" };
        writeln!(f, "{}: {before} {verb} {after}", self.image)?;
        let mut fields = human::Fields::default();
        let of = format!("{} of {}", self.dropped_blocks, human::count(self.blocks, "block"));
        fields.add("dropped", of);
        let moved = human::count(self.moved_blocks, "block");
        fields.add("moved", format!("{moved}, {}", human::binary(self.moved_bytes)));
        if self.trimmed_bytes > 0 {
            let trimmed = human::binary(self.trimmed_bytes);
            fields.add("freed inside", format!("{trimmed} in blocks that stay"));
        }
        fields.fmt(f)
    }
}

pub(crate) fn run(args: &CompactArgs) -> Result<Exit, Failure> {
    let several = Several {
        images: &args.images,
        name: NAME,
        report: args.report,
    };
    several.each(|image| compact_one(args, image))
}

fn compact_one(args: &CompactArgs, image: &Path) -> Result<Exit, Failure> {
    require_file(image, "compacted")?;
    args.chain.search.require_locks("blocks change their places")?;
    let source = Source::new(image, None)?;
    if source.is_snapshot {
        return Err(Failure::usage("DISK@NAME is for reading: name the file to compact it"));
    }
    // Blocks that move do so in a copy, on a volume.
    let place = source.on_volume().map_or_else(|| image.to_owned(), DiskName::file);
    let copy = source
        .on_volume()
        .filter(|_| !args.dry_run)
        .map(WorkingCopy::of)
        .transpose()?;
    let (source, chain) = match &copy {
        Some(copy) => source.in_copy(copy, &args.chain),
        None => (source, args.chain.clone()),
    };
    let opened = open(args, chain, &source)?;
    require_no_job([&source.path])?;
    let warnings = opened.warnings().iter().map(ToString::to_string).collect();
    let children = children_of(args, &place, &opened)?;
    let space = args.free_space.then(|| DiskSpace::of(&opened.disk()));
    let partitions = space
        .as_ref()
        .map(|space| tell_unusable(space, &source.name))
        .unwrap_or_default();
    let time = (!children.is_empty() && !args.free_space)
        .then(|| ParentTime::of(&place))
        .transpose()?;
    let device = opened.into_device().ok_or(CompactError::NoBlocks);
    let device = device.map_err(|error| Failure::from(error).about(&source.name))?;
    let cancel = interrupt::flag_on_interrupt();
    let job = Job {
        args,
        cancel: &cancel,
        free: space.as_ref().map_or(&() as &dyn FreeSpace, |space| space),
    };
    let report = job
        .run(device)
        .map_err(|error| Failure::from(error).about(&source.name))?;
    if report.cancelled && copy.is_some() {
        let message = format!("{}: interrupted; nothing was changed", source.name);
        return Err(Failure::new(Kind::Library(ErrorKind::Cancelled), message));
    }
    copy.map_or(Ok(()), WorkingCopy::publish)?;
    if let Some(time) = time.filter(|_| !args.dry_run) {
        time.keep();
    }
    let json = CompactJson {
        partitions,
        children: children.iter().map(|child| path_text(child)).collect(),
        warnings,
        ..CompactJson::of(&source.name, args.dry_run, &report)
    };
    output::report(args.report, NAME, &json)?;
    if report.cancelled {
        let message = format!(
            "{}: interrupted; what was done is kept, run it again to go on",
            source.name
        );
        return Err(Failure::new(Kind::Library(ErrorKind::Cancelled), message).reported());
    }
    Ok(Exit::Ok)
}

/// Opens the image with its ancestors. A dry run needs no right to write.
fn open(args: &CompactArgs, chain: ChainArgs, source: &Source) -> Result<OpenedDisk, Failure> {
    // What has no blocks is told apart from what is no VHD.
    let from = Some(FormatArg::Vhd);
    let options = SourceArgs { from, chain }.options(source).write(!args.dry_run);
    // What a child reads changes with --free-space only: that is asked for then.
    let options = options.ignore_children(true);
    let opened = options.open(&source.path)?;
    for warning in opened.warnings() {
        output::warning(warning);
    }
    Ok(opened)
}

/// The images that are known to be based on this one. What they read would change with --free-space.
fn children_of(args: &CompactArgs, image: &Path, opened: &OpenedDisk) -> Result<Vec<PathBuf>, Failure> {
    let Some(chain) = opened.chain() else {
        return Ok(Vec::new());
    };
    let footer = chain.leaf().footer();
    let parents = opened.paths().iter().skip(1).cloned();
    let search = Search::new().image(image, footer.unique_id).beside(parents);
    let found = search.run();
    if args.free_space && !args.ignore_children {
        let about = |failure: Failure| failure.about(format_args!("{}: --free-space", image.display()));
        found.refuse().map_err(|error| about(children::explain(error)))?;
        if footer.hidden != 0 {
            let message = "it is marked as a parent (hidden), and what a child reads would change";
            let hidden = Failure::new(Kind::Library(ErrorKind::HasChildren), message);
            return Err(about(children::explain(hidden)));
        }
    }
    Ok(found.child_paths())
}

/// Says of each partition that is left alone why.
fn tell_unusable(space: &DiskSpace, image: &str) -> Vec<PartitionSpace> {
    if let Err(reason) = space.report() {
        output::warning(format_args!("{image}: free space is left alone: {reason}"));
    }
    let partitions = partition_spaces(space);
    for partition in &partitions {
        if let Some(reason) = &partition.reason {
            let what = partition.label();
            output::warning(format_args!("{image}: free space of {what} is left alone: {reason}"));
        }
    }
    partitions
}

struct Job<'a> {
    args: &'a CompactArgs,
    cancel: &'a AtomicBool,
    free: &'a dyn FreeSpace,
}

impl Job<'_> {
    fn run(&self, device: LayeredDevice) -> Result<CompactReport, CompactError> {
        let options = CompactOptions {
            free: self.free,
            cancel: self.cancel,
            threads: 0,
            batch_bytes: CompactOptions::DEFAULT_BATCH,
        };
        let survey = {
            let reporter = self.args.progress.reporter("measuring");
            Survey::new(&device, &options, &reporter)?
        };
        let plan = CompactPlan::new(&survey, self.args.free_space);
        if self.args.dry_run {
            let planned = plan.summary();
            return Ok(CompactReport {
                planned,
                dropped_blocks: planned.dropped_blocks,
                moved_blocks: planned.moved_blocks,
                trimmed_bytes: planned.trimmed_bytes,
                file_bytes: planned.file_bytes_after,
                ..CompactReport::default()
            });
        }
        let reporter = self.args.progress.reporter("moving");
        compact(device, &plan, &options, &reporter)
    }
}

impl CompactJson {
    fn of(image: &str, dry_run: bool, report: &CompactReport) -> Self {
        let planned = report.planned;
        let moved_bytes = match planned.moved_blocks {
            0 => 0,
            blocks => planned.moved_bytes / blocks * report.moved_blocks,
        };
        Self {
            image: image.to_owned(),
            dry_run,
            cancelled: report.cancelled,
            file_bytes_before: planned.file_bytes,
            file_bytes: report.file_bytes,
            blocks: planned.blocks,
            dropped_blocks: report.dropped_blocks,
            moved_blocks: report.moved_blocks,
            moved_bytes,
            trimmed_bytes: report.trimmed_bytes,
            copied_bytes: report.copied_bytes,
            shared_bytes: report.shared_bytes,
            partitions: Vec::new(),
            children: Vec::new(),
            warnings: Vec::new(),
        }
    }
}
