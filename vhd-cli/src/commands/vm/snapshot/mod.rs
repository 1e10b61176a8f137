//! `vhd vm snapshot`: states of a machine, its memory and its disks, under names.
//!
//! ```text
//!   store.rs     the directory: manifest, files of memory     manifest.rs  names, parts, the operation in progress
//!   create.rs    apply.rs    delete.rs    recover.rs          parts.rs     the disks of a snapshot
//!   desk.rs      who may, of those that ask a machine         report.rs    what is told
//! ```
//!
//! The process of a machine that runs does what is asked for; without one, the command does it itself.

mod apply;
mod create;
mod delete;
mod desk;
mod manifest;
mod parts;
mod recover;
mod report;
mod store;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, Subcommand, ValueHint};

use super::attend::Attended;
use super::manage::NamedArgs;
use super::run::SandboxArgs;
use super::worker::{Answer, Client, Job, MachineName, is_alive, take_name};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
pub(crate) use apply::Kept;
pub(crate) use create::Taken;
pub(crate) use desk::{Desk, Turn};
pub(crate) use parts::LivePart;
pub(crate) use recover::recover_before_start;
use report::{CreatedReport, DeletedReport, ListReport, automatic_name, unsaved};
pub(crate) use store::{Store, hold_directory, leave_directory, records, sweep_directories};

const EXAMPLES: &str = "\
Examples:
  vhd vm snapshot create web before-update
  vhd vm snapshot list web
  vhd vm snapshot apply web before-update --discard-current
  vhd vm snapshot delete web before-update

A snapshot has the guest's memory and its disks as they are at one moment; the guest is held while they are written. `apply` ends \
the guest that runs, puts the disks back, and the guest of the snapshot goes on in the same process. Of a machine that does not \
run, `apply` is the process in which it goes on, as `vhd vm restore` is. The disks' parts are snapshots of the disks under the same \
name (`vhd snapshot list DISK`). See docs/vm.md.";

/// Arguments of `vhd vm snapshot`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    job: SnapshotJob,
}

#[derive(Debug, Subcommand)]
enum SnapshotJob {
    /// Keep the state of a machine that runs: its memory and all of its disks
    Create(CreateArgs),
    /// Go back to a snapshot: the guest goes on from there
    Apply(ApplyArgs),
    /// Delete a snapshot; what others and the present state have stays the same
    Delete(DeleteArgs),
    /// List the snapshots of a machine, the oldest first
    List(ListArgs),
}

#[derive(Args, Debug)]
struct CreateArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// What it is called: no slash, no @, at most 100 characters, and not "now" [default: the time]
    #[arg(value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Args, Debug)]
struct ApplyArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    /// Lose the present state: the memory of a guest that runs, and what was written since the last snapshot
    #[arg(long, conflicts_with = "snapshot_first")]
    discard_current: bool,
    /// Keep the present state as a snapshot first
    #[arg(long)]
    snapshot_first: bool,
    /// What the snapshot that --snapshot-first takes is called [default: the time]
    #[arg(long = "name", requires = "snapshot_first", value_name = "SNAPSHOT")]
    first: Option<String>,
    /// As of `vhd vm restore`, for a machine that does not run
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    events: Option<PathBuf>,
    #[command(flatten)]
    sandbox: SandboxArgs,
}

#[derive(Args, Debug)]
struct DeleteArgs {
    #[command(flatten)]
    named: NamedArgs,
    /// The snapshot
    #[arg(value_name = "SNAPSHOT")]
    snapshot: String,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Args, Debug)]
struct ListArgs {
    #[command(flatten)]
    named: NamedArgs,
    #[command(flatten)]
    report: ReportArgs,
}

const CREATE: &str = "vm snapshot create";
const DELETE: &str = "vm snapshot delete";
const LIST: &str = "vm snapshot list";

/// The name of the command, and whether a failure of it is told as JSON.
pub(super) fn identity(args: &SnapshotArgs) -> (&'static str, bool) {
    match &args.job {
        SnapshotJob::Create(args) => (CREATE, args.report.json),
        SnapshotJob::Apply(_) => ("vm snapshot apply", false),
        SnapshotJob::Delete(args) => (DELETE, args.report.json),
        SnapshotJob::List(args) => (LIST, args.report.json),
    }
}

pub(super) fn run(args: &SnapshotArgs) -> Result<Exit, Failure> {
    match &args.job {
        SnapshotJob::Create(args) => create(args),
        SnapshotJob::Apply(args) => apply(args),
        SnapshotJob::Delete(args) => delete(args),
        SnapshotJob::List(args) => list(args),
    }
}

fn create(args: &CreateArgs) -> Result<Exit, Failure> {
    let client = Client::find(&args.named.name)?;
    let name = args.snapshot.clone().unwrap_or_else(automatic_name);
    let answer = client.ask(Job::SnapshotCreate { name })?;
    let taken = match answer {
        Answer::Taken(taken) => taken,
        _ => return Err(client.misunderstood()),
    };
    output::report(args.report, CREATE, &CreatedReport::new(&args.named.name, taken))?;
    Ok(Exit::Ok)
}

fn apply(args: &ApplyArgs) -> Result<Exit, Failure> {
    let (machine, name) = (&args.named.name, &args.snapshot);
    if !is_alive(machine) {
        return apply_here(args);
    }
    let first = match (args.discard_current, args.snapshot_first) {
        (false, false) => return Err(unsaved(machine)),
        (_, true) => Some(args.first.clone().unwrap_or_else(automatic_name)),
        (true, false) => None,
    };
    let name = name.clone();
    Client::find(machine)?.ask(Job::SnapshotApply { name, first })?;
    Ok(Exit::Ok)
}

/// Goes back to a snapshot of a machine that does not run, and runs it.
fn apply_here(args: &ApplyArgs) -> Result<Exit, Failure> {
    let machine = &args.named.name;
    if args.snapshot_first {
        let message = format!(
            "the machine {machine} does not run, so there is no state of it to keep; `vhd snapshot create` keeps the state of a disk"
        );
        return Err(Failure::new(Kind::MachineCannot, message));
    }
    require_any(machine)?;
    let attended = Attended::new(Some(machine), args.events.as_deref(), &args.sandbox)?;
    attended.run(|attended| {
        let mut store = Store::open(machine, Arc::default())?;
        let kept = store.look_at(&args.snapshot, &[])?;
        if !args.discard_current {
            store.require_saved(&kept)?;
        }
        attended.go_on_from(&mut store, kept)
    })
}

fn delete(args: &DeleteArgs) -> Result<Exit, Failure> {
    let (machine, name) = (&args.named.name, args.snapshot.clone());
    let waiting = if is_alive(machine) {
        let client = Client::find(machine)?;
        match client.ask(Job::SnapshotDelete { name })? {
            Answer::Deleted(waiting) => waiting,
            _ => return Err(client.misunderstood()),
        }
    } else {
        require_any(machine)?;
        let _claim = take_name(machine.clone())?;
        let mut store = Store::open(machine, crate::interrupt::flag_on_interrupt())?;
        store.recover_loudly(&[])?;
        store.delete(&name, &[])?
    };
    output::report(
        args.report,
        DELETE,
        &DeletedReport::new(machine, &args.snapshot, waiting),
    )?;
    Ok(Exit::Ok)
}

fn list(args: &ListArgs) -> Result<Exit, Failure> {
    let machine = &args.named.name;
    if !is_alive(machine) {
        require_any(machine)?;
        // One that has begun meanwhile has seen to it.
        if let Ok(_claim) = take_name(machine.clone()) {
            Store::open(machine, crate::interrupt::flag_on_interrupt())?.recover_loudly(&[])?;
        }
    }
    let manifest = store::read(machine)?.unwrap_or_default();
    output::report(args.report, LIST, &ListReport::new(machine, &manifest))?;
    Ok(Exit::Ok)
}

/// Refuses a name that no machine has that runs, or has snapshots.
fn require_any(machine: &MachineName) -> Result<(), Failure> {
    if store::read(machine)?.is_some() {
        return Ok(());
    }
    let message = format!(
        "there is no machine {machine} of this user that runs or has snapshots; `vhd vm list` shows those that run"
    );
    Err(Failure::new(Kind::NoSuchMachine, message))
}
