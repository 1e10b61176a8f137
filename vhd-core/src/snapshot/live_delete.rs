//! Deleting snapshots of a disk that is in use. Where the deleted snapshot is what the leaf is based on, the leaf is merged
//! into its file while requests go on, and that file is the leaf afterwards.
//!
//! ```text
//!   announce    the manifest names the merge, its record and markers are there       durable
//!   merge       the leaf is copied; the file below it becomes the leaf               requests go on
//!   commit      both files durable; the record goes; the manifest names the leaf     a part of the next flush
//!   remove      the former leaf's file goes
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::delete::{Settled, can_wait};
use super::error::SnapshotError;
use super::manifest::{ImageFile, KIND, Manifest, Pending};
use super::tree::SnapshotTree;
use crate::device::{
    BlockDevice as _, Commit, DeviceError, LayeredDevice, LeafMergeEnd, LiveDevice, PATIENCE, soon, wait_until_closed,
};
use crate::job::require_no_job;
use crate::ops::merge::{LeafTarget, MergeError, announce_leaf, close_leaf, is_unfinished, not_committed};
use crate::ops::verify::record_path;
use crate::record::Checked as _;
use crate::storage::{FileIdentity, remove_file};

impl SnapshotTree<'_> {
    /// [`settle`](Self::settle) for a disk in use; the tree was opened by [`open_in_use`](Self::open_in_use). The leaf is
    /// merged into the files of deleted snapshots directly below it; files that other layers of the disk depend on stay
    /// until the disk is not in use.
    ///
    /// # Errors
    /// Those of [`settle`](Self::settle). What was begun the next command goes on with.
    pub fn settle_in_use(&mut self) -> Result<Settled, SnapshotError> {
        let mut done = Settled::default();
        loop {
            let refused = self.merge_leaves(&mut done)?;
            let mut settled = self.settle()?;
            done.removed.append(&mut settled.removed);
            done.merged.append(&mut settled.merged);
            done.waiting = settled.waiting;
            if let Some((path, error)) = refused {
                if let Some(waiting) = done.waiting.iter_mut().find(|waiting| waiting.path == path) {
                    // The cause, and not that this very process has the disk.
                    waiting.reason = Some(error);
                }
                return Ok(done);
            }
            // What has gone may have been the last that kept the leaf from being merged.
            if self.leaf_to_merge().is_none() {
                return Ok(done);
            }
        }
    }

    /// Merges the leaf into the file below it as long as that is one of a deleted snapshot; returns what keeps it from that.
    fn merge_leaves(&mut self, done: &mut Settled) -> Result<Option<(PathBuf, SnapshotError)>, SnapshotError> {
        while let Some((child, into)) = self.leaf_to_merge() {
            match self.merge_leaf(&child, &into) {
                Ok(()) => done.merged.push(self.path(&into)),
                Err(error) if can_wait(&error) && self.manifest.pending.is_none() => {
                    return Ok(Some((self.path(&into), error)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The leaf, and the file of the deleted snapshot that only the leaf is based on.
    fn leaf_to_merge(&self) -> Option<(ImageFile, ImageFile)> {
        let below = self.manifest.snapshot(self.manifest.active.parent?)?;
        let alone = self.manifest.dependants(below.id).len() == 1;
        (below.deleted && alone).then(|| (self.manifest.active.file.clone(), below.file.clone()))
    }

    /// Merges the leaf into the file below it, or goes on with that. All that can be refused is refused before anything is
    /// written.
    pub(super) fn merge_leaf(&mut self, child: &ImageFile, into: &ImageFile) -> Result<(), SnapshotError> {
        let device = self.in_use.expect("the tree is one of a disk in use");
        let present = device.present();
        present.settle().map_err(|source| self.device_error(into, source))?;
        self.check_leaf(&present, child, into)?;
        self.wait_for_readers(device, into)?;
        let below = LeafTarget::open(&self.path(into), &present, 1)?;
        let former: Vec<_> = (0..2)
            .filter_map(|depth| present.shared_image(depth))
            .map(Arc::downgrade)
            .collect();
        drop(present);
        let (path, other) = (self.path(child), self.path(into));
        // INV-37: under the lock.
        if !is_unfinished(&path)? {
            require_no_job([&path, &other])?;
        }
        match self.merge_into(device, child, into, &below) {
            Ok(()) => {
                self.finish_leaf(child)?;
                wait_until_closed(&former);
                Ok(())
            }
            Err(error) => {
                below.close();
                Err(error)
            }
        }
    }

    fn merge_into(
        &mut self,
        device: &LiveDevice,
        child: &ImageFile,
        into: &ImageFile,
        below: &LeafTarget,
    ) -> Result<(), SnapshotError> {
        self.announce_merge(child, into)?;
        let (progress, cancel) = (self.work.progress, self.work.cancel);
        let merged = below.merge(device, progress, cancel, self.commit_of(child, into)?);
        match merged.map_err(|source| self.device_error(into, source))?.end {
            LeafMergeEnd::Switched(_) => {
                self.work.steps.done("switched");
                Ok(())
            }
            LeafMergeEnd::Cancelled => Err(SnapshotError::Interrupted {
                child: self.path(child),
            }),
            LeafMergeEnd::Overtaken => Err(self.stale("the disk has gone on in another file".to_owned())),
        }
    }

    fn announce_merge(&mut self, child: &ImageFile, into: &ImageFile) -> Result<(), SnapshotError> {
        let mut intent = self.manifest.clone();
        intent.pending = Some(Pending::Merge {
            child: child.clone(),
            into: into.clone(),
        });
        // INV-25: before the first sector of the file changes.
        self.write(intent, "merge announced")?;
        let paths = [child, into].map(|file| self.path(file));
        let recorded = record_merge((&paths[0], child), (&paths[1], into));
        if recorded.is_err() && !is_unfinished(&paths[0])? {
            self.forget_pending()?;
        }
        recorded?;
        self.work.steps.done("merge recorded");
        Ok(())
    }

    /// What makes it known that the disk goes on in the file below the former leaf. That one is durable then. Until it is
    /// done no other command changes the tree.
    fn commit_of(&self, child: &ImageFile, into: &ImageFile) -> Result<Commit, SnapshotError> {
        let (manifest, record) = (self.place.manifest(), self.path(child));
        let next = self.without_leaf(child, into);
        next.check().map_err(|reason| self.stale(reason))?;
        let lock = Arc::clone(&self.lock);
        Ok(Box::new(move || {
            let _kept = &lock;
            // INV-55: a record that is there says that the leaf counts; so it goes before the manifest says otherwise.
            close_leaf(&record).map_err(not_committed)?;
            KIND.write(&manifest, &next).map_err(not_committed)
        }))
    }

    /// The manifest when the disk has gone on in the file below the leaf.
    fn without_leaf(&self, child: &ImageFile, into: &ImageFile) -> Manifest {
        let mut next = self.manifest.clone();
        if let Some(deleted) = next.snapshots.iter().position(|snapshot| snapshot.file == *into) {
            next.active.parent = next.snapshots.remove(deleted).parent;
        }
        next.active.file = into.clone();
        next.pending = Some(Pending::Remove { file: child.clone() });
        next
    }

    /// Makes durable that the disk goes on in the file below its former leaf, whose file goes.
    pub(super) fn finish_leaf(&mut self, child: &ImageFile) -> Result<(), SnapshotError> {
        let device = self.in_use.expect("the tree is one of a disk in use");
        device.flush().map_err(|source| self.device_error(child, source))?;
        let known = self.place.read()?;
        self.manifest = known.ok_or_else(|| self.stale("it is gone".to_owned()))?;
        self.work.steps.done("merge finished");
        self.finish_removal(child)
    }

    fn check_leaf(&self, present: &LayeredDevice, child: &ImageFile, into: &ImageFile) -> Result<(), SnapshotError> {
        let (Some(leaf), Some(below)) = (present.shared_image(0), present.shared_image(1)) else {
            return Err(self.stale(format!("{} is not over {}", child.name, into.name)));
        };
        if leaf.unique_id() != child.id || below.unique_id() != into.id {
            return Err(self.stale(format!("{} is not over {}", child.name, into.name)));
        }
        let path = self.path(child);
        if leaf.disk_size() != below.disk_size() {
            return Err(MergeError::SizeMismatch {
                path,
                size: leaf.disk_size(),
                other: self.path(into),
                other_size: below.disk_size(),
            }
            .into());
        }
        self.place.refuse_children(child)?;
        let found = self.place.dependants(into);
        let own = FileIdentity::of_path(&path).ok();
        let is_other = |path: &PathBuf| FileIdentity::of_path(path).ok() != own;
        if found.child_paths().iter().any(is_other) {
            found.refuse_children()?;
        }
        Ok(found.refuse_unknown()?)
    }

    /// Those who read the snapshot in this process have a moment to be gone. Who reads it as a part of a later state may go
    /// on.
    pub(super) fn wait_for_readers(&self, device: &LiveDevice, into: &ImageFile) -> Result<(), SnapshotError> {
        let present = device.present();
        let depth = present.layers().iter().position(|layer| layer.unique_id() == into.id);
        drop(present);
        let Some(depth) = depth else { return Ok(()) };
        match soon(PATIENCE, || !device.is_read_alone(depth)) {
            true => Ok(()),
            false => Err(SnapshotError::BeingRead { path: self.path(into) }),
        }
    }

    fn device_error(&self, file: &ImageFile, source: DeviceError) -> SnapshotError {
        SnapshotError::Device {
            path: self.path(file),
            source,
        }
    }
}

fn record_merge(child: (&Path, &ImageFile), into: (&Path, &ImageFile)) -> Result<(), SnapshotError> {
    // Digests of what is about to change, and of what is about to go, would raise a false alarm.
    for path in [child.0, into.0] {
        remove_file(&record_path(path))?;
    }
    Ok(announce_leaf((child.0, child.1.id), (into.0, into.1.id))?)
}
