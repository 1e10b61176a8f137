//! Going back to a snapshot: a new leaf on it becomes the active one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::create::frozen;
use super::delete::Settled;
use super::error::SnapshotError;
use super::manifest::{Active, ImageFile, Pending, Snapshot};
use super::survey::{look_at, stored_bytes};
use super::tree::SnapshotTree;
use crate::format::UniqueId;
use crate::image::{Image, OpenMode};
use crate::job::require_no_job;
use crate::storage::{Access, HostFile, Sharing};

/// What becomes of writes that no snapshot has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsaved<'a> {
    /// Nothing is applied if there are any.
    Refuse,
    /// They are lost.
    Discard,
    /// They become a snapshot of this name first.
    Snapshot(&'a str),
}

/// A snapshot that was applied.
#[derive(Debug)]
#[non_exhaustive]
pub struct Applied {
    /// The snapshot that the present state is that of.
    pub snapshot: Snapshot,
    /// The file that is written to from here on.
    pub active: PathBuf,
    /// The snapshot that was taken first.
    pub taken: Option<Snapshot>,
    /// Bytes of writes that were lost.
    pub discarded_bytes: u64,
    /// What could be finished because the former leaf is gone.
    pub settled: Settled,
}

impl SnapshotTree<'_> {
    /// Makes the state that a snapshot kept the present one. No snapshot is lost.
    ///
    /// # Errors
    /// `Missing`; `Unsaved` when writes would be lost that are not to be; `Storage` (locked) while the active leaf
    /// is in use; `HasChildren` when an image outside the tree needs it.
    pub fn apply(&mut self, name: &str, unsaved: Unsaved<'_>) -> Result<Applied, SnapshotError> {
        let target = self.named(name)?.clone();
        self.apply_snapshot(target, unsaved)
    }

    /// Goes back to the snapshot that the present state descends from, and loses what was written since.
    ///
    /// # Errors
    /// `NothingToRevertTo`, and those of [`apply`](SnapshotTree::apply).
    pub fn revert(&mut self) -> Result<Applied, SnapshotError> {
        let nearest = self.manifest.nearest_listed(self.manifest.active.parent);
        let target = nearest.cloned();
        let target = target.ok_or_else(|| SnapshotError::NothingToRevertTo { disk: self.disk() })?;
        self.apply_snapshot(target, Unsaved::Discard)
    }

    fn apply_snapshot(&mut self, target: Snapshot, unsaved: Unsaved<'_>) -> Result<Applied, SnapshotError> {
        let former = self.manifest.active.clone();
        let leaf = self.path(&former.file);
        let held = Arc::new(self.place.hold(&former.file.name)?);
        let bytes = Self::stored_in(Arc::clone(&held), &leaf)? + self.stored_in_deleted()?;
        match unsaved {
            Unsaved::Refuse if bytes > 0 => return Err(SnapshotError::Unsaved { leaf, bytes }),
            Unsaved::Refuse | Unsaved::Discard => {
                self.place.refuse_children(&former.file)?;
                // INV-37: the file goes, and an open job on it could not be finished any more.
                require_no_job([&leaf])?;
            }
            Unsaved::Snapshot(name) => self.check_new_name(name)?,
        }
        let taken = match unsaved {
            Unsaved::Snapshot(name) => Some(frozen(UniqueId::random(), name, former.clone())),
            Unsaved::Refuse | Unsaved::Discard => None,
        };
        self.switch(&target, &former.file, taken.as_ref())?;
        // The former leaf's lock would keep a merge away from it.
        drop(held);
        Ok(Applied {
            active: self.path(&self.manifest.active.file),
            discarded_bytes: if taken.is_none() { bytes } else { 0 },
            taken,
            snapshot: target,
            settled: self.settle()?,
        })
    }

    /// Bytes of the present state that no snapshot has, and that an [`apply`](Self::apply) would lose. As far as they are in
    /// the file: the disk may be in use.
    ///
    /// # Errors
    /// `Storage`, `Image`, `Device`.
    pub fn unsaved_bytes(&self) -> Result<u64, SnapshotError> {
        let leaf = self.path(&self.manifest.active.file);
        let file = HostFile::open(&leaf, Access::ReadOnly, Sharing::Unlocked)?;
        Ok(Self::stored_in(Arc::new(file), &leaf)? + self.stored_in_deleted()?)
    }

    /// Bytes that a leaf holds.
    fn stored_in(file: Arc<HostFile>, leaf: &Path) -> Result<u64, SnapshotError> {
        let image = Image::open(file, &OpenMode::ancestor());
        let image = image.map_err(|source| SnapshotError::Image {
            path: leaf.to_owned(),
            source,
        })?;
        stored_bytes(&image, leaf)
    }

    /// Bytes that deleted snapshots hold between the active leaf and the nearest snapshot that is listed: the present
    /// state has them, and no snapshot that could be applied.
    fn stored_in_deleted(&self) -> Result<u64, SnapshotError> {
        let line = self.manifest.line(self.manifest.active.parent);
        let unlisted = line.take_while(|snapshot| snapshot.deleted);
        let mut bytes = 0;
        for snapshot in unlisted {
            let path = self.path(&snapshot.file);
            bytes += stored_bytes(&look_at(&path)?, &path)?;
        }
        Ok(bytes)
    }

    /// Makes a new leaf on `target` the active one; the former becomes the snapshot `taken`, or goes.
    fn switch(&mut self, target: &Snapshot, former: &ImageFile, taken: Option<&Snapshot>) -> Result<(), SnapshotError> {
        let leaf = self.make_leaf(&target.file)?;
        let mut next = self.manifest.clone();
        next.active = Active {
            file: leaf,
            parent: Some(target.id),
        };
        next.snapshots.extend(taken.cloned());
        next.pending = taken.is_none().then(|| Pending::Remove { file: former.clone() });
        // INV-24: the leaf is durable under its name. INV-23: the former one goes after this.
        self.write(next, "snapshot applied")?;
        match taken {
            None => self.finish_removal(former),
            Some(_) => Ok(()),
        }
    }
}
