//! The files of a leaf, or of a whole chain, are changed by one who needs them alone, while requests are held.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhd_block::{BlockDevice as _, DeviceError, Users};

use super::layered::Reopened;
use super::live::hold;
use super::{LayeredDevice, LiveDevice};
use crate::error::with_causes;
use crate::image::{AmendError, Amendment, Image, OpenError, OpenMode, ParentLink};
use crate::storage::{StorageFile, WatchedFile};

/// Changes the file of a leaf, which nobody else uses meanwhile: everything in it is durable, and its unused end is cut
/// off. Whatever becomes of it, the file holds the leaf afterwards.
pub(super) type Rework<'a, E> = dyn FnOnce(Arc<dyn StorageFile>) -> Result<(), E> + 'a;

/// The same for the files of a whole chain, which its caller has.
pub(crate) type ReworkChain<'a, E> = dyn FnOnce() -> Reworked<E> + 'a;

/// What is done to files, of which the leaf's is given.
type Change<'a, E> = dyn FnOnce(Arc<dyn StorageFile>) -> Reworked<E> + 'a;

/// What became of files that were changed.
pub(crate) struct Reworked<E> {
    pub(crate) result: Result<(), E>,
    /// The disk is not to be written to any more: nobody can tell what a file holds, or the change is to be gone on with.
    pub(crate) read_only: bool,
}

/// Whose files are changed, and opened again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Leaf,
    Chain,
}

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
        let rework = |file| Reworked {
            result: rework(file),
            read_only: false,
        };
        self.rework(Scope::Leaf, Box::new(rework))
    }

    /// The same for the files of all layers. INV-47: whoever reads one of them in this process is held too, and goes on with
    /// the layers as they are afterwards.
    ///
    /// # Errors
    /// Those of flushing, of the change, and of opening the layers again.
    pub(crate) fn rework_chain<E: From<DeviceError>>(&self, rework: Box<ReworkChain<'_, E>>) -> Result<(), E> {
        self.rework(Scope::Chain, Box::new(|_| rework()))
    }

    fn rework<E: From<DeviceError>>(&self, scope: Scope, rework: Box<Change<'_, E>>) -> Result<(), E> {
        // So that little is left to be done while requests wait.
        self.flush()?;
        let views = match scope {
            Scope::Leaf => Vec::new(),
            Scope::Chain => self.views(),
        };
        let mut disks: Vec<&Self> = views.iter().map(|view| &**view).collect();
        // In one order, as in a switch.
        disks.sort_by_key(|disk| std::ptr::from_ref(*disk).addr());
        disks.push(self);
        // INV-74: no request runs from here on, nobody holds a place in the file, and a flush that does finds everything durable.
        let Some((mut held, _)) = hold(&disks, Users::All) else {
            return Err(DeviceError::PlaceHeld("the change of the disk's files").into());
        };
        let present = Arc::clone(held[held.len() - 1].value());
        present.flush()?;
        let leaf = present.leaf_image();
        leaf.freeze();
        leaf.settle().inspect_err(|_| close_to_writes(&present))?;
        let file = Arc::new(WatchedFile::new(Arc::clone(leaf.file())));
        let Reworked { result, read_only } = rework(Arc::clone(&file) as _);
        // INV-05: what a failed sync left of the file nobody can tell.
        let mode = match read_only || file.sync_failed() {
            true => OpenMode::read_only(),
            false => leaf.mode(),
        };
        match reopen(&present, scope, &mode) {
            Ok(reopened) => {
                for (disk, held) in disks.iter().zip(&mut held) {
                    let next = held.value().reopened(&reopened);
                    disk.size.store(next.size_bytes(), Ordering::Release);
                    held.replace(&Arc::new(next));
                }
                self.move_marks_to(&reopened);
                result
            }
            Err(error) => {
                let gone = DeviceError::Gone {
                    kind: error.kind().into(),
                    message: format!("its file can't be opened again: {}", with_causes(&error)),
                };
                tracing::error!(%gone, "a disk in use is lost to its users");
                disks.iter().for_each(|disk| disk.lose(&gone));
                result.and(Err(gone.into()))
            }
        }
    }
}

/// Opens layers anew in their open files: the leaf in this mode, and those below it for reading.
fn reopen(present: &LayeredDevice, scope: Scope, leaf: &OpenMode) -> Result<Vec<Reopened>, OpenError> {
    let count = match scope {
        Scope::Leaf => 1,
        Scope::Chain => present.layers().len(),
    };
    let former = (0..count).filter_map(|depth| Some((depth, Arc::clone(present.shared_image(depth)?))));
    let reopened = former.map(|(depth, former)| {
        let ancestor = OpenMode::ancestor().at_depth(depth);
        let mode = if depth == 0 { leaf } else { &ancestor };
        let now = Arc::new(Image::open(Arc::clone(former.file()), mode)?);
        Ok(Reopened { former, now })
    });
    reopened.collect()
}

/// A frozen leaf takes no writes; no flush succeeds any more either.
fn close_to_writes(device: &LayeredDevice) {
    if let Some(poison) = device.leaf().poison() {
        poison.set();
    }
}
