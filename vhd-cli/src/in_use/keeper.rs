//! Does what commands ask for on a disk that is in use.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Weak};

use vhd_core::device::LiveDevice;
use vhd_core::error::with_causes;
use vhd_core::ops::Progress;
use vhd_core::snapshot::{self, Settled, SnapshotTree, Work};

use super::Frontend;
use crate::codes::Kind;
use crate::commands::resize::ResizeJson;
use crate::commands::{merge, resize};
use crate::control::{Answer, Deleted, Job, Jobs, ResizeJob, Taken, WaitingFile};
use crate::failure::Failure;

/// Does jobs on a disk.
pub(super) struct Keeper<F> {
    /// The base of the disk as it was opened.
    opened_base: PathBuf,
    /// Not the device itself: whoever closes the disk wants it alone.
    device: Weak<LiveDevice>,
    frontend: F,
}

impl<F: Frontend> Jobs for Keeper<F> {
    fn run(&self, job: Job, progress: &dyn Progress, cancel: &AtomicBool) -> Result<Answer, Failure> {
        let gone = || Failure::new(Kind::Control, "the program that has the disk in use is about to end");
        let device = self.device.upgrade().ok_or_else(gone)?;
        let work = Work {
            steps: &(),
            progress,
            cancel,
        };
        match job {
            Job::SnapshotCreate { name } => self.take(&device, &name, work).map(Answer::Taken),
            Job::SnapshotDelete { name, subtree } => self.delete(&device, &name, subtree, work).map(Answer::Deleted),
            Job::Merge(job) => merge::in_use(&job, &device, progress, cancel).map(Answer::Merged),
            Job::Resize(job) => self.resize(&job, &device, work).map(Answer::Resized),
        }
    }

    fn file(&self) -> Option<PathBuf> {
        self.device.upgrade()?.leaf_path()
    }
}

impl<F: Frontend> Keeper<F> {
    pub(super) fn new(base: PathBuf, device: &Arc<LiveDevice>, frontend: F) -> Self {
        Self {
            opened_base: base,
            device: Arc::downgrade(device),
            frontend,
        }
    }

    /// The file that stays while leaves come and go. A merge may have made another one of it.
    fn base(&self, device: &LiveDevice) -> Result<PathBuf, Failure> {
        match device.leaf_path() {
            Some(leaf) => Ok(snapshot::base_of(&leaf)?),
            None => Ok(self.opened_base.clone()),
        }
    }

    fn take(&self, device: &Arc<LiveDevice>, name: &str, work: Work<'_>) -> Result<Taken, Failure> {
        let mut tree = SnapshotTree::open_in_use(&self.base(device)?, device, work)?;
        let taken = tree.create_in_use(name)?;
        self.frontend.taken(name, &taken, device);
        Ok(Taken {
            active: file_name(&taken.created.active),
            snapshot: taken.created.snapshot,
            paused_us: u64::try_from(taken.paused.as_micros()).unwrap_or(u64::MAX),
        })
    }

    fn resize(&self, job: &ResizeJob, device: &LiveDevice, work: Work<'_>) -> Result<ResizeJson, Failure> {
        let resized = resize::in_use(job, device, work.progress, work.cancel);
        // After a failure, too, it has the size that it has.
        self.frontend.resized();
        resized
    }

    fn delete(&self, device: &Arc<LiveDevice>, name: &str, subtree: bool, work: Work<'_>) -> Result<Deleted, Failure> {
        let mut tree = SnapshotTree::open_in_use(&self.base(device)?, device, work)?;
        tree.give_up(name, subtree)?;
        self.frontend.withdraw(tree.manifest());
        let settled = tree.settle_in_use()?;
        Ok(report(&tree, &settled))
    }
}

fn report(tree: &SnapshotTree<'_>, settled: &Settled) -> Deleted {
    let names = |paths: &[PathBuf]| paths.iter().map(|path| file_name(path)).collect();
    let waiting = settled.waiting.iter().map(|waiting| WaitingFile {
        name: waiting.name.clone(),
        file: file_name(&waiting.path),
        dependants: u64::try_from(waiting.dependants).unwrap_or(u64::MAX),
        reason: waiting.reason.as_ref().map(|reason| with_causes(reason)),
    });
    Deleted {
        active: tree.manifest().active.file.name.clone(),
        removed: names(&settled.removed),
        merged: names(&settled.merged),
        waiting: waiting.collect(),
    }
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or(path.as_os_str());
    name.to_string_lossy().into_owned()
}
