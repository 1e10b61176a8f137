//! `vhd convert`: a disk, or any leaf of a chain, as a raw, fixed or dynamic image.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use rustix::fs::fstat;
use serde::Serialize;
use vhd_core::chain::OpenedDisk;
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::image::Preallocate;
use vhd_core::ops::{self, ConvertOptions, ConvertReport, OpsError, StreamFormat, Target};
use vhd_core::storage::{Access, HostFile, Sharing, StorageError};

use super::create::PreallocateArg;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{Source, SourceArgs, is_dash};
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;
use crate::{human, size};

pub(crate) const NAME: &str = "convert";

const EXAMPLES: &str = "\
Examples:
  vhd convert disk.vhd disk.raw --to raw
  vhd convert disk.raw disk.vhd --to dynamic
  vhd convert snapshot.avhd flat.vhd --to fixed --preallocate falloc
  cat fixed.vhd | vhd convert - - --to raw | sha256sum

Zeroes take no space in the destination. The destination appears under its name complete or not at all, whatever \
happens meanwhile. Standard output takes raw and fixed images; the JSON object then goes to standard error, as its \
last lines.";

/// Arguments of `vhd convert`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ConvertArgs {
    /// The source: an image, any leaf of a chain, or - for standard input
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The destination, or - for standard output
    #[arg(value_name = "DST")]
    destination: PathBuf,
    /// The format of the destination
    #[arg(long, value_name = "FORMAT", value_enum)]
    to: TargetArg,
    /// The size of a dynamic image's blocks, a power of two from 512K to 256M [default: 2M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_block_size)]
    block_size: Option<u64>,
    /// What is done about the space of zeroes in a fixed image [default: off]
    #[arg(long, value_name = "MODE", value_enum)]
    preallocate: Option<PreallocateArg>,
    /// Replace an existing destination
    #[arg(long)]
    force: bool,
    /// Return when the destination is durable, name and all
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
enum TargetArg {
    /// The bytes of the disk and nothing else
    Raw,
    /// A fixed VHD
    Fixed,
    /// A dynamic VHD
    Dynamic,
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
        )
    }
}

impl ConvertArgs {
    /// The destination is standard output.
    pub(crate) fn to_stdout(&self) -> bool {
        is_dash(&self.destination)
    }

    fn target(&self) -> Target {
        match self.to {
            TargetArg::Raw => Target::Raw,
            TargetArg::Fixed => Target::Fixed {
                preallocate: self.preallocate.map_or(Preallocate::Off, Into::into),
            },
            TargetArg::Dynamic => Target::Dynamic {
                block_size: self.block_size.unwrap_or(u64::from(DEFAULT_BLOCK_SIZE)),
            },
        }
    }
}

pub(crate) fn run(args: &ConvertArgs) -> Result<Exit, Failure> {
    check_arguments(args)?;
    let report = if args.to_stdout() {
        stream(args)?
    } else {
        convert(args)?
    };
    tell(args, &report)?;
    Ok(Exit::Ok)
}

fn check_arguments(args: &ConvertArgs) -> Result<(), Failure> {
    let preallocates = args.preallocate.is_some_and(|mode| mode != PreallocateArg::Off);
    let message = match args.to {
        TargetArg::Raw | TargetArg::Fixed if args.block_size.is_some() => {
            "only dynamic images have blocks: --block-size needs --to dynamic"
        }
        TargetArg::Raw | TargetArg::Dynamic if preallocates => {
            "only fixed images are preallocated: --preallocate needs --to fixed"
        }
        TargetArg::Dynamic if args.to_stdout() => {
            "a dynamic image is not written in one pass: standard output takes raw and fixed"
        }
        TargetArg::Fixed if args.to_stdout() && preallocates => "standard output can't be preallocated",
        _ if args.to_stdout() && (args.force || args.sync) => "--force and --sync are for a destination with a name",
        _ => return Ok(()),
    };
    Err(Failure::usage(message))
}

fn convert(args: &ConvertArgs) -> Result<ConvertJson, Failure> {
    let destination = &args.destination;
    let exists = exists_to_be_replaced(destination, args.force)?;
    let source = Source::new(&args.source, directory_of(destination))?;
    let opened = args.input.open(&source)?;
    let _lock = if exists {
        let status = rustix::fs::stat(destination);
        refuse_source(&opened, status, &destination.display().to_string())?;
        lock(destination)?
    } else {
        None
    };
    let options = ConvertOptions {
        target: args.target(),
        replace: args.force,
        durable: args.sync,
        threads: args.threads.map_or(0, usize::from),
    };
    let reporter = args.progress.reporter("converting");
    let done =
        ops::convert(&opened, destination, &options, &reporter).map_err(|error| explain(error, &source, &opened))?;
    Ok(report(args, source, &opened, done))
}

/// Whether there is a destination already. Publishing refuses it too where it is not to be replaced; this is to
/// know that before terabytes are written.
fn exists_to_be_replaced(destination: &Path, force: bool) -> Result<bool, Failure> {
    if destination.symlink_metadata().is_err() {
        return Ok(false);
    }
    if !force {
        let path = destination.to_owned();
        return Err(StorageError::Exists { path }.into());
    }
    // A device or a pipe would be replaced by a file of its name, which nobody wants.
    match destination.metadata() {
        Ok(metadata) if !metadata.is_file() => {
            let message = format!("{} is no regular file and is not replaced", destination.display());
            Err(Failure::new(Kind::NotReplaceable, message))
        }
        _ => Ok(true),
    }
}

/// Keeps everybody else away from what is about to be replaced; while somebody uses it, it is not.
fn lock(destination: &Path) -> Result<Option<HostFile>, Failure> {
    match HostFile::open(destination, Access::ReadWrite, Sharing::Exclusive) {
        Ok(file) => Ok(Some(file)),
        Err(error @ StorageError::Locked { .. }) => Err(error.into()),
        // Not writable, or a link to nowhere: its name can be given away all the same.
        Err(_) => Ok(None),
    }
}

/// The directory that `path` is in.
fn directory_of(path: &Path) -> Option<&Path> {
    let parent = path.parent()?;
    Some(if parent.as_os_str().is_empty() {
        Path::new(".")
    } else {
        parent
    })
}

/// Refuses a destination that the source is read from, under whatever name.
fn refuse_source(opened: &OpenedDisk, status: rustix::io::Result<rustix::fs::Stat>, name: &str) -> Result<(), Failure> {
    let Ok(destination) = status else { return Ok(()) };
    for path in opened.paths() {
        let Ok(layer) = rustix::fs::stat(path) else { continue };
        if (layer.st_dev, layer.st_ino) == (destination.st_dev, destination.st_ino) {
            let message = format!("the destination {name} is {}, which is read", path.display());
            return Err(Failure::new(Kind::SameFile, message));
        }
    }
    Ok(())
}

fn stream(args: &ConvertArgs) -> Result<ConvertJson, Failure> {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        let message = "a terminal is no place for a disk: redirect standard output";
        return Err(Failure::new(Kind::Terminal, message));
    }
    let source = Source::new(&args.source, None)?;
    let opened = args.input.open(&source)?;
    refuse_source(&opened, fstat(&stdout), "standard output")?;
    let format = match args.to {
        TargetArg::Raw => StreamFormat::Raw,
        TargetArg::Fixed | TargetArg::Dynamic => StreamFormat::Fixed,
    };
    let disk = opened.disk();
    let reporter = args.progress.reporter("converting");
    let mut out = std::fs::File::from(
        stdout
            .as_fd()
            .try_clone_to_owned()
            .map_err(|e| output::write_failed(&e))?,
    );
    ops::stream(&disk, format, &mut out, &reporter).map_err(|error| explain(error, &source, &opened))?;
    let done = ConvertReport {
        disk_bytes: disk.size(),
        copied_bytes: disk.size(),
        ..ConvertReport::default()
    };
    Ok(report(args, source, &opened, done))
}

/// A failure with the file it is about.
fn explain(error: OpsError, source: &Source, opened: &OpenedDisk) -> Failure {
    match error {
        OpsError::Output(error) => output::write_failed(&error),
        error @ OpsError::Source(_) if opened.paths().len() == 1 => Failure::from(error).about(&source.name),
        error @ OpsError::Source(_) => Failure::from(error).about(format!("{} or an ancestor", source.name)),
        error => error.into(),
    }
}

fn report(args: &ConvertArgs, source: Source, opened: &OpenedDisk, done: ConvertReport) -> ConvertJson {
    ConvertJson {
        source: source.name,
        destination: output::path_text(&args.destination),
        to: args
            .to
            .to_possible_value()
            .map_or_else(String::new, |value| value.get_name().to_owned()),
        virtual_size: done.disk_bytes,
        copied_bytes: done.copied_bytes,
        shared_bytes: done.shared_bytes,
        zero_bytes: done.zero_bytes,
        warnings: opened.warnings().iter().map(ToString::to_string).collect(),
    }
}

/// The report goes to standard output unless that is the destination. Into a pipe, people get none.
fn tell(args: &ConvertArgs, report: &ConvertJson) -> Result<(), Failure> {
    match (args.to_stdout(), args.report.json) {
        (false, _) => output::report(args.report, NAME, report),
        (true, true) => {
            output::eprint(&output::json(NAME, report));
            Ok(())
        }
        (true, false) => Ok(()),
    }
}
