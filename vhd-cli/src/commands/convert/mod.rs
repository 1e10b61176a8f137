//! `vhd convert`: a disk, or any leaf of a chain, as a raw, fixed, dynamic or qcow2 image.

mod chain;
mod onto;

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde::Serialize;
use vhd_core::chain::OpenedDisk;
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::image::Preallocate;
use vhd_core::ops::{self, ConvertOptions, ConvertReport, OpsError, StreamFormat, Target};

use super::create::PreallocateArg;
use super::destination::{self, Destination, StandardOutput};
use super::sparse;
use crate::children::ChildrenArgs;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{Source, SourceArgs, is_dash};
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;
use crate::volume::NewDisk;
use crate::{human, size};

pub(crate) const NAME: &str = "convert";

const EXAMPLES: &str = "\
Examples:
  vhd convert disk.vhd disk.raw
  vhd convert disk.raw disk.vhd
  vhd convert disk.vhdx disk.qcow2
  vhd convert snapshot.avhd flat.vhd --to fixed --preallocate falloc
  vhd convert snapshot.avhd qcow2/ --to qcow2 --chain         each layer, as a backing chain
  vhd convert nbd://host/export disk.vhd
  vhd convert snapshot.avhd /dev/vg/disk --force              onto a logical volume, in place
  vhd convert snapshot.avhd nbd://host/export --force         onto the disk of a server
  vhd convert old/disk.vhd . --to raw                         disk.raw, here
  cat fixed.vhd | vhd convert - - --to raw | sha256sum

Zeroes take no space in the destination. The destination appears under its name complete or not at all, whatever \
happens meanwhile. Standard output takes raw and fixed images; the JSON object then goes to standard error, as its \
last lines.";

/// Arguments of `vhd convert`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConvertArgs {
    /// The source: an image, any leaf of a chain, an NBD URI, or - for standard input
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The destination, a directory to put it into under the name of the source, or - for standard output; with --force a
    /// block device or an NBD URI, which is written in place
    #[arg(value_name = "DST")]
    destination: PathBuf,
    /// The format of the destination [default: by its extension; raw for .raw, .img, .bin and .dd, dynamic for .vhd, qcow2 for .qcow2]
    #[arg(long, short = 'O', value_name = "FORMAT", value_enum)]
    to: Option<TargetArg>,
    /// The size of a dynamic image's blocks, a power of two from 512K to 256M [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_block_size)]
    block_size: Option<u64>,
    /// How to allocate space for zeroes: of the whole disk (fixed), or in the blocks that hold data (dynamic) [default: off]
    #[arg(long, value_name = "MODE", value_enum)]
    preallocate: Option<PreallocateArg>,
    /// Convert each layer: the destination becomes the leaf of a chain of qcow2 images beside it, named after their layers
    #[arg(long)]
    chain: bool,
    /// Replace an existing destination
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    /// fsync the file and its directory before exiting
    #[arg(long)]
    sync: bool,
    /// Threads that copy [default: as many as are useful]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    #[command(flatten)]
    input: SourceArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// The value of `--to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TargetArg {
    /// The bytes of the disk and nothing else
    Raw,
    /// A fixed VHD
    Fixed,
    /// A dynamic VHD
    #[value(aliases = ["vhd", "vpc"])]
    Dynamic,
    /// A qcow2 image of version 3
    Qcow2,
}

/// What is to be done: the arguments, and what they leave open.
struct Job<'a> {
    args: &'a ConvertArgs,
    to: TargetArg,
    destination: PathBuf,
}

#[derive(Serialize)]
struct ConvertJson {
    source: String,
    destination: String,
    to: String,
    virtual_size: u64,
    copied_bytes: u64,
    shared_bytes: u64,
    zero_bytes: u64,
    /// With --chain: the image of each layer, the leaf first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    layers: Vec<String>,
    warnings: Vec<String>,
}

impl fmt::Display for ConvertJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.copied_bytes, "copied"),
            (self.shared_bytes, "shared"),
            (self.zero_bytes, "zero"),
        ];
        let parts = parts.iter().filter(|(bytes, _)| *bytes > 0);
        let parts: Vec<String> = parts
            .map(|(bytes, what)| format!("{} {what}", human::binary(*bytes)))
            .collect();
        let size = human::bytes(self.virtual_size);
        writeln!(
            f,
            "Converted {} to {} ({}): {size}, {}",
            self.source,
            self.destination,
            self.to,
            parts.join(", ")
        )?;
        self.layers
            .iter()
            .skip(1)
            .try_for_each(|layer| writeln!(f, "  over {layer}"))
    }
}

impl ConvertArgs {
    /// The destination is standard output.
    pub(crate) fn to_stdout(&self) -> bool {
        is_dash(&self.destination)
    }
}

impl TargetArg {
    /// The format that a file's extension names.
    fn of_extension(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "raw" | "img" | "bin" | "dd" => Some(Self::Raw),
            "vhd" | "vpc" => Some(Self::Dynamic),
            "qcow2" => Some(Self::Qcow2),
            _ => None,
        }
    }

    /// The extension of a file in this format.
    fn extension(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Fixed | Self::Dynamic => "vhd",
            Self::Qcow2 => "qcow2",
        }
    }

    /// As the library takes it.
    pub(super) fn target(self, block_size: Option<u64>, preallocate: Option<PreallocateArg>) -> Target {
        let preallocate = preallocate.map_or(Preallocate::Off, Into::into);
        match self {
            Self::Raw => Target::Raw,
            Self::Qcow2 => Target::Qcow2,
            Self::Fixed => Target::Fixed { preallocate },
            Self::Dynamic => Target::Dynamic {
                block_size: block_size.unwrap_or(u64::from(DEFAULT_BLOCK_SIZE)),
                preallocate,
            },
        }
    }

    /// Refuses options that the format has no use for.
    pub(super) fn check(self, block_size: Option<u64>, preallocate: Option<PreallocateArg>) -> Result<(), Failure> {
        if self != Self::Dynamic && block_size.is_some() {
            return Err(Failure::usage(
                "only dynamic images have blocks: --block-size needs --to dynamic",
            ));
        }
        if matches!(self, Self::Raw | Self::Qcow2) && preallocate.is_some_and(|mode| mode != PreallocateArg::Off) {
            return Err(Failure::usage(
                "only VHDs are preallocated: --preallocate needs --to fixed or --to dynamic",
            ));
        }
        Ok(())
    }

    /// The word on the command line.
    pub(super) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

pub(crate) fn run(args: &ConvertArgs) -> Result<Exit, Failure> {
    let job = Job::new(args)?;
    job.check_arguments()?;
    let report = if args.to_stdout() {
        job.stream()?
    } else if onto::is_there(&args.destination) {
        onto::convert(&job)?
    } else if args.chain {
        chain::convert(&job)?
    } else {
        job.convert()?
    };
    output::report_beside(args.report, NAME, &report, args.to_stdout())?;
    Ok(Exit::Ok)
}

impl<'a> Job<'a> {
    fn new(args: &'a ConvertArgs) -> Result<Self, Failure> {
        let is_there = onto::is_there(&args.destination);
        let by_place = is_there.then_some(TargetArg::Raw);
        let to = args
            .to
            .or(by_place)
            .or_else(|| TargetArg::of_extension(&args.destination));
        let to = to.ok_or_else(|| {
            let destination = args.destination.display();
            Failure::usage(format_args!(
                "the name {destination} does not tell the format: add --to raw, --to fixed, --to dynamic or --to qcow2"
            ))
        })?;
        let destination = destination::in_directory(&args.destination, &args.source, to.extension())?;
        Ok(Self { args, to, destination })
    }

    fn check_arguments(&self) -> Result<(), Failure> {
        let args = self.args;
        self.to.check(args.block_size, args.preallocate)?;
        let preallocates = args.preallocate.is_some_and(|mode| mode != PreallocateArg::Off);
        if args.chain && (self.to != TargetArg::Qcow2 || args.to_stdout()) {
            return Err(Failure::usage(
                "--chain makes qcow2 images: it needs --to qcow2 and a destination with a name",
            ));
        }
        let message = match self.to {
            _ if !args.to_stdout() => return Ok(()),
            TargetArg::Dynamic => "a dynamic image is not written in one pass: standard output takes raw and fixed",
            TargetArg::Qcow2 => "a qcow2 image is not written in one pass: standard output takes raw and fixed",
            TargetArg::Fixed if preallocates => "standard output can't be preallocated",
            _ if args.force || args.sync => "--force and --sync are for a destination with a name",
            _ => return Ok(()),
        };
        Err(Failure::usage(message))
    }

    fn convert(&self) -> Result<ConvertJson, Failure> {
        let args = self.args;
        let new = NewDisk::new(&self.destination)?;
        let destination = Destination::new(new.place(), args.force, args.children)?;
        let source = Source::or_remote(&args.source, destination.directory())?;
        let opened = args.input.open(&source)?;
        let _lock = destination.guard([&opened])?;
        let options = ConvertOptions {
            target: self.to.target(args.block_size, args.preallocate),
            replace: args.force,
            durable: args.sync || new.is_on_volume(),
            threads: args.threads.map_or(0, usize::from),
        };
        let reporter = args.progress.reporter("converting");
        let done =
            ops::convert(&opened, new.file(), &options, &reporter).map_err(|error| explain(error, &source, &opened))?;
        drop(reporter);
        let mut report = self.report(source, &opened, done);
        let place = destination.path().to_owned();
        new.publish(args.force)?;
        report.warnings.extend(sparse::warn_for_windows(&place));
        Ok(report)
    }

    fn stream(&self) -> Result<ConvertJson, Failure> {
        let mut out = StandardOutput::open()?;
        let source = Source::or_remote(&self.args.source, None)?;
        let opened = self.args.input.open(&source)?;
        out.refuse_source(&opened)?;
        let format = match self.to {
            TargetArg::Raw => StreamFormat::Raw,
            TargetArg::Fixed | TargetArg::Dynamic | TargetArg::Qcow2 => StreamFormat::Fixed,
        };
        let disk = opened.disk();
        let reporter = self.args.progress.reporter("converting");
        ops::stream(&disk, format, out.writer(), &reporter).map_err(|error| explain(error, &source, &opened))?;
        let done = ConvertReport {
            disk_bytes: disk.size(),
            copied_bytes: disk.size(),
            ..ConvertReport::default()
        };
        Ok(self.report(source, &opened, done))
    }

    fn report(&self, source: Source, opened: &OpenedDisk, done: ConvertReport) -> ConvertJson {
        ConvertJson {
            source: source.name,
            destination: output::path_text(&self.destination),
            to: self.to.name(),
            virtual_size: done.disk_bytes,
            copied_bytes: done.copied_bytes,
            shared_bytes: done.shared_bytes,
            zero_bytes: done.zero_bytes,
            layers: Vec::new(),
            warnings: opened.warnings().iter().map(ToString::to_string).collect(),
        }
    }
}

/// A failure with the file it is about.
pub(super) fn explain(error: OpsError, source: &Source, opened: &OpenedDisk) -> Failure {
    match error {
        OpsError::Output(error) => output::write_failed(&error),
        error @ OpsError::Source(_) if opened.paths().len() == 1 => Failure::from(error).about(&source.name),
        error @ OpsError::Source(_) => Failure::from(error).about(format!("{} or an ancestor", source.name)),
        error => error.into(),
    }
}
