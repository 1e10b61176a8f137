//! What an interrupted operation left is brought to an end before anything else is done.

use super::error::SnapshotError;
use super::manifest::{ImageFile, Pending};
use super::survey::{look_at, stored_bytes};
use super::tree::SnapshotTree;
use crate::storage;

/// What became of an interrupted operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recovered {
    /// A leaf was being made and was not used yet: it is gone, and the tree is as it was before.
    LeafRemoved,
    /// A file that nothing referred to any more is gone.
    FileRemoved,
    /// A merge was completed.
    Merged,
}

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
            Some(Pending::Merge { child, into }) => {
                let merged = self.finish_merge(&child, &into)?;
                Ok(merged.then_some(Recovered::Merged))
            }
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
