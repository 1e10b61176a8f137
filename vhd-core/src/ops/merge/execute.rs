//! Doing a merge, or going on with one.

use std::path::PathBuf;

use super::carry::Carrying;
use super::copy::{CopyMode, LayerCopy};
use super::finish::Finish;
use super::holder::Holder;
use super::journal::{Journal, Phase, Source};
use super::plan::{Range, hold_target, open_target};
use super::rest::Resting;
use super::switch::merge_leaf;
use super::{MergeError, MergeOptions, MergePlan, MergeReport, dependants};
use crate::chain::OpenedDisk;
use crate::device::{Layer, LiveDevice};
use crate::job::{Head, JobKind, sweep};
use crate::ops::Progress;

/// Does what the plan says: copies, points the children, removes the files. A merge that was told to stop, failed or
/// died goes on when the same request is planned again and done.
///
/// # Errors
/// [`MergeError`]. What was done before stays done, and the leaf reads the same.
pub fn merge(plan: &MergePlan, options: &MergeOptions<'_>, progress: &dyn Progress) -> Result<MergeReport, MergeError> {
    merge_for(plan, options, progress, &Holder::Alone)
}

/// The same for layers of a disk in use, by a plan of [`plan_in_use`](super::plan_in_use). Those below its leaf go on being
/// read, by it and by all who read it in its open files; if the leaf is based on what goes, requests are held for a moment
/// while it is pointed to the target. If the leaf itself is merged, the disk goes on in the target.
///
/// # Errors
/// Those of [`merge`]. `Storage` when another program reads a layer, or somebody in this process reads one by itself.
pub fn merge_in_use(
    plan: &MergePlan,
    options: &MergeOptions<'_>,
    progress: &dyn Progress,
    device: &LiveDevice,
) -> Result<MergeReport, MergeError> {
    let holder = Holder::InUse(device);
    if !plan.complete {
        holder.require_unread(plan.layers[1..].iter().map(|layer| &*layer.path))?;
    }
    match device.writes_to(plan.child()) {
        true => merge_leaf(plan, options, progress, device),
        false => merge_for(plan, options, progress, &holder),
    }
}

/// The same for whoever has the files.
pub(crate) fn merge_for(
    plan: &MergePlan,
    options: &MergeOptions<'_>,
    progress: &dyn Progress,
    holder: &Holder<'_>,
) -> Result<MergeReport, MergeError> {
    let options = &holder.with_threads(options);
    let resting = Resting::new(progress);
    let progress: &dyn Progress = match holder {
        Holder::Alone => progress,
        Holder::InUse(_) => &resting,
    };
    let mut report = MergeReport {
        target: plan.target().to_owned(),
        resumed: plan.resumed.is_some(),
        ..MergeReport::default()
    };
    sweep(JobKind::Merge, &Journal::path(plan.child()))?;
    if plan.complete {
        let Some(journal) = Journal::read(plan.child())? else {
            // It was done, but for what has been swept up now.
            return Ok(report);
        };
        Finish::new(plan, journal, Vec::new(), Vec::new(), holder).run(&mut report)?;
        return Ok(report);
    }
    check_writable(plan, holder)?;
    let merged = open_merged(plan)?;
    let carrying = Carrying::open(&plan.request, &plan.carried, plan.child(), &merged)?;
    let mut run = Run::begin(plan)?;
    // INV-22: what others would read otherwise is theirs, durably, before the target changes.
    let (carried, bytes) = carrying.take_over(&merged, options, progress)?;
    report.carried_bytes = bytes;
    if options.is_cancelled() && !carried.is_empty() {
        report.cancelled = true;
        return Ok(report);
    }
    let target_depth = u32::try_from(plan.sources().len()).unwrap_or(u32::MAX);
    let target_file = merged.identity_at_depth(target_depth);
    let sources = into_sources(plan, merged)?;
    let target = match run.writes_target() {
        true => hold_target(&plan.request.open, plan.target_known(), holder)?,
        false => open_target(&plan.request.open, plan.target_known())?,
    };
    // INV-34: its lock was given up in between.
    target.require_leaf(target_file)?;
    // It has not changed yet. Where it has, the markers have kept everybody else from relying on it since.
    if !matches!(plan.resumed, Some(Phase::Copying(_) | Phase::Finishing)) {
        dependants::refuse_newcomers(plan)?;
    }
    run.announce()?;
    progress.begin(run.work_bytes());
    let done = run.copy(&sources, &target, options, progress, &mut report)?;
    let closed = target.close();
    closed.map_err(|source| MergeError::Device {
        path: plan.target().to_owned(),
        source,
    })?;
    if !done {
        report.cancelled = true;
        return Ok(report);
    }
    run.journal.phase = Phase::Finishing;
    run.journal.renew()?;
    // INV-21: everything is in the target, durably, before the first child is pointed to it.
    run.journal.announce()?;
    // The locks of the layers are held up to here and until they are gone: nobody writes to one that goes.
    Finish::new(plan, run.journal, carried, sources, holder).run(&mut report)?;
    Ok(report)
}

/// The image that goes, over its whole chain, under the locks.
fn open_merged(plan: &MergePlan) -> Result<OpenedDisk, MergeError> {
    let opened = plan.request.open.clone().write(false).open(plan.child())?;
    let found = Range::of(&opened, &plan.request)?;
    found.check_sizes()?;
    if found.layers == plan.layers {
        return Ok(opened);
    }
    Err(MergeError::Changed {
        path: plan.child().to_owned(),
        what: "its chain changed since the merge was planned".to_owned(),
    })
}

/// The layers that go, under their locks. The rest of the chain is let go again: the target is to be written.
fn into_sources(plan: &MergePlan, merged: OpenedDisk) -> Result<Vec<Layer>, MergeError> {
    let device = merged.into_device().ok_or_else(|| MergeError::NoParent {
        path: plan.child().to_owned(),
    })?;
    let mut layers = device.into_layers();
    layers.truncate(plan.sources().len());
    Ok(layers)
}

/// Better now than after the copying.
fn check_writable(plan: &MergePlan, holder: &Holder<'_>) -> Result<(), MergeError> {
    // One that has everything may be in use by now.
    let target = (plan.resumed != Some(Phase::Finishing)).then(|| plan.target());
    let mut paths = plan.children.iter().map(PathBuf::as_path).chain(target);
    paths.try_for_each(|path| Ok(holder.check(path)?))
}

struct Run<'a> {
    plan: &'a MergePlan,
    paths: Vec<PathBuf>,
    journal: Journal,
    start: u64,
    mode: CopyMode,
}

impl<'a> Run<'a> {
    /// Finds out where a recorded merge goes on, or, if children are carried along, puts the record in its place.
    fn begin(plan: &'a MergePlan) -> Result<Self, MergeError> {
        let mut run = Self {
            plan,
            paths: plan.removed().map(PathBuf::from).collect(),
            journal: new_journal(plan),
            start: 0,
            mode: CopyMode::Write,
        };
        if let Some(mut recorded) = Journal::read(plan.child())? {
            if plan.resumed.is_none() || recorded.target.id != plan.target_known().id {
                return Err(recorded.unfinished());
            }
            run.resume(&recorded)?;
            recorded.children.clone_from(&run.journal.children);
            recorded.carried.clone_from(&run.journal.carried);
            recorded.announce()?;
            run.journal.head = recorded.head;
        } else if !plan.carried.is_empty() {
            run.journal.announce()?;
        }
        Ok(run)
    }

    /// A merge that is finishing stays so: children may have been pointed to the target.
    fn writes_target(&self) -> bool {
        self.mode != CopyMode::Verify && self.start < self.plan.summary.disk_bytes
    }

    /// Puts the record in its place that says from where on the target is about to change.
    fn announce(&mut self) -> Result<(), MergeError> {
        if self.writes_target() {
            self.journal.phase = Phase::Copying(self.start);
            self.journal.renew()?;
            // INV-20, INV-36: record and markers are durable before the target changes.
            self.journal.announce()?;
        }
        Ok(())
    }

    /// Where to go on: where the record says, or, if a layer was written to since or that can't be told, from the
    /// start with what is there already.
    fn resume(&mut self, recorded: &Journal) -> Result<(), MergeError> {
        let unchanged = recorded.sources_unchanged()?;
        (self.start, self.mode) = match recorded.phase {
            // The target is as it was.
            Phase::Carrying => (0, CopyMode::Write),
            Phase::Copying(done) if unchanged => (done, CopyMode::Write),
            Phase::Finishing if unchanged => (self.plan.summary.disk_bytes, CopyMode::Write),
            Phase::Copying(_) => (0, CopyMode::Compare),
            // INV-22: the target of a child that was pointed to it does not change any more.
            Phase::Finishing if self.some_child_points_to_target() => (0, CopyMode::Verify),
            Phase::Finishing => (0, CopyMode::Compare),
            // INV-77: what the layers hold is not the disk any more.
            Phase::Switched => return Err(recorded.unfinished()),
        };
        Ok(())
    }

    fn some_child_points_to_target(&self) -> bool {
        let target = self.plan.target_known().id;
        let mut parents = self.plan.children.iter().map(|child| dependants::parent_id(child));
        parents.any(|parent| parent.is_ok_and(|parent| parent == Some(target)))
    }

    fn work_bytes(&self) -> u64 {
        if self.start == 0 {
            self.plan.summary.held_bytes
        } else {
            self.plan.summary.remaining_bytes
        }
    }

    /// Copies batch by batch, each durable before the record says so. `false` if it was told to stop before the end.
    fn copy(
        &mut self,
        sources: &[Layer],
        target: &OpenedDisk,
        options: &MergeOptions<'_>,
        progress: &dyn Progress,
        report: &mut MergeReport,
    ) -> Result<bool, MergeError> {
        let disk = target.disk();
        let copy = LayerCopy {
            sources,
            paths: &self.paths,
            target: &disk,
            target_path: self.plan.target(),
            mode: self.mode,
            options,
            progress,
        };
        let journal = &mut self.journal;
        let (end, copied) = copy.run(self.start, &mut |at| {
            journal.phase = Phase::Copying(at);
            journal.renew()?;
            journal.write()
        })?;
        (report.read_bytes, report.copied_bytes, report.zeroed_bytes) = (copied.read, copied.written, copied.zeroed);
        Ok(end >= disk.size())
    }
}

pub(super) fn new_journal(plan: &MergePlan) -> Journal {
    let source = |known: &super::Known| Source {
        known: known.clone(),
        fingerprint: None,
    };
    Journal {
        target: plan.target_known().clone(),
        layers: plan.sources().iter().map(source).collect(),
        children: plan.children.clone(),
        carried: plan.carried.iter().map(|child| child.path.clone()).collect(),
        phase: Phase::Carrying,
        boot: None,
        head: Head::default(),
    }
}
