//! `vhd vm`: virtual machines with their disks in images. On x86-64 alone.

mod boot;
mod console;
mod disks;
mod run;

use clap::{Args, Subcommand};

use crate::exit::Exit;
use crate::failure::Failure;

pub(crate) const NAME: &str = "vm run";

const EXAMPLES: &str = "\
Examples:
  vhd vm run disk.avhd
  vhd vm run disk.avhd --kernel vmlinux --append 'root=/dev/vda rw'
  vhd vm run --help";

/// Arguments of `vhd vm`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VmArgs {
    #[command(subcommand)]
    job: Job,
}

/// What is done with machines.
#[derive(Debug, Subcommand)]
enum Job {
    /// Run a Linux guest until it powers off; its serial console is standard input and output
    Run(run::RunArgs),
}

pub(crate) fn run(args: &VmArgs) -> Result<Exit, Failure> {
    match &args.job {
        Job::Run(args) => run::run(args),
    }
}
