//! The leaf of a disk in use is merged: the file that it goes into, and the record. What is copied and when, the disk itself
//! decides.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::MergeError;
use super::journal::{Journal, Phase, Source};
use super::known::Known;
use crate::device::{Commit, DeviceError, LayeredDevice, LeafMerge, LeafMerged, LiveDevice};
use crate::format::UniqueId;
use crate::image::{Image, OpenMode};
use crate::job::{Head, JobKind, sweep};
use crate::ops::Progress;
use crate::storage::{self, Access, HostFile, StorageError};

/// What the leaf of a disk in use, and layers below it, are merged into: open for writing, beside the disk that reads it.
pub(crate) struct LeafTarget {
    image: Arc<Image>,
    /// How many layers are above it.
    layers: usize,
}

impl LeafTarget {
    /// Opens the layer that is so many layers below the top of the disk, whose file is at `path`.
    pub(crate) fn open(path: &Path, present: &LayeredDevice, layers: usize) -> Result<Self, MergeError> {
        let reader = present.layers().get(layers).and_then(|layer| layer.file().host_file());
        let reader = reader.ok_or_else(|| StorageError::Locked {
            path: path.to_owned(),
            wanted: Access::ReadWrite,
            holder: None,
        })?;
        let file = HostFile::open_beside(path, reader)?;
        let image = Image::open(Arc::new(file), &OpenMode::read_write()).map_err(|source| MergeError::Child {
            path: path.to_owned(),
            source,
        })?;
        Ok(Self {
            image: Arc::new(image),
            layers,
        })
    }

    /// Merges all layers above it into it, while requests to the disk go on.
    pub(crate) fn merge(
        &self,
        device: &LiveDevice,
        progress: &dyn Progress,
        cancel: &AtomicBool,
        commit: Commit,
    ) -> Result<LeafMerged, DeviceError> {
        let work = LeafMerge {
            layers: self.layers,
            begin: &|bytes| progress.begin(bytes),
            advance: &|bytes| progress.advance(bytes),
            cancel,
        };
        device.merge_leaf(&self.image, &work, commit)
    }

    /// The disk goes on as it was, and what was copied is kept. The image is closed by whoever drops it last: until then its
    /// lock keeps it from being opened again.
    pub(crate) fn close(self) {
        if let Some(Err(error)) = Arc::into_inner(self.image).map(Image::close) {
            tracing::warn!(%error, "a file that a leaf was being merged into could not be closed");
        }
    }
}

/// It could not be made known that a disk goes on in another file.
pub(crate) fn not_committed(error: impl std::error::Error + Send + Sync + 'static) -> DeviceError {
    DeviceError::Io {
        operation: "record the merge of the leaf",
        offset: 0,
        source: std::io::Error::other(error),
    }
}

/// Puts the record in its place that says that the image at `target` is about to take in what its child holds.
pub(crate) fn announce_leaf(child: (&Path, UniqueId), target: (&Path, UniqueId)) -> Result<(), MergeError> {
    let (child, target) = (known(child)?, known(target)?);
    sweep(JobKind::Merge, &Journal::path(&child.path))?;
    if let Some(recorded) = Journal::read(&child.path)?
        && (recorded.target.id != target.id
            || recorded.layers.len() != 1
            || !recorded.children.is_empty()
            || !recorded.carried.is_empty())
    {
        return Err(recorded.unfinished());
    }
    let source = Source {
        known: child,
        fingerprint: None,
    };
    let mut journal = Journal {
        target,
        layers: vec![source],
        children: Vec::new(),
        carried: Vec::new(),
        phase: Phase::Copying(0),
        boot: None,
        head: Head::default(),
    };
    // INV-20, INV-36: record and markers are durable before the target changes.
    journal.announce()
}

/// Everything is in the target, durably: the record goes.
pub(crate) fn close_leaf(child: &Path) -> Result<(), MergeError> {
    match Journal::read(child)? {
        Some(journal) => journal.close(),
        None => Ok(sweep(JobKind::Merge, &Journal::path(child))?),
    }
}

fn known((path, id): (&Path, UniqueId)) -> Result<Known, MergeError> {
    let path = storage::full_name(path).map_err(|source| StorageError::at(path, "find", source))?;
    Ok(Known { path, id })
}
