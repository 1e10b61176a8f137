//! `vhd azure prepare`: a disk as Azure takes it.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vhd_core::image::Preallocate;
use vhd_core::ops::azure::{self, AzureError};
use vhd_core::ops::{ConvertOptions, Target};

use crate::children::ChildrenArgs;
use crate::commands::convert::explain;
use crate::commands::create::PreallocateArg;
use crate::commands::destination::{self, Destination};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::input::{Source, SourceArgs};
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;

pub(super) const NAME: &str = "azure prepare";

const EXAMPLES: &str = "\
Examples:
  vhd azure prepare disk.vhd upload.vhd
  vhd azure prepare snapshot.avhd upload.vhd --force --json

The size is rounded up to whole MiB, 20 MiB at least; what is added reads zero. The backup of a GPT moves to the new \
end, and both headers and the protective MBR say so. Everything else is the same, which is verified before the image \
appears under its name.";

/// Arguments of `vhd azure prepare`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct PrepareArgs {
    /// The source: an image, any leaf of a chain, an NBD URI, or - for standard input
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The new image, or a directory to put it into under the name of the source
    #[arg(value_name = "DST")]
    destination: PathBuf,
    /// Replace an existing destination
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    /// How to allocate space for zeroes [default: off]
    #[arg(long, value_name = "MODE", value_enum)]
    preallocate: Option<PreallocateArg>,
    /// fsync the file and its directory before exiting
    #[arg(long)]
    sync: bool,
    #[command(flatten)]
    input: SourceArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Serialize)]
struct PrepareJson {
    source: String,
    destination: String,
    virtual_size: u64,
    added_bytes: u64,
    gpt_moved: bool,
    copied_bytes: u64,
    shared_bytes: u64,
    zero_bytes: u64,
    warnings: Vec<String>,
}

impl fmt::Display for PrepareJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = human::bytes(self.virtual_size);
        write!(f, "Prepared {}: fixed, {size}", self.destination)?;
        if self.added_bytes > 0 {
            write!(f, ", {} of zeroes added", human::binary(self.added_bytes))?;
        }
        if self.gpt_moved {
            f.write_str(", backup of the GPT at the end")?;
        }
        writeln!(f, "; verified")
    }
}

pub(super) fn run(args: &PrepareArgs) -> Result<Exit, Failure> {
    let path = destination::in_directory(&args.destination, &args.source, "vhd")?;
    let destination = Destination::new(&path, args.force, args.children)?;
    let source = Source::or_remote(&args.source, destination.directory())?;
    let opened = args.input.open(&source)?;
    let _lock = destination.guard([&opened])?;
    let options = ConvertOptions {
        target: Target::Fixed {
            preallocate: args.preallocate.map_or(Preallocate::Off, Into::into),
        },
        replace: args.force,
        durable: args.sync,
        threads: 0,
    };
    let reporter = args.progress.reporter("preparing");
    let done = azure::prepare(&opened, destination.path(), &options, &reporter).map_err(|error| match error {
        AzureError::Ops(error) => explain(error, &source, &opened),
        AzureError::Partition(error) => Failure::from(error).about(&source.name),
        error => error.into(),
    })?;
    drop(reporter);
    let report = PrepareJson {
        source: source.name,
        destination: output::path_text(&path),
        virtual_size: done.converted.disk_bytes,
        added_bytes: done.added_bytes,
        gpt_moved: done.gpt_moved,
        copied_bytes: done.converted.copied_bytes,
        shared_bytes: done.converted.shared_bytes,
        zero_bytes: done.converted.zero_bytes,
        warnings: opened.warnings().iter().map(ToString::to_string).collect(),
    };
    output::report(args.report, NAME, &report)?;
    Ok(Exit::Ok)
}
