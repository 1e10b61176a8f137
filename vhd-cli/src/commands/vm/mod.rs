//! `vhd vm`: virtual machines with their disks in images. On x86-64 alone.

mod attend;
mod boot;
mod console;
mod disk_spec;
mod disks;
mod equip;
mod guest;
mod manage;
mod open_disk;
mod passed;
mod processors;
mod reach;
mod record;
mod run;
mod save;
mod snapshot;
mod worker;

use clap::{Args, Subcommand};

use crate::exit::Exit;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  vhd vm run disk.avhd
  vhd vm run disk.avhd --name web </dev/null >web.console &
  vhd vm list
  vhd vm console web
  vhd vm save web web.saved && vhd vm restore web.saved
  vhd vm snapshot create web before-update
  vhd vm stop web
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
    /// List the machines of this user that run
    List(manage::ListArgs),
    /// Show a machine and its disks
    Info(manage::InfoArgs),
    /// Hold a machine where it is
    Pause(manage::NamedArgs),
    /// Let a machine go on
    Resume(manage::NamedArgs),
    /// Press the power button of a machine and wait until it has ended
    Stop(manage::StopArgs),
    /// Write a running machine to a file and end it
    Save(save::SaveArgs),
    /// Let a machine that was saved go on
    Restore(save::RestoreArgs),
    /// Keep states of a machine, memory and disks, and go back to them
    Snapshot(snapshot::SnapshotArgs),
    /// Add, remove and resize disks of a machine that runs
    Disk(equip::DiskArgs),
    /// Describe and compare what guests are told of processors
    Cpu(processors::CpuArgs),
    /// Attach to the console of a machine
    Console(manage::NamedArgs),
}

/// The command's name, and whether a failure of it is told as JSON on standard output.
pub(crate) fn identity(args: &VmArgs) -> (&'static str, bool) {
    match &args.job {
        Job::Run(_) => ("vm run", false),
        Job::List(args) => ("vm list", args.report.json),
        Job::Info(args) => ("vm info", args.report.json),
        Job::Pause(_) => ("vm pause", false),
        Job::Resume(_) => ("vm resume", false),
        Job::Stop(_) => ("vm stop", false),
        Job::Console(_) => ("vm console", false),
        Job::Disk(args) => (equip::name(args), false),
        Job::Cpu(args) => processors::identity(args),
        Job::Snapshot(args) => snapshot::identity(args),
        Job::Save(_) => ("vm save", false),
        Job::Restore(_) => ("vm restore", false),
    }
}

pub(crate) fn run(args: &VmArgs) -> Result<Exit, Failure> {
    match &args.job {
        Job::Run(args) => run::run(args),
        Job::List(args) => manage::list(args),
        Job::Info(args) => manage::info(args),
        Job::Pause(args) => manage::pause(args),
        Job::Resume(args) => manage::resume(args),
        Job::Stop(args) => manage::stop(args),
        Job::Console(args) => manage::console(args),
        Job::Disk(args) => equip::run(args),
        Job::Cpu(args) => processors::run(args),
        Job::Snapshot(args) => snapshot::run(args),
        Job::Save(args) => save::save(args),
        Job::Restore(args) => save::restore(args),
    }
}
