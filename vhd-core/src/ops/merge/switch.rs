//! The leaf of a disk in use, and layers below it, are merged, and the disk goes on in the target.
//!
//! ```text
//!   announce    record and markers, durable
//!   copy        device/merging.rs, while requests go on
//!   switch      the target becomes the leaf: in memory
//!   commit      both files are durable, the record says that the disk has gone on in the target: a part of the next flush
//!   remove      the files of the layers go, the leaf first; then the markers and the record
//! ```
//!
//! Until the commit the leaf is the disk, for whoever opens it after a crash, and the target is half merged. From then on the
//! target is, and what is left can be done by the record alone.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::execute::new_journal;
use super::journal::{Journal, Phase};
use super::leaf::{LeafTarget, not_committed};
use super::{MergeError, MergeOptions, MergePlan, MergeReport, dependants};
use crate::device::{
    BlockDevice as _, Commit, DeviceError, Layer, LayeredDevice, LeafMergeEnd, LiveDevice, wait_until_closed,
};
use crate::job::{JobKind, sweep};
use crate::ops::Progress;
use crate::ops::verify::record_path;
use crate::storage::{FileIdentity, remove_file};

/// Does what a plan for the leaf says, or goes on with it: from the start, since the leaf has been written to.
///
/// # Errors
/// [`MergeError`]. The disk goes on, in the leaf or in the target.
pub(super) fn merge_leaf(
    plan: &MergePlan,
    options: &MergeOptions<'_>,
    progress: &dyn Progress,
    device: &LiveDevice,
) -> Result<MergeReport, MergeError> {
    sweep(JobKind::Merge, &Journal::path(plan.child()))?;
    let present = device.present();
    let sources = sources(plan, &present)?;
    present.settle().map_err(|source| failed(plan, source))?;
    let target = LeafTarget::open(plan.target(), &present, sources.len())?;
    let former = (0..=sources.len()).filter_map(|depth| present.shared_image(depth));
    let former: Vec<_> = former.map(Arc::downgrade).collect();
    drop(present);
    let mut switching = Switching {
        plan,
        device,
        journal: new_journal(plan),
        progress,
        report: MergeReport {
            target: plan.target().to_owned(),
            resumed: plan.resumed.is_some(),
            ..MergeReport::default()
        },
    };
    match switching.run(&target, options.cancel) {
        Ok(true) => {
            switching.remove(&sources)?;
            // The space of the files is freed, which takes its time, before the command ends.
            drop(sources);
            wait_until_closed(&former);
            switching.close()
        }
        Ok(false) => {
            target.close();
            switching.report.cancelled = true;
            Ok(switching.report)
        }
        Err(error) => {
            target.close();
            Err(error)
        }
    }
}

/// The layers of the disk that the plan is about. They are not let go before their files are gone: nobody else gets hold of one.
fn sources(plan: &MergePlan, present: &LayeredDevice) -> Result<Vec<Layer>, MergeError> {
    let found = present.layers().iter().map(Layer::unique_id);
    if found
        .take(plan.layers.len())
        .eq(plan.layers.iter().map(|layer| layer.id))
    {
        return Ok(present.layers()[..plan.sources().len()].to_vec());
    }
    Err(MergeError::Changed {
        path: plan.child().to_owned(),
        what: "the disk in use has other layers than the merge was planned for".to_owned(),
    })
}

fn failed(plan: &MergePlan, source: DeviceError) -> MergeError {
    MergeError::Device {
        path: plan.target().to_owned(),
        source,
    }
}

struct Switching<'a> {
    plan: &'a MergePlan,
    device: &'a LiveDevice,
    journal: Journal,
    progress: &'a dyn Progress,
    report: MergeReport,
}

impl Switching<'_> {
    /// Merges the layers, up to where it is known that the disk goes on in the target; `false` if it was told to stop before.
    fn run(&mut self, target: &LeafTarget, cancel: &AtomicBool) -> Result<bool, MergeError> {
        self.announce()?;
        let merged = target.merge(self.device, self.progress, cancel, self.commit());
        let merged = merged.map_err(|source| failed(self.plan, source))?;
        (self.report.copied_bytes, self.report.zeroed_bytes) = (merged.copied.written, merged.copied.zeroed);
        self.report.read_bytes = merged.copied.written + merged.copied.zeroed;
        match merged.end {
            LeafMergeEnd::Switched(_) => {}
            LeafMergeEnd::Cancelled => return Ok(false),
            LeafMergeEnd::Overtaken => {
                return Err(MergeError::Changed {
                    path: self.plan.child().to_owned(),
                    what: "the disk has gone on in another file".to_owned(),
                });
            }
        }
        self.progress.step("switched");
        self.device.flush().map_err(|source| failed(self.plan, source))?;
        self.progress.step("committed");
        Ok(true)
    }

    fn announce(&mut self) -> Result<(), MergeError> {
        if let Some(recorded) = Journal::read(self.plan.child())?
            && (self.plan.resumed.is_none()
                || recorded.phase == Phase::Switched
                || !recorded.children.is_empty()
                || !recorded.carried.is_empty())
        {
            return Err(recorded.unfinished());
        }
        // INV-46: the target is held, so nobody comes to rely on it from here on.
        if !matches!(self.plan.resumed, Some(Phase::Copying(_) | Phase::Finishing)) {
            dependants::refuse_newcomers(self.plan)?;
        }
        // Without fingerprints of the layers: where this is gone on with offline, it begins anew.
        self.journal.phase = Phase::Copying(0);
        // INV-20, INV-36: record and markers are durable before the target changes.
        self.journal.announce()?;
        self.progress.step("announced");
        // Digests of what is about to change, and of what is about to go, would raise a false alarm.
        for layer in &self.plan.layers {
            remove_file(&record_path(&layer.path))?;
        }
        Ok(())
    }

    /// INV-76: one replacement of the record says that the target is the disk, and that nobody uses the leaf any more.
    fn commit(&self) -> Commit {
        let mut switched = Journal {
            phase: Phase::Switched,
            ..self.journal.clone()
        };
        switched.head = switched.job().head();
        Box::new(move || switched.write().map_err(not_committed))
    }

    /// The files of the layers go, the leaf first: what is left of the range can be read while it is there.
    fn remove(&mut self, sources: &[Layer]) -> Result<(), MergeError> {
        for (known, layer) in self.plan.sources().iter().zip(sources) {
            if FileIdentity::of_open(layer.file()) != FileIdentity::of_path(&known.path).ok() {
                return Err(MergeError::Changed {
                    path: known.path.clone(),
                    what: "another file has come in the place of the one that was merged".to_owned(),
                });
            }
            remove_file(&known.path)?;
            self.report.removed.push(known.path.clone());
            self.progress.step("layer removed");
        }
        Ok(())
    }

    fn close(self) -> Result<MergeReport, MergeError> {
        self.journal.close()?;
        self.progress.step("record removed");
        Ok(self.report)
    }
}
