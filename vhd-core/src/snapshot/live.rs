//! Taking a snapshot of a disk that is in use: its users notice a pause, and nothing else.
//!
//! ```text
//!   announce    a new leaf is made and opened; the manifest names the switch       durable, takes its time
//!   switch      requests wait; the leaf is frozen, its child becomes the leaf      in memory
//!   settle      the frozen leaf becomes durable; the manifest says that it is      durable, takes its time
//! ```
//!
//! From the announcement on the manifest says that the new leaf is the active one. While that is empty it reads as the
//! frozen one does, so that is true whether or not the switch has happened.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::create::{Created, frozen};
use super::error::SnapshotError;
use super::manifest::{Active, ImageFile, Pending, Snapshot};
use super::tree::SnapshotTree;
use crate::device::{DeviceError, LayeredDevice, LiveDevice, NotSwitched, Successor};
use crate::format::UniqueId;
use crate::image::{Image, OpenMode};
use crate::storage::{Access, HostFile, Sharing, share_with_readers};

/// A snapshot that is to be taken of a disk in use.
pub struct WantedSnapshot<'t, 'w> {
    /// The disk's tree, opened by [`SnapshotTree::open_in_use`].
    pub tree: &'t mut SnapshotTree<'w>,
    /// The snapshot's name.
    pub name: &'t str,
    /// What it is known by from then on, whatever it is called: a caller that has written it down can find out after a crash
    /// whether the snapshot was taken.
    pub id: UniqueId,
}

/// A snapshot that was taken of a disk in use.
#[non_exhaustive]
pub struct CreatedInUse {
    /// The snapshot, and the file that is written to from here on.
    pub created: Created,
    /// What was kept, for reading: the same open files that the disk goes on with, whatever becomes of them.
    pub frozen: Arc<LiveDevice>,
    /// The new leaf over it.
    pub present: Arc<LayeredDevice>,
    /// How long requests had to wait at most.
    pub paused: Duration,
}

/// A snapshot that the manifest announces.
struct Announced<'w> {
    device: &'w LiveDevice,
    successor: Successor,
    snapshot: Snapshot,
    active: PathBuf,
}

impl SnapshotTree<'_> {
    /// Keeps the present state of a disk in use under a name. The tree was opened by
    /// [`open_in_use`](Self::open_in_use).
    ///
    /// # Errors
    /// `Name`, `Exists`, `Create`, `Storage`: then nothing has changed. `Device`, when the frozen leaf can't be made
    /// durable: the disk takes no writes any more, and the next command decides what is kept.
    pub fn create_in_use(&mut self, name: &str) -> Result<CreatedInUse, SnapshotError> {
        let mut wanted = [WantedSnapshot {
            tree: self,
            name,
            id: UniqueId::random(),
        }];
        let mut created = create_together(&mut wanted)?;
        Ok(created.remove(0))
    }
}

/// Keeps the present state of several disks, as they are at one instant: all are taken, or none.
///
/// # Errors
/// Those of [`SnapshotTree::create_in_use`].
///
/// # Panics
/// When a tree is not one of a disk in use.
pub fn create_together(wanted: &mut [WantedSnapshot<'_, '_>]) -> Result<Vec<CreatedInUse>, SnapshotError> {
    let mut announced = Vec::with_capacity(wanted.len());
    for at in 0..wanted.len() {
        let WantedSnapshot { tree, name, id } = &mut wanted[at];
        match tree.announce(name, *id) {
            Ok(one) => announced.push(one),
            Err(error) => {
                drop(announced);
                take_back(&mut wanted[..at]);
                return Err(error);
            }
        }
    }
    let mut kept = Vec::with_capacity(announced.len());
    let mut switched = Vec::with_capacity(announced.len());
    for one in announced {
        kept.push((one.device, one.snapshot, one.active));
        switched.push((one.device, one.successor));
    }
    let paused = match LiveDevice::switch(switched) {
        Ok(paused) => paused,
        Err(reason) => {
            take_back(wanted);
            let tree = &wanted[0].tree;
            return Err(match reason {
                NotSwitched::OtherLeaf => tree.stale(reason.to_string()),
                NotSwitched::PlaceHeld => SnapshotError::Device {
                    path: tree.path(&tree.manifest.active.file),
                    source: DeviceError::PlaceHeld("the snapshot"),
                },
            });
        }
    };
    let mut created = Vec::with_capacity(kept.len());
    let mut failed = None;
    for (WantedSnapshot { tree, .. }, (device, snapshot, active)) in wanted.iter_mut().zip(kept) {
        tree.work.steps.done("switched");
        let present = device.present();
        let frozen = device.view(1).expect("the leaf is over an image");
        if let Err(error) = tree.seal(device) {
            failed.get_or_insert(error);
        }
        created.push(CreatedInUse {
            created: Created { snapshot, active },
            frozen,
            present,
            paused,
        });
    }
    failed.map_or(Ok(created), Err)
}

/// Undoes what was announced and has not happened. What can't be undone now the next command finds.
fn take_back(announced: &mut [WantedSnapshot<'_, '_>]) {
    for WantedSnapshot { tree, .. } in announced {
        tree.undo_announcement();
    }
}

impl<'w> SnapshotTree<'w> {
    fn announce(&mut self, name: &str, id: UniqueId) -> Result<Announced<'w>, SnapshotError> {
        let device = self.in_use.expect("the tree is one of a disk in use");
        self.check_new_name(name)?;
        let former = self.manifest.active.clone();
        let leaf = self.make_leaf(&former.file)?;
        let made = self.open_leaf(&leaf).and_then(|child| {
            let snapshot = frozen(id, name, former);
            self.name_switch(&snapshot, &leaf)?;
            Ok((child, snapshot))
        });
        match made {
            Ok((child, snapshot)) => Ok(Announced {
                device,
                successor: device.prepare(child),
                snapshot,
                active: self.path(&leaf),
            }),
            Err(error) => {
                self.undo_announcement();
                Err(error)
            }
        }
    }

    /// INV-52: the switch is in the manifest before anything is written to the new leaf.
    fn name_switch(&mut self, snapshot: &Snapshot, leaf: &ImageFile) -> Result<(), SnapshotError> {
        let mut next = self.manifest.clone();
        next.snapshots.push(snapshot.clone());
        next.active = Active {
            file: leaf.clone(),
            parent: Some(snapshot.id),
        };
        next.pending = Some(Pending::Switch {
            from: snapshot.file.clone(),
            to: leaf.clone(),
            snapshot: snapshot.id,
        });
        self.write(next, "switch announced")
    }

    fn open_leaf(&self, leaf: &ImageFile) -> Result<Image, SnapshotError> {
        let path = self.path(leaf);
        let file = Arc::new(HostFile::open(&path, Access::ReadWrite, Sharing::Exclusive)?);
        Image::open(file, &OpenMode::read_write()).map_err(|source| SnapshotError::Image { path, source })
    }

    /// As well as it goes; by what the manifest says, since the last change of it may have been made though it failed.
    fn undo_announcement(&mut self) {
        let undone = self.place.read().and_then(|found| {
            if let Some(manifest) = found {
                self.manifest = manifest;
            }
            self.recover()
        });
        if let Err(error) = undone {
            tracing::warn!(%error, "a snapshot that was not taken is left to the next command");
        }
    }

    /// Makes the frozen leaf durable, and says in the manifest that the snapshot is taken.
    pub(super) fn seal(&mut self, device: &LiveDevice) -> Result<(), SnapshotError> {
        let present = device.present();
        let frozen = self.manifest.active.parent.and_then(|id| self.manifest.snapshot(id));
        let Some(frozen) = frozen.map(|snapshot| snapshot.file.clone()) else {
            return Err(self.stale("the new leaf is based on no snapshot".to_owned()));
        };
        present.settle().map_err(|source: DeviceError| SnapshotError::Device {
            path: self.path(&frozen),
            source,
        })?;
        if let Some(file) = present.layers().get(1).and_then(|layer| layer.file().host_file()) {
            share_with_readers(file);
        }
        self.keep_time(&frozen, present.leaf());
        let mut next = self.manifest.clone();
        next.pending = None;
        // INV-24: the frozen leaf is durable.
        self.write(next, "snapshot taken")
    }
}
