//! `vhd resize`: a larger or smaller disk, alone or with its whole tree, or on a server.

mod remote;

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vhd_core::ops::resize::{FilePlan, Request, Resize, ResizePlan};

use crate::children::{self, ChildrenArgs};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ChainArgs, Source, SourceArgs, require_file};
use crate::output::{self, ReportArgs, path_text};
use crate::progress::ProgressArgs;
use crate::size::parse_disk_size;
use crate::{human, interrupt};

pub(crate) const NAME: &str = "resize";

const EXAMPLES: &str = "\
Examples:
  vhd resize disk.vhd 128G
  vhd resize disk.vhd 128G --fix-gpt
  vhd resize disk.vhd 32G --shrink --dry-run
  vhd resize snap.avhd 128G --tree
  vhd resize 'nbd+unix:///?socket=/run/disk.sock' 128G       a disk that vhd nbd --resizable serves

The disk keeps its content and reads zero where it is new; file systems and partitions on it are not touched. A smaller \
disk needs --shrink and is made only if nothing is cut off: no partition, no byte that is not zero. Images that are \
based on one another have one size: --tree resizes all that the image is based on and all that are based on any of \
those, as far as their directories show. Either all images get the new size or none. After a crash the same command \
goes on. With --fix-gpt the backup of a GUID partition table is moved to the new end of the disk; then partitions can \
be enlarged by the guest's own tools. With an NBD URI the server is asked to resize the disk, which stays in use.";

/// Arguments of `vhd resize`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ResizeArgs {
    /// The image: a VHD that nothing else uses; or the NBD URI of a disk that is served
    image: PathBuf,
    /// The size of the disk: bytes, or with a suffix: 512s, 64M, 1.5G
    #[arg(value_parser = parse_disk_size)]
    size: u64,
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
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct ResizeJson {
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

#[derive(Serialize)]
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
        None => resize(args, &source)?,
    };
    for warning in &json.warnings {
        output::warning(warning);
    }
    output::report(args.report, NAME, &json)?;
    Ok(Exit::Ok)
}

/// Resizes an image, or says what would be done.
fn resize(args: &ResizeArgs, source: &Source) -> Result<ResizeJson, Failure> {
    let chain = args.chain.clone();
    let options = SourceArgs { from: None, chain }.options(source);
    let options = options.ignore_children(args.children.ignore_children);
    let cancel = interrupt::flag_on_interrupt();
    let request = Request {
        image: &args.image,
        size: args.size,
        shrink: args.shrink,
        tree: args.tree,
        fix_gpt: args.fix_gpt,
        options: &options,
        cancel: &cancel,
    };
    let resize = Resize::prepare(&request, !args.dry_run).map_err(children::explain)?;
    let mut json = ResizeJson::of(&source.name, args, resize.plan());
    if !args.dry_run {
        json.gpt_moved = resize.run(&args.progress.reporter("resizing"))?.gpt_moved;
    }
    Ok(json)
}

impl ResizeJson {
    fn of(image: &str, args: &ResizeArgs, plan: &ResizePlan) -> Self {
        let warning = format!(
            "{image}: the backup of the partition table is not at the end of the disk: --fix-gpt moves it there"
        );
        Self {
            image: image.to_owned(),
            dry_run: args.dry_run,
            size: plan.size,
            resumed: plan.resumed,
            files: plan.files.iter().map(FileJson::of).collect(),
            gpt_moved: args.fix_gpt && plan.gpt_misplaced,
            warnings: (plan.gpt_misplaced && !args.fix_gpt)
                .then_some(warning)
                .into_iter()
                .collect(),
        }
    }
}
