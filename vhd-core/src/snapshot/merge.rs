//! The one dependant of a deleted snapshot takes its place: its sectors go into the snapshot's file.

use super::delete::can_wait;
use super::error::SnapshotError;
use super::manifest::{ImageFile, Node, Pending, Snapshot};
use super::tree::SnapshotTree;
use crate::ops::merge::{
    Holder, MergeOptions, MergePlan, MergeRequest, Owner, close_leaf, is_unfinished, merge_for, plan_for,
};
use crate::ops::verify::record_path;
use crate::storage::remove_file;

impl SnapshotTree<'_> {
    /// Merges the one dependant of a deleted snapshot into its file. What can be refused is refused before anything
    /// is written.
    pub(super) fn merge_dependant(&mut self, snapshot: &Snapshot, dependant: Node) -> Result<(), SnapshotError> {
        let child = self.manifest.file_of(dependant).cloned();
        let child = child.ok_or_else(|| self.stale(format!("\"{}\" has no dependant", snapshot.name)))?;
        let into = snapshot.file.clone();
        if let Some(device) = self.in_use {
            self.wait_for_readers(device, &into)?;
        }
        let plan = plan_for(&self.request(&child, &into), Owner::Manifest)?;
        // The merge asks again: this is to know it before the manifest says that it has begun.
        for file in [&child, &into] {
            drop(self.holder().open(&self.path(file))?);
        }
        let mut intent = self.manifest.clone();
        intent.pending = Some(Pending::Merge {
            child: child.clone(),
            into: into.clone(),
        });
        // INV-25: before the first sector of the file changes.
        self.write(intent, "merge announced")?;
        match self.do_merge(&plan) {
            Ok(()) => self.merged(&child, &into),
            Err(error) => {
                if !is_unfinished(&self.path(&child))? {
                    self.forget_pending()?;
                }
                Err(error)
            }
        }
    }

    /// Completes an interrupted merge, however far it is. `false` if it had not begun and can't now: then nothing is
    /// pending any more.
    pub(super) fn finish_merge(&mut self, child: &ImageFile, into: &ImageFile) -> Result<bool, SnapshotError> {
        let path = self.path(child);
        let begun = is_unfinished(&path)?;
        // Its record goes last: if it is gone and the child too, nothing is left to do but to say so in the manifest, and
        // to remove what a merge that is done leaves.
        if begun || path.exists() {
            let done = plan_for(&self.request(child, into), Owner::Manifest).map_err(SnapshotError::from);
            match done.and_then(|plan| self.do_merge(&plan)) {
                Err(error) if can_wait(&error) && !is_unfinished(&path)? => {
                    self.forget_pending()?;
                    return Ok(false);
                }
                done => done?,
            }
        } else {
            // It was killed between its last step and the end of its markers, and nothing of that name comes again.
            close_leaf(&path)?;
        }
        self.merged(child, into)?;
        Ok(true)
    }

    fn request(&self, child: &ImageFile, into: &ImageFile) -> MergeRequest {
        MergeRequest {
            into: Some(self.path(into)),
            ..MergeRequest::new(&self.path(child))
        }
    }

    /// Who has the files.
    fn holder(&self) -> Holder<'_> {
        self.in_use.map_or(Holder::Alone, Holder::InUse)
    }

    fn do_merge(&self, plan: &MergePlan) -> Result<(), SnapshotError> {
        let options = MergeOptions {
            cancel: self.work.cancel,
            threads: 0,
            batch_bytes: MergeOptions::DEFAULT_BATCH,
        };
        // Digests of what is about to change, and of what is about to go, would raise a false alarm.
        for path in [plan.child(), plan.target()] {
            remove_file(&record_path(path))?;
        }
        let report = merge_for(plan, &options, self.work.progress, &self.holder())?;
        if report.cancelled {
            return Err(SnapshotError::Interrupted {
                child: plan.child().to_owned(),
            });
        }
        self.work.steps.done("merged");
        Ok(())
    }

    /// Whoever had the child's file has the surviving one now, in the place of the deleted snapshot.
    fn merged(&mut self, child: &ImageFile, into: &ImageFile) -> Result<(), SnapshotError> {
        let mut next = self.manifest.clone();
        let deleted = next.snapshots.iter().position(|snapshot| snapshot.file == *into);
        if let Some(deleted) = deleted {
            let parent = next.snapshots.swap_remove(deleted).parent;
            if let Some(dependant) = next.snapshots.iter_mut().find(|other| other.file == *child) {
                dependant.file = into.clone();
                dependant.parent = parent;
            } else if next.active.file == *child {
                next.active.file = into.clone();
                next.active.parent = parent;
            }
        }
        next.pending = None;
        // INV-24: the merge is durable, and its record is gone.
        self.write(next, "merge finished")
    }
}
