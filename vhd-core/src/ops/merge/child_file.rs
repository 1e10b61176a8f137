//! A child that is open for writing, and keeps its time stamp.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use super::MergeError;
use super::holder::Holder;
use crate::format::UniqueId;
use crate::image::{Amendment, Image, OpenMode, ParentLink};
use crate::storage::put_back_modified;

/// A child's own file, under its lock, without its parents.
///
/// Children of a child remember when its file was changed last. What it reads is not changed here, so its time stamp
/// is put back when this is dropped.
pub(super) struct ChildFile {
    path: PathBuf,
    image: Option<Image>,
    modified: Option<SystemTime>,
}

impl ChildFile {
    pub(super) fn open(path: &Path, holder: &Holder<'_>) -> Result<Self, MergeError> {
        let modified = modified(path);
        let file = Arc::new(holder.open(path)?);
        let image = Image::open(file, &OpenMode::read_write()).map_err(|source| MergeError::Child {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self::of(path, image, modified))
    }

    /// A child that is open already, and when its file was modified before that.
    pub(super) fn of(path: &Path, image: Image, modified: Option<SystemTime>) -> Self {
        Self {
            path: path.to_owned(),
            image: Some(image),
            modified,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn parent_id(&self) -> Option<UniqueId> {
        let header = self.image.as_ref().and_then(Image::header);
        header.map(|header| header.parent_id)
    }

    /// Makes the child name another parent, durably, in one step (INV-18).
    pub(super) fn point_to(mut self, link: ParentLink) -> Result<(), MergeError> {
        let Some(image) = self.image.take() else { return Ok(()) };
        let amendment = Amendment {
            parent: Some(link),
            ..image.amendment()
        };
        image.amend(&amendment).map_err(|source| MergeError::Relink {
            path: self.path.clone(),
            source,
        })
    }
}

impl Drop for ChildFile {
    fn drop(&mut self) {
        // Closing may cut off space that was kept for more.
        drop(self.image.take());
        if let Some(modified) = self.modified {
            put_back_modified(&self.path, modified);
        }
    }
}

/// When the file was modified last, if that can be told.
pub(super) fn modified(path: &Path) -> Option<SystemTime> {
    path.metadata().ok()?.modified().ok()
}
