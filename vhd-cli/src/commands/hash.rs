//! `vhd hash`: the SHA-256 of a disk's content.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vhd_core::ops;

use super::several::Several;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{Source, SourceArgs};
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;

pub(crate) const NAME: &str = "hash";

const EXAMPLES: &str = "\
Examples:
  vhd hash disk.vhd
  vhd hash snapshot.avhd --parent moved/disk.vhd
  vhd hash --json disk.vhd | jq -r .sha256

The digest is that of the whole disk as a guest sees it: equal for a VHD and for its raw copy.";

/// Arguments of `vhd hash`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct HashArgs {
    /// The images, NBD URIs, or - for standard input
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct HashReport {
    image: String,
    sha256: String,
    virtual_size: u64,
    warnings: Vec<String>,
}

impl fmt::Display for HashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  {}", self.sha256, self.image)
    }
}

pub(crate) fn run(args: &HashArgs) -> Result<Exit, Failure> {
    let several = Several {
        images: &args.images,
        name: NAME,
        report: args.report,
    };
    several.each(|image| hash(args, image))
}

fn hash(args: &HashArgs, image: &Path) -> Result<Exit, Failure> {
    let source = Source::or_remote(image, None)?;
    let opened = args.source.open(&source)?;
    let disk = opened.disk();
    let reporter = args.progress.reporter("hashing");
    let digest = ops::sha256(&disk, &reporter).map_err(|error| Failure::from(error).about(&source.name))?;
    drop(reporter);
    let report = HashReport {
        image: source.name,
        sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        virtual_size: disk.size(),
        warnings: opened.warnings().iter().map(ToString::to_string).collect(),
    };
    output::report(args.report, NAME, &report)?;
    Ok(Exit::Ok)
}
