//! `vhd vm disk`: disks of a machine that runs.

use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::disk_spec::DiskSpec;
use super::manage::NamedArgs;
use super::worker::{Answer, Client, Job};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::require_file;
use crate::size::parse_disk_size;

/// How often it is looked whether the guest has let go of a disk.
const LOOK: Duration = Duration::from_millis(50);

const EXAMPLES: &str = "\
Examples:
  vhd vm disk add web data.vhd,id=data
  vhd vm disk remove web data
  vhd vm disk resize web data 64G                   a disk that was added with ,resizable";

/// Arguments of `vhd vm disk`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DiskArgs {
    #[command(subcommand)]
    job: DiskJob,
}

#[derive(Debug, Subcommand)]
enum DiskJob {
    /// Give a machine another disk
    Add(AddArgs),
    /// Ask the guest to let go of a disk, and take it away
    Remove(RemoveArgs),
    /// Give a disk of a machine another size
    Resize(ResizeArgs),
}

#[derive(Args, Debug)]
struct AddArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// As for --disk of `vhd vm run`
    #[arg(value_name = "PATH[,ro][,snapshot][,resizable][,id=ID]")]
    disk: DiskSpec,
}

#[derive(Args, Debug)]
struct RemoveArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// The disk, by its serial number in the guest, as `vhd vm info` shows it
    #[arg(value_name = "ID")]
    id: String,
    /// How long the guest is given to let go of it
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

#[derive(Args, Debug)]
struct ResizeArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// The disk, by its serial number in the guest, as `vhd vm info` shows it
    #[arg(value_name = "ID")]
    id: String,
    /// The size; of what is cut off, everything must read zero
    #[arg(value_name = "SIZE", value_parser = parse_disk_size)]
    size: u64,
    /// Let it become smaller
    #[arg(long)]
    shrink: bool,
}

/// The name of the command.
pub(super) fn name(args: &DiskArgs) -> &'static str {
    match &args.job {
        DiskJob::Add(_) => "vm disk add",
        DiskJob::Remove(_) => "vm disk remove",
        DiskJob::Resize(_) => "vm disk resize",
    }
}

pub(super) fn run(args: &DiskArgs) -> Result<Exit, Failure> {
    match &args.job {
        DiskJob::Add(args) => add(args),
        DiskJob::Remove(args) => remove(args),
        DiskJob::Resize(args) => resize(args),
    }
}

fn add(args: &AddArgs) -> Result<Exit, Failure> {
    require_file(&args.disk.path(), "used")?;
    let disk = args.disk.absolute()?;
    Client::find(&args.named.name)?.add_disk(disk)?;
    Ok(Exit::Ok)
}

fn remove(args: &RemoveArgs) -> Result<Exit, Failure> {
    let client = Client::find(&args.named.name)?;
    let until = Instant::now() + Duration::from_secs(args.timeout);
    while let Answer::Waits = client.ask(Job::DiskRemove { id: args.id.clone() })? {
        if Instant::now() >= until {
            let message = format!(
                "the guest of {} has not let go of the disk {} within {} s; it was asked to, and may still do it: then the \
                 command succeeds",
                args.named.name, args.id, args.timeout
            );
            return Err(Failure::new(Kind::DiskNotReleased, message));
        }
        thread::sleep(LOOK);
    }
    Ok(Exit::Ok)
}

fn resize(args: &ResizeArgs) -> Result<Exit, Failure> {
    let (id, size, shrink) = (args.id.clone(), args.size, args.shrink);
    Client::find(&args.named.name)?.ask(Job::DiskResize { id, size, shrink })?;
    Ok(Exit::Ok)
}
