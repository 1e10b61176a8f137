//! What changes a tree of snapshots.

use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use vhd_core::chain::OpenOptions;
use vhd_core::ops::Progress;
use vhd_core::ops::verify::{self, VerifyOptions};
use vhd_core::snapshot::{self, Created, Recovered, SnapshotTree, Unsaved, Work};

use super::report::{AppliedReport, CreatedReport, DeletedReport, RenamedReport, RescannedReport};
use super::{ApplyArgs, CreateArgs, DeleteArgs, DiskArgs, RenameArgs, RescanArgs};
use crate::control::{self, Along};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, path_text};
use crate::progress::Reporter;
use crate::rate::{Limited, RateArgs};
use crate::{human, interrupt};

pub(super) const CREATE: &str = "snapshot create";
pub(super) const APPLY: &str = "snapshot apply";
pub(super) const REVERT: &str = "snapshot revert";
pub(super) const RENAME: &str = "snapshot rename";
pub(super) const DELETE: &str = "snapshot delete";
pub(super) const RESCAN: &str = "snapshot rescan";

pub(super) fn create(args: &CreateArgs) -> Result<Exit, Failure> {
    let created = match create_in_use(args)? {
        Some(created) => created,
        None => with_tree(&args.disk, |tree| Ok(tree.create(&args.name)?))?,
    };
    let digest = args.digest.then(|| record_digests(&args.disk, &created)).transpose()?;
    output::report(args.disk.report, CREATE, &CreatedReport::of(&created, digest))?;
    Ok(Exit::Ok)
}

/// Has the server take the snapshot that has the disk in use, if there is one.
fn create_in_use(args: &CreateArgs) -> Result<Option<Created>, Failure> {
    if args.offline {
        return Ok(None);
    }
    let taken = control::create_snapshot(&args.disk.disk, &args.name)?;
    Ok(taken.map(|(base, taken)| Created {
        snapshot: taken.snapshot,
        active: base.with_file_name(taken.active),
    }))
}

/// Records digests of the image that was frozen. The snapshot is there, whatever becomes of them.
fn record_digests(args: &DiskArgs, created: &Created) -> Result<u64, Failure> {
    let cancel = interrupt::flag_on_interrupt();
    let options = VerifyOptions {
        cancel: &cancel,
        threads: 0,
        fast: false,
    };
    // The new leaf may be in use.
    let opened = OpenOptions::new().open(&created.active.with_file_name(&created.snapshot.file.name))?;
    let reporter = args.progress.reporter("recording digests");
    let frozen = opened.layers().next();
    // What was recorded of it while it was the active file is history.
    let recorded = frozen.map(|frozen| verify::record(frozen, true, &options, &reporter));
    let about = format!("snapshot \"{}\" is taken, without digests", created.snapshot.name);
    let recorded = recorded
        .transpose()
        .map_err(|error| Failure::from(error).about(about))?;
    Ok(recorded.map_or(0, |report| report.record_bytes))
}

pub(super) fn apply(args: &ApplyArgs) -> Result<Exit, Failure> {
    let kept = args.name.clone().unwrap_or_else(|| automatic_name(&args.snapshot));
    let unsaved = match (args.discard_current, args.snapshot_first) {
        (true, _) => Unsaved::Discard,
        (_, true) => Unsaved::Snapshot(&kept),
        _ => Unsaved::Refuse,
    };
    let report = with_tree(&args.disk, |tree| {
        let applied = tree.apply(&args.snapshot, unsaved)?;
        Ok(AppliedReport::of(&tree.disk(), &applied))
    })?;
    output::report(args.disk.report, APPLY, &report)?;
    Ok(Exit::Ok)
}

pub(super) fn revert(args: &DiskArgs) -> Result<Exit, Failure> {
    let report = with_tree(args, |tree| {
        let applied = tree.revert()?;
        Ok(AppliedReport::of(&tree.disk(), &applied))
    })?;
    output::report(args.report, REVERT, &report)?;
    Ok(Exit::Ok)
}

pub(super) fn rename(args: &RenameArgs) -> Result<Exit, Failure> {
    let disk = with_tree(&args.disk, |tree| {
        tree.rename(&args.old, &args.new)?;
        Ok(tree.disk())
    })?;
    let report = RenamedReport {
        disk: path_text(&disk),
        old: args.old.clone(),
        new: args.new.clone(),
    };
    output::report(args.disk.report, RENAME, &report)?;
    Ok(Exit::Ok)
}

pub(super) fn delete(args: &DeleteArgs) -> Result<Exit, Failure> {
    let report = match delete_in_use(args)? {
        Some(report) => report,
        None => with_tree_at(&args.disk, args.rate, |tree| {
            let settled = tree.delete(&args.name, args.subtree)?;
            Ok(DeletedReport::of(tree, &args.name, &settled))
        })?,
    };
    output::report(args.disk.report, DELETE, &report)?;
    Ok(Exit::Ok)
}

/// Has the server delete the snapshot that has the disk in use, if there is one.
fn delete_in_use(args: &DeleteArgs) -> Result<Option<DeletedReport>, Failure> {
    if args.offline {
        return Ok(None);
    }
    let (cancel, reporter) = going_along(&args.disk);
    let along = Along {
        rate: args.rate.rate,
        progress: &reporter,
        cancel: &cancel,
    };
    let deleted = control::delete_snapshot(&args.disk.disk, &args.name, args.subtree, &along)?;
    Ok(deleted.map(|(base, deleted)| DeletedReport::in_use(&base, &args.name, deleted)))
}

pub(super) fn rescan(args: &RescanArgs) -> Result<Exit, Failure> {
    let (cancel, reporter) = going_along(&args.disk);
    let work = work(&cancel, &reporter);
    let (mut tree, found) = snapshot::rescan(&args.disk.disk, args.active.as_deref(), work)?;
    let settled = tree.settle()?;
    let report = RescannedReport::of(&tree, &found, &settled);
    drop(reporter);
    output::report(args.disk.report, RESCAN, &report)?;
    Ok(Exit::Ok)
}

/// Opens the tree, says what became of an interrupted command, and does the job.
fn with_tree<T>(args: &DiskArgs, job: impl FnOnce(&mut SnapshotTree<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
    with_tree_at(args, RateArgs { rate: None }, job)
}

/// The same, where files are merged at a rate.
fn with_tree_at<T>(
    args: &DiskArgs,
    rate: RateArgs,
    job: impl FnOnce(&mut SnapshotTree<'_>) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let (cancel, reporter) = going_along(args);
    let limited = Limited::new(&reporter, rate.rate, &cancel);
    let mut tree = SnapshotTree::open(&args.disk, work(&cancel, &limited))?;
    if let Some(recovered) = tree.recovered() {
        let (disk, what) = (args.disk.display(), recovery(recovered));
        output::warning(format_args!("{disk}: an interrupted command was found; {what}"));
    }
    job(&mut tree)
}

fn going_along(args: &DiskArgs) -> (std::sync::Arc<AtomicBool>, Reporter) {
    (interrupt::flag_on_interrupt(), args.progress.reporter("merging"))
}

fn work<'a>(cancel: &'a AtomicBool, progress: &'a dyn Progress) -> Work<'a> {
    Work {
        steps: &(),
        progress,
        cancel,
    }
}

fn recovery(recovered: &Recovered) -> &'static str {
    match recovered {
        Recovered::LeafRemoved => "the new file that it had made is removed, nothing else had changed",
        Recovered::FileRemoved => "the file that it had replaced is removed",
        Recovered::SnapshotKept => "the disk had gone on in the new file, and the snapshot is kept",
        Recovered::SnapshotUndone => "nothing had been written since, and the disk is as it was before",
        Recovered::Merged => "its merge is completed",
        _ => "it is brought to its end",
    }
}

/// A name that tells what it is, and that no other is likely to have.
fn automatic_name(applied: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = i64::try_from(now.as_secs())
        .ok()
        .and_then(human::unix_utc)
        .unwrap_or_default();
    let rest = snapshot::MAX_NAME - "before  ".len() - time.len();
    let applied: String = applied.chars().take(rest).collect();
    format!("before {applied} {time}")
}
