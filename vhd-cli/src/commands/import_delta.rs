//! `vhd import-delta`: the disk that a delta makes of its base.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vhd_core::ops::ConvertOptions;
use vhd_core::ops::delta::{DeltaImport, hex};

use super::convert::TargetArg;
use super::create::PreallocateArg;
use super::destination::Destination;
use super::{pair, sparse};
use crate::children::ChildrenArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::format_arg::FormatArg;
use crate::input::{SearchArgs, image_path, is_dash};
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;
use crate::{human, size};

pub(crate) const NAME: &str = "import-delta";

const EXAMPLES: &str = "\
Examples:
  vhd import-delta tuesday.delta.avhd --onto monday.vhd tuesday.vhd
  vhd import-delta tuesday.delta.avhd --onto monday.vhd tuesday.raw --to raw

The base is verified before anything is written, and the result before it gets its name, by the SHA-256 that the delta \
has of both. A mismatch is refused with both digests (exit code 8), and leaves nothing behind.";

/// Arguments of `vhd import-delta`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ImportDeltaArgs {
    /// The delta, as export-delta wrote it
    delta: PathBuf,
    /// The disk that the delta was made since
    #[arg(long, value_name = "BASE")]
    onto: PathBuf,
    /// The new image
    #[arg(value_name = "OUT")]
    destination: PathBuf,
    /// The format of the new image
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "dynamic")]
    to: TargetArg,
    /// The size of a dynamic image's blocks, a power of two from 512K to 256M [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_block_size)]
    block_size: Option<u64>,
    /// How to allocate space for zeroes: of the whole disk (fixed), or in the blocks that hold data (dynamic) [default: off]
    #[arg(long, value_name = "MODE", value_enum)]
    preallocate: Option<PreallocateArg>,
    /// Replace an existing destination
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    /// fsync the file and its directory before exiting
    #[arg(long)]
    sync: bool,
    /// The format of BASE, instead of the detected one; `raw` takes the bytes of any file as a disk
    #[arg(long, value_name = "FORMAT", value_enum)]
    from: Option<FormatArg>,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct ImportJson {
    delta: String,
    base: String,
    destination: String,
    to: String,
    virtual_size: u64,
    base_sha256: String,
    sha256: String,
    warnings: Vec<String>,
}

impl fmt::Display for ImportJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = human::bytes(self.virtual_size);
        writeln!(f, "Imported {} ({}): {size}; verified", self.destination, self.to)?;
        writeln!(f, "{}  {}", self.sha256, self.destination)
    }
}

pub(crate) fn run(args: &ImportDeltaArgs) -> Result<Exit, Failure> {
    args.to.check(args.block_size, args.preallocate)?;
    if [&args.delta, &args.onto, &args.destination]
        .iter()
        .any(|path| is_dash(path))
    {
        return Err(Failure::usage("delta, base and destination must have names"));
    }
    let destination = Destination::new(&args.destination, args.force, args.children)?;
    let base = args.search.options().format(args.from.map(Into::into));
    let import = DeltaImport::open(&args.delta, &image_path(&args.onto)?, &base)?;
    let [base, delta] = import.sources();
    for warning in delta.warnings() {
        output::warning(warning);
    }
    let mut warnings = pair::warnings(base, delta);
    let _lock = destination.guard([base, delta])?;
    let options = ConvertOptions {
        target: args.to.target(args.block_size, args.preallocate),
        replace: args.force,
        durable: args.sync,
        threads: 0,
    };
    let reporter = args.progress.reporter("importing");
    let done = import.write(destination.path(), &options, &reporter)?;
    drop(reporter);
    warnings.extend(sparse::warn_for_windows(destination.path()));
    let report = ImportJson {
        delta: output::path_text(&args.delta),
        base: output::path_text(&args.onto),
        destination: output::path_text(&args.destination),
        to: args.to.name(),
        virtual_size: done.record.disk_size,
        base_sha256: hex(&done.record.base_sha256),
        sha256: hex(&done.record.result_sha256),
        warnings,
    };
    output::report(args.report, NAME, &report)?;
    Ok(Exit::Ok)
}
