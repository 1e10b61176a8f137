//! `vhd azure`: images for Azure.

mod check;
mod prepare;

use clap::{Args, Subcommand};

use crate::exit::Exit;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  vhd azure prepare disk.vhd upload.vhd
  vhd azure check upload.vhd && echo fine";

/// Arguments of `vhd azure`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct AzureArgs {
    #[command(subcommand)]
    job: Job,
}

/// What is done for Azure.
#[derive(Debug, Subcommand)]
enum Job {
    /// Write a disk as a fixed image of whole MiB, as Azure takes it, and verify it
    Prepare(prepare::PrepareArgs),
    /// Check an image against each of Azure's rules; changes nothing
    Check(check::CheckArgs),
}

pub(crate) fn run(args: &AzureArgs) -> Result<Exit, Failure> {
    match &args.job {
        Job::Prepare(args) => prepare::run(args),
        Job::Check(args) => check::run(args),
    }
}

/// The command's name, and whether a failure of it is told as JSON.
pub(crate) fn identity(args: &AzureArgs) -> (&'static str, bool) {
    match &args.job {
        Job::Prepare(args) => (prepare::NAME, args.report.json),
        Job::Check(args) => (check::NAME, args.report.json),
    }
}
