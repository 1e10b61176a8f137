//! `vhd snapshot`: the snapshots of a disk.

mod change;
mod draw;
mod report;
mod show;
mod transfer;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::ReportArgs;
use crate::progress::ProgressArgs;
use crate::rate::RateArgs;

const EXAMPLES: &str = "\
Examples:
  vhd snapshot create vm.vhd --name before-update
  vhd snapshot tree vm.vhd
  vhd snapshot apply vm.vhd before-update --snapshot-first --name after-update
  vhd hash vm.vhd@before-update
  vhd snapshot delete vm.vhd before-update

DISK is the base image or any other file of the disk. A snapshot freezes the file that was written to and makes a child \
of it, which is written to from then on: `vhd snapshot list` says which file a guest must use, and DISK@now reads it. \
Names and the file that is written to are in a small document beside the base, DISK.snapshots; `rescan` makes it anew \
from the images. `create` and `delete` work on a disk that `vhd nbd`, `vhd mount --rw` or `vhd vm run` has in use, too: that program \
goes on in the new file, and merges the files of deleted snapshots while the disk is in use. Each command first brings an interrupted one to its end. A deleted snapshot's file stays until nothing \
needs it: see docs/snapshots.md for what happens when.";

/// Arguments of `vhd snapshot`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    job: Job,
}

/// What is done with snapshots.
#[derive(Debug, Subcommand)]
enum Job {
    /// Keep the present state under a name; a new file is written to from then on
    Create(CreateArgs),
    /// List the snapshots, the oldest first
    List(ShowArgs),
    /// Draw the snapshots, each below the one that it was made from
    Tree(ShowArgs),
    /// Make the state of a snapshot the present one
    Apply(ApplyArgs),
    /// Go back to the snapshot that the present state was made from, and lose what was written since
    Revert(DiskArgs),
    /// Give a snapshot another name
    Rename(RenameArgs),
    /// Delete a snapshot; what all others and the present state read stays the same
    Delete(DeleteArgs),
    /// Copy a snapshot and what it is based on into a directory, as a disk of its own
    Export(ExportArgs),
    /// Copy the one disk with snapshots in a directory into another directory
    Import(ImportArgs),
    /// Make the document with names and tree anew from the images
    Rescan(RescanArgs),
}

/// A disk that is changed.
#[derive(Args, Debug)]
struct DiskArgs {
    /// The base image, or any other file of the disk
    disk: PathBuf,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Args, Debug)]
struct ShowArgs {
    /// The base image, or any other file of the disk
    disk: PathBuf,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Args, Debug)]
struct CreateArgs {
    #[command(flatten)]
    disk: DiskArgs,
    /// What it is called: no slash, no @, at most 100 characters, and not "now"
    #[arg(long)]
    name: String,
    /// Record digests of the frozen file, by which `vhd verify` notices if it is changed
    #[arg(long)]
    digest: bool,
    /// Do not ask a program that has the disk in use: refuse then
    #[arg(long)]
    offline: bool,
}

#[derive(Args, Debug)]
struct ApplyArgs {
    #[command(flatten)]
    disk: DiskArgs,
    /// The snapshot
    #[arg(value_name = "NAME")]
    snapshot: String,
    /// Lose what was written since the last snapshot
    #[arg(long, conflicts_with = "snapshot_first")]
    discard_current: bool,
    /// Keep the present state as a snapshot first
    #[arg(long)]
    snapshot_first: bool,
    /// What the snapshot that --snapshot-first takes is called [default: before NAME, with the time]
    #[arg(long, requires = "snapshot_first", value_name = "NAME")]
    name: Option<String>,
}

#[derive(Args, Debug)]
struct RenameArgs {
    #[command(flatten)]
    disk: DiskArgs,
    /// The name that it has
    old: String,
    /// The name that it gets
    new: String,
}

#[derive(Args, Debug)]
struct DeleteArgs {
    #[command(flatten)]
    disk: DiskArgs,
    /// The snapshot
    name: String,
    /// Delete all snapshots made from it too
    #[arg(long)]
    subtree: bool,
    /// Do not ask a program that has the disk in use: what can't be done beside it then waits
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    rate: RateArgs,
}

#[derive(Args, Debug)]
struct RescanArgs {
    #[command(flatten)]
    disk: DiskArgs,
    /// The file that is written to, where there are several leaves and none is known to be it
    #[arg(long, value_name = "FILE")]
    active: Option<PathBuf>,
}

#[derive(Args, Debug)]
struct ExportArgs {
    #[command(flatten)]
    disk: DiskArgs,
    /// The snapshot
    #[arg(value_name = "NAME")]
    snapshot: String,
    /// The directory that the files go into; it is created if it is not there
    dir: PathBuf,
}

#[derive(Args, Debug)]
struct ImportArgs {
    /// The directory with the files
    dir: PathBuf,
    /// The directory that they are copied into; it is created if it is not there
    dest: PathBuf,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    report: ReportArgs,
}

pub(crate) fn run(args: &SnapshotArgs) -> Result<Exit, Failure> {
    match &args.job {
        Job::Create(args) => change::create(args),
        Job::List(args) => show::list(args),
        Job::Tree(args) => show::tree(args),
        Job::Apply(args) => change::apply(args),
        Job::Revert(args) => change::revert(args),
        Job::Rename(args) => change::rename(args),
        Job::Delete(args) => change::delete(args),
        Job::Rescan(args) => change::rescan(args),
        Job::Export(args) => transfer::export(args),
        Job::Import(args) => transfer::import(args),
    }
}

/// The command's name, and whether a failure of it is told as JSON.
pub(crate) fn identity(args: &SnapshotArgs) -> (&'static str, bool) {
    match &args.job {
        Job::Create(args) => (change::CREATE, args.disk.report.json),
        Job::List(args) => (show::LIST, args.report.json),
        Job::Tree(args) => (show::TREE, args.report.json),
        Job::Apply(args) => (change::APPLY, args.disk.report.json),
        Job::Revert(args) => (change::REVERT, args.report.json),
        Job::Rename(args) => (change::RENAME, args.disk.report.json),
        Job::Delete(args) => (change::DELETE, args.disk.report.json),
        Job::Rescan(args) => (change::RESCAN, args.disk.report.json),
        Job::Export(args) => (transfer::EXPORT, args.disk.report.json),
        Job::Import(args) => (transfer::IMPORT, args.report.json),
    }
}
