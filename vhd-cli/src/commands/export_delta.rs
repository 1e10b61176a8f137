//! `vhd export-delta`: a disk as a differencing image on top of an older one.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vhd_core::chain::{OpenedDisk, parent_link};
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::ops::OpsError;
use vhd_core::ops::delta::{DeltaError, DeltaExport, ExportReport, hex};

use super::convert::explain;
use super::destination::{Destination, StandardOutput};
use super::pair;
use crate::children::ChildrenArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{Source, SourceArgs, is_dash};
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;
use crate::{human, size};

pub(crate) const NAME: &str = "export-delta";

const EXAMPLES: &str = "\
Examples:
  vhd export-delta tuesday.avhd --since monday.avhd tuesday.delta.avhd
  vhd export-delta tuesday.avhd --since monday.avhd - | ssh backup 'cat > tuesday.delta.avhd'

The delta is a differencing image: on top of BASE it reads exactly like IMAGE. It holds the sectors that differ, no \
others, whatever layers they came from, and the SHA-256 of both disks, by which `vhd import-delta` verifies base and \
result. BASE need not be an ancestor of IMAGE, but the disks must be of one size.";

/// Arguments of `vhd export-delta`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ExportDeltaArgs {
    /// The disk to export: an image, any leaf of a chain, or - for standard input
    image: PathBuf,
    /// The older disk that the delta is to be put on
    #[arg(long, value_name = "BASE")]
    since: PathBuf,
    /// The delta, or - for standard output
    #[arg(value_name = "OUT")]
    destination: PathBuf,
    /// The size of the delta's blocks, a power of two from 512K to 256M [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_block_size)]
    block_size: Option<u64>,
    /// Replace an existing destination
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    /// fsync the file and its directory before exiting
    #[arg(long)]
    sync: bool,
    #[command(flatten)]
    input: SourceArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct ExportJson {
    image: String,
    base: String,
    delta: String,
    id: String,
    virtual_size: u64,
    base_sha256: String,
    image_sha256: String,
    different_bytes: u64,
    blocks: u64,
    file_size: u64,
    warnings: Vec<String>,
}

impl fmt::Display for ExportJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = human::bytes(self.different_bytes);
        let blocks = human::count(self.blocks, "block");
        writeln!(f, "Exported {}: {bytes} that differ, in {blocks}", self.delta)?;
        writeln!(f, "{}  {}", self.base_sha256, self.base)?;
        writeln!(f, "{}  {}", self.image_sha256, self.image)
    }
}

impl ExportDeltaArgs {
    /// The destination is standard output.
    pub(crate) fn to_stdout(&self) -> bool {
        is_dash(&self.destination)
    }
}

pub(crate) fn run(args: &ExportDeltaArgs) -> Result<Exit, Failure> {
    if is_dash(&args.since) {
        return Err(Failure::usage("the base must have a name: the delta is to lead to it"));
    }
    if args.to_stdout() && (args.force || args.sync) {
        return Err(Failure::usage("--force and --sync are for a destination with a name"));
    }
    let report = if args.to_stdout() { stream(args)? } else { write(args)? };
    output::report_beside(args.report, NAME, &report, args.to_stdout())?;
    Ok(Exit::Ok)
}

/// Both disks.
struct Disks {
    source: Source,
    image: OpenedDisk,
    base: OpenedDisk,
}

fn open(args: &ExportDeltaArgs, spool_dir: Option<&Path>) -> Result<Disks, Failure> {
    let source = Source::new(&args.image, spool_dir)?;
    let image = args.input.open(&source)?;
    let chain = args.input.chain.clone();
    let base = SourceArgs { from: None, chain }.open_native(&Source::new(&args.since, None)?)?;
    Ok(Disks { source, image, base })
}

fn write(args: &ExportDeltaArgs) -> Result<ExportJson, Failure> {
    let destination = Destination::new(&args.destination, args.force, args.children)?;
    let disks = open(args, destination.directory())?;
    let _lock = destination.guard([&disks.image, &disks.base])?;
    let export = prepare(args, &disks)?;
    let reporter = args.progress.reporter("writing");
    export
        .write(destination.path(), args.force, args.sync, &reporter)
        .map_err(|error| told(error, &disks))?;
    Ok(report(args, &disks, export.report()))
}

fn stream(args: &ExportDeltaArgs) -> Result<ExportJson, Failure> {
    let mut out = StandardOutput::open()?;
    let disks = open(args, None)?;
    out.refuse_source(&disks.image)?;
    out.refuse_source(&disks.base)?;
    let export = prepare(args, &disks)?;
    let reporter = args.progress.reporter("writing");
    export
        .stream(out.writer(), &reporter)
        .map_err(|error| told(error, &disks))?;
    Ok(report(args, &disks, export.report()))
}

fn prepare(args: &ExportDeltaArgs, disks: &Disks) -> Result<DeltaExport, Failure> {
    let link = parent_link(&args.destination, &disks.base.paths()[0], &disks.base)?;
    let block_size = args.block_size.unwrap_or(u64::from(DEFAULT_BLOCK_SIZE));
    let reporter = args.progress.reporter("comparing");
    let export = DeltaExport::new(&disks.image, &disks.base, &link, block_size, &reporter);
    export.map_err(|error| told(error, disks))
}

fn told(error: DeltaError, disks: &Disks) -> Failure {
    match error {
        DeltaError::Ops(error @ OpsError::Output(_)) => explain(error, &disks.source, &disks.image),
        error => Failure::from(error),
    }
}

fn report(args: &ExportDeltaArgs, disks: &Disks, done: ExportReport) -> ExportJson {
    ExportJson {
        image: disks.source.name.clone(),
        base: output::path_text(&args.since),
        delta: output::path_text(&args.destination),
        id: done.id.to_string(),
        virtual_size: done.disk_size,
        base_sha256: hex(&done.base_sha256),
        image_sha256: hex(&done.image_sha256),
        different_bytes: done.different_bytes,
        blocks: done.blocks,
        file_size: done.file_bytes,
        warnings: pair::warnings(&disks.image, &disks.base),
    }
}
