//! What an interrupted operation left is brought to an end before anything else is done.

use std::time::{Duration, UNIX_EPOCH};

use super::error::SnapshotError;
use super::manifest::{Active, ImageFile, Pending};
use super::recovered::Recovered;
use super::survey::{look_at, stored_bytes};
use super::tree::SnapshotTree;
use crate::format::UniqueId;
use crate::image::Image;
use crate::storage::{self, put_back_modified};

impl SnapshotTree<'_> {
    /// Completes or undoes what is pending. Doing it twice is harmless.
    pub(super) fn recover(&mut self) -> Result<Option<Recovered>, SnapshotError> {
        match self.manifest.pending.clone() {
            None => Ok(None),
            Some(Pending::Leaf { file, over }) => self.undo_leaf(&file, &over).map(|()| Some(Recovered::LeafRemoved)),
            Some(Pending::Remove { file }) => {
                // INV-23: a rename that was seen may not have been durable.
                storage::sync_directory_of(&self.place.manifest())?;
                // A guest may have been started on it since.
                let _held = match self.place.identity(&file.name)? {
                    Some(_) => Some(self.place.hold(&file.name)?),
                    None => None,
                };
                self.finish_removal(&file).map(|()| Some(Recovered::FileRemoved))
            }
            Some(Pending::Switch { from, to, snapshot }) => self.finish_switch(&from, &to, snapshot).map(Some),
            Some(Pending::Merge { child, into }) if self.leaf_in_use() == Some(child.id) => {
                self.merge_leaf(&child, &into).map(|()| Some(Recovered::Merged))
            }
            // The disk has gone on in the file, and that could not be made durable.
            Some(Pending::Merge { child, into }) if self.leaf_in_use() == Some(into.id) => {
                self.finish_leaf(&child).map(|()| Some(Recovered::Merged))
            }
            Some(Pending::Merge { child, into }) => {
                let merged = self.finish_merge(&child, &into)?;
                Ok(merged.then_some(Recovered::Merged))
            }
        }
    }

    /// The leaf of the disk in use.
    fn leaf_in_use(&self) -> Option<UniqueId> {
        self.in_use.map(|device| device.present().leaf().unique_id())
    }

    /// INV-53: a new leaf that holds data is in use since, and an empty one reads as the frozen one, which stays.
    fn finish_switch(
        &mut self,
        from: &ImageFile,
        to: &ImageFile,
        snapshot: UniqueId,
    ) -> Result<Recovered, SnapshotError> {
        if let Some(device) = self
            .in_use
            .filter(|device| device.present().leaf().unique_id() == to.id)
        {
            self.seal(device)?;
            return Ok(Recovered::SnapshotKept);
        }
        let _held = self.place.hold(&to.name)?;
        let path = self.place.path(&to.name);
        let image = look_at(&path)?;
        if stored_bytes(&image, &path)? > 0 {
            self.keep_time(from, &image);
            self.forget_pending()?;
            return Ok(Recovered::SnapshotKept);
        }
        let mut next = self.manifest.clone();
        let parent = next.snapshot(snapshot).and_then(|taken| taken.parent);
        next.snapshots.retain(|taken| taken.id != snapshot);
        next.active = Active {
            file: from.clone(),
            parent,
        };
        next.pending = Some(Pending::Remove { file: to.clone() });
        self.write(next, "snapshot undone")?;
        self.finish_removal(to)?;
        Ok(Recovered::SnapshotUndone)
    }

    /// Gives a frozen file the time that its child, made before its last writes, remembers of it.
    pub(super) fn keep_time(&self, frozen: &ImageFile, child: &Image) {
        if let Some(header) = child.header() {
            let seconds = u64::try_from(header.parent_timestamp.to_unix_seconds()).unwrap_or(0);
            put_back_modified(&self.path(frozen), UNIX_EPOCH + Duration::from_secs(seconds));
        }
    }

    /// The leaf was never the active one. It must be what the operation made, and empty, to be removed.
    fn undo_leaf(&mut self, name: &str, over: &ImageFile) -> Result<(), SnapshotError> {
        if self.place.identity(name)?.is_some() {
            let _held = self.place.hold(name)?;
            let path = self.place.path(name);
            let image = look_at(&path)?;
            let parent = image.header().map(|header| header.parent_id);
            if !image.is_differencing() || parent != Some(over.id) {
                return Err(self.stale(format!(
                    "{name} was to become a child of {}, and is another image",
                    over.name
                )));
            }
            let bytes = stored_bytes(&image, &path)?;
            if bytes > 0 {
                return Err(self.stale(format!(
                    "{name} was made by an interrupted command and holds {bytes} bytes"
                )));
            }
            storage::remove_file(&path)?;
            self.work.steps.done("leaf removed");
        }
        self.forget_pending()
    }
}
