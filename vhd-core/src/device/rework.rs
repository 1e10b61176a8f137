//! The file of a leaf is changed by one who needs it alone, while requests are held.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhd_block::{BlockDevice as _, DeviceError, Users};

use super::live::hold;
use super::{LayeredDevice, LiveDevice};
use crate::error::with_causes;
use crate::image::{AmendError, Amendment, Image, OpenMode, ParentLink};
use crate::storage::{StorageFile, WatchedFile};

/// Changes the file of a leaf, which nobody else uses meanwhile: everything in it is durable, and its unused end is cut
/// off. Whatever becomes of it, the file holds the leaf afterwards.
pub(super) type Rework<'a, E> = dyn FnOnce(Arc<dyn StorageFile>) -> Result<(), E> + 'a;

impl LiveDevice {
    /// Makes the leaf name another parent, durably, in one step (INV-18), while requests are held. The new parent reads what
    /// the layers below the leaf read.
    ///
    /// # Errors
    /// Those of writing: then the old parent or the new one counts.
    pub fn point_leaf(&self, parent: ParentLink) -> Result<(), AmendError> {
        self.rework_leaf(Box::new(|file| {
            let image = Image::open(file, &OpenMode::read_write())?;
            let amendment = Amendment {
                parent: Some(parent),
                ..image.amendment()
            };
            image.amend(&amendment)
        }))
    }

    /// Closes the leaf, lets somebody change its file, and opens it again, while requests are held: none of them fails. The
    /// file stays open and locked throughout. If a sync failed the disk is read from then on and not written to; if the
    /// leaf can't be opened again every request fails.
    ///
    /// # Errors
    /// Those of flushing, of the change, and of opening the leaf again.
    pub(crate) fn rework_leaf<E: From<DeviceError>>(&self, rework: Box<Rework<'_, E>>) -> Result<(), E> {
        // So that little is left to be done while requests wait.
        self.flush()?;
        // INV-74: no request runs from here on, nobody holds a place in the file, and a flush that does finds everything durable.
        let Some((mut held, _)) = hold(&[self], Users::All) else {
            return Err(DeviceError::PlaceHeld("the change of the leaf's file").into());
        };
        let held = &mut held[0];
        let present = Arc::clone(held.value());
        present.flush()?;
        let leaf = present.leaf_image();
        leaf.freeze();
        leaf.settle().inspect_err(|_| close_to_writes(&present))?;
        let file = Arc::new(WatchedFile::new(Arc::clone(leaf.file())));
        let reworked = rework(Arc::clone(&file) as _);
        // INV-05: what a failed sync left of the file nobody can tell.
        let mode = match file.sync_failed() {
            true => OpenMode::read_only(),
            false => leaf.mode(),
        };
        match Image::open(Arc::clone(leaf.file()), &mode) {
            Ok(image) => {
                let next = present.with_leaf(image);
                self.size.store(next.size_bytes(), Ordering::Release);
                held.replace(&Arc::new(next));
                reworked
            }
            Err(error) => {
                let gone = DeviceError::Gone {
                    kind: error.kind().into(),
                    message: format!("its file can't be opened again: {}", with_causes(&error)),
                };
                tracing::error!(%gone, "a disk in use is lost to its users");
                self.lose(&gone);
                reworked.and(Err(gone.into()))
            }
        }
    }
}

/// A frozen leaf takes no writes; no flush succeeds any more either.
fn close_to_writes(device: &LayeredDevice) {
    if let Some(poison) = device.leaf().poison() {
        poison.set();
    }
}
