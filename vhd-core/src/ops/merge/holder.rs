//! Who has the files of a merge: the merge alone, or a disk in use that it does its work beside.

use std::path::Path;
use std::sync::Arc;

use super::journal::Journal;
use super::{MergeError, MergeOptions};
use crate::device::{Layer, LayeredDevice, LiveDevice, PATIENCE, soon, wait_until_closed};
use crate::format::UniqueId;
use crate::image::{Image, OpenMode, ParentLink};
use crate::storage::{Access, FileIdentity, HostFile, Sharing, StorageError};

/// Who has the files of a merge.
pub(crate) enum Holder<'a> {
    /// Nobody: each is opened for the merge alone.
    Alone,
    /// A disk in use. Layers below its leaf are written beside it.
    InUse(&'a LiveDevice),
}

impl<'a> Holder<'a> {
    /// Opens a file for writing. Nobody else has it but the disk in use, for reading.
    pub(crate) fn open(&self, path: &Path) -> Result<HostFile, StorageError> {
        if let Self::InUse(device) = self {
            let present = device.present();
            if let Some(reader) = depth_of(&present, path).and_then(|depth| present.layers()[depth].file().host_file())
            {
                return HostFile::open_beside(path, reader);
            }
        }
        HostFile::open(path, Access::ReadWrite, Sharing::Exclusive)
    }

    /// With as many threads as are wanted, if none are named: beside a disk in use it is one, so that those who use it have
    /// the other processors.
    pub(super) fn with_threads<'o>(&self, options: &MergeOptions<'o>) -> MergeOptions<'o> {
        let threads = match (self, options.threads) {
            (Self::InUse(_), 0) => 1,
            (_, asked) => asked,
        };
        MergeOptions { threads, ..*options }
    }

    /// Sees whether [`open`](Self::open) would. The leaf of the disk in use is written to through the disk.
    pub(super) fn check(&self, path: &Path) -> Result<(), StorageError> {
        match self.leaf_at(path) {
            Some(_) => Ok(()),
            None => self.open(path).map(drop),
        }
    }

    /// Refuses if somebody in this process reads one of the files otherwise than through the layer above it.
    pub(super) fn require_unread<'p>(&self, paths: impl Iterator<Item = &'p Path>) -> Result<(), StorageError> {
        let Self::InUse(device) = self else { return Ok(()) };
        for path in paths {
            let depth = depth_of(&device.present(), path);
            if let Some(depth) = depth
                && !soon(PATIENCE, || !device.is_read_alone(depth))
            {
                return Err(StorageError::Locked {
                    path: path.to_owned(),
                    wanted: Access::ReadWrite,
                    holder: None,
                });
            }
        }
        Ok(())
    }

    /// The leaf of the disk in use, if that is the file at `path`.
    pub(super) fn leaf_at(&self, path: &Path) -> Option<LiveLeaf<'a>> {
        let Self::InUse(device) = self else { return None };
        (depth_of(&device.present(), path) == Some(0)).then_some(LiveLeaf(device))
    }

    /// The disk in use, and those who read its layers, have the target in place of all that was merged into it. It is
    /// complete and durable, and no child is based on a layer that goes any more.
    pub(super) fn join(&self, journal: &Journal) -> Result<(), MergeError> {
        let Self::InUse(device) = self else { return Ok(()) };
        let present = device.present();
        let child = journal.layers[0].known.id;
        let depth = (1..present.layers().len()).find(|&depth| present.layers()[depth].unique_id() == child);
        // It went on without them already, or never had them.
        let Some(depth) = depth else { return Ok(()) };
        let (count, target) = (journal.layers.len() + 1, &journal.target);
        let (Some(first), Some(last)) = (present.shared_image(depth), present.layers().get(depth + count - 1)) else {
            return Ok(());
        };
        let layer = match last {
            Layer::Vhd(_) => Layer::Vhd(Arc::new(open_anew(&target.path, depth)?)),
            Layer::Raw(_) => last.clone(),
        };
        if layer.unique_id() != last.unique_id() || !device.join_layers(first, count, &layer) {
            return Err(MergeError::Changed {
                path: target.path.clone(),
                what: "the disk in use has other layers than were merged".to_owned(),
            });
        }
        let former = (depth..depth + count).filter_map(|depth| present.shared_image(depth));
        let former: Vec<_> = former.map(Arc::downgrade).collect();
        drop(present);
        wait_until_closed(&former);
        Ok(())
    }
}

/// The leaf of a disk in use.
pub(super) struct LiveLeaf<'a>(&'a LiveDevice);

impl LiveLeaf<'_> {
    /// The identity of its parent.
    pub(super) fn parent_id(&self) -> Option<UniqueId> {
        self.0.present().leaf().header().map(|header| header.parent_id)
    }

    /// Makes the leaf name another parent, durably, in one step (INV-18), while requests are held.
    pub(super) fn point_to(&self, path: &Path, link: ParentLink) -> Result<(), MergeError> {
        self.0.point_leaf(link).map_err(|source| MergeError::Relink {
            path: path.to_owned(),
            source,
        })
    }
}

impl LiveDevice {
    /// Whether the file at `path` is the leaf, which is written to.
    #[must_use]
    pub fn writes_to(&self, path: &Path) -> bool {
        depth_of(&self.present(), path) == Some(0)
    }
}

/// The layer of a disk that is the file at `path`.
fn depth_of(present: &LayeredDevice, path: &Path) -> Option<usize> {
    let wanted = FileIdentity::of_path(path).ok()?;
    let is_it = |layer: &Layer| FileIdentity::of_open(layer.file()) == Some(wanted);
    present.layers().iter().position(is_it)
}

fn open_anew(path: &Path, depth: usize) -> Result<Image, MergeError> {
    let file = Arc::new(HostFile::open(path, Access::ReadOnly, Sharing::Exclusive)?);
    Image::open(file, &OpenMode::ancestor().at_depth(depth)).map_err(|source| MergeError::Child {
        path: path.to_owned(),
        source,
    })
}
