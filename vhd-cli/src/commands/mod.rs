//! One file per command. Each has its arguments, its report and `run`.

pub(crate) mod azure;
pub(crate) mod cat;
pub(crate) mod check;
pub(crate) mod compact;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod cp;
pub(crate) mod create;
mod destination;
pub(crate) mod diff;
pub(crate) mod doctor;
pub(crate) mod export_delta;
pub(crate) mod hash;
pub(crate) mod import_delta;
pub(crate) mod info;
pub(crate) mod ls;
pub(crate) mod man;
pub(crate) mod map;
pub(crate) mod measure;
pub(crate) mod merge;
pub(crate) mod mount;
pub(crate) mod nbd;
pub(crate) mod new_id;
mod pair;
mod parent_time;
mod ranges;
pub(crate) mod repair;
pub(crate) mod reparent;
pub(crate) mod report;
pub(crate) mod resize;
mod several;
pub(crate) mod snapshot;
mod sparse;
mod stem;
pub(crate) mod tour;
pub(crate) mod tree;
pub(crate) mod verify;
#[cfg(target_arch = "x86_64")]
pub(crate) mod vm;
pub(crate) mod volume;

use vhd_core::ErrorKind;

use crate::cli::Command;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

/// Runs a command and says on standard error, and as JSON where asked for, why it stopped.
pub(crate) fn run(command: &Command) -> Exit {
    dispatch(command).unwrap_or_else(|failure| {
        let failure = explain_use(command, failure);
        let (name, json_to_stdout) = identity(command);
        output::failure(json_to_stdout, name, &failure);
        failure.exit()
    })
}

fn dispatch(command: &Command) -> Result<Exit, Failure> {
    match command {
        Command::Create(args) => create::run(args),
        Command::Info(args) => info::run(args),
        Command::Map(args) => map::run(args),
        Command::Check(args) => check::run(args),
        Command::Hash(args) => hash::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Compare(args) => compare::run(args),
        Command::Diff(args) => diff::run(args),
        Command::ExportDelta(args) => export_delta::run(args),
        Command::ImportDelta(args) => import_delta::run(args),
        Command::Azure(args) => azure::run(args),
        Command::Tree(args) => tree::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Report(args) => report::run(args),
        Command::Snapshot(args) => snapshot::run(args),
        Command::Ls(args) => ls::run(args),
        Command::Cat(args) => cat::run(args),
        Command::Cp(args) => cp::run(args),
        Command::Compact(args) => compact::run(args),
        Command::Measure(args) => measure::run(args),
        Command::Nbd(args) => nbd::run(args),
        Command::Mount(args) => mount::run(args),
        Command::Umount(args) => mount::run_umount(args),
        #[cfg(target_arch = "x86_64")]
        Command::Vm(args) => vm::run(args),
        Command::Volume(args) => volume::run(args),
        Command::Resize(args) => resize::run(args),
        Command::Reparent(args) => reparent::run(args),
        Command::NewId(args) => new_id::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Merge(args) => merge::run(args),
        Command::Repair(args) => repair::run(args),
        Command::Tour(args) => tour::run(args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    }
}

/// Says what to do about a disk that somebody uses, to who wanted to change it.
fn explain_use(command: &Command, failure: Failure) -> Failure {
    let changes = matches!(
        command,
        Command::Snapshot(_)
            | Command::Compact(_)
            | Command::Resize(_)
            | Command::Reparent(_)
            | Command::NewId(_)
            | Command::Merge(_)
            | Command::Repair(_)
            | Command::Azure(_)
            | Command::ImportDelta(_)
    );
    match failure.kind() {
        Some(Kind::Library(ErrorKind::Locked)) if changes => failure.with_advice(
            "end that program first (on a disk in use, snapshot create and delete, merge and resize are done by the \
             program that has it, if it listens)",
        ),
        _ => failure,
    }
}

/// The command's name, and whether a failure of it is told as JSON on standard output.
fn identity(command: &Command) -> (&'static str, bool) {
    match command {
        Command::Create(args) => (create::NAME, args.report.json),
        Command::Info(args) => (info::NAME, args.report.json),
        Command::Map(args) => (map::NAME, args.report.json),
        Command::Check(args) => (check::NAME, args.report.json),
        Command::Hash(args) => (hash::NAME, args.report.json),
        Command::Convert(args) => (convert::NAME, args.report.json && !args.to_stdout()),
        Command::Compare(args) => (compare::NAME, args.report.json),
        Command::Diff(args) => (diff::NAME, args.report.json),
        Command::ExportDelta(args) => (export_delta::NAME, args.report.json && !args.to_stdout()),
        Command::ImportDelta(args) => (import_delta::NAME, args.report.json),
        Command::Azure(args) => azure::identity(args),
        Command::Tree(args) => (tree::NAME, args.report.json),
        Command::Doctor(args) => (doctor::NAME, args.report.json),
        Command::Report(args) => (report::NAME, args.report.json && !args.to_stdout()),
        Command::Snapshot(args) => snapshot::identity(args),
        Command::Ls(args) => (ls::NAME, args.report.json),
        Command::Cat(_) => (cat::NAME, false),
        Command::Cp(args) => (cp::NAME, args.report.json),
        Command::Compact(args) => (compact::NAME, args.report.json),
        Command::Measure(args) => (measure::NAME, args.report.json),
        Command::Nbd(_) => (nbd::NAME, false),
        Command::Mount(_) => ("mount", false),
        Command::Umount(_) => ("umount", false),
        #[cfg(target_arch = "x86_64")]
        Command::Vm(args) => vm::identity(args),
        Command::Volume(args) => volume::identity(args),
        Command::Resize(args) => (resize::NAME, args.report.json),
        Command::Reparent(args) => (reparent::NAME, args.report.json),
        Command::NewId(args) => (new_id::NAME, args.report.json),
        Command::Verify(args) => (verify::NAME, args.report.json),
        Command::Merge(args) => (merge::NAME, args.report.json),
        Command::Repair(args) => (repair::NAME, args.report.json),
        Command::Tour(_) => ("tour", false),
        Command::Completions(_) => ("completions", false),
        Command::Man(_) => ("man", false),
    }
}
