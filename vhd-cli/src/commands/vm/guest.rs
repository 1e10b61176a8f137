//! The guest of a machine, for those who have its disks.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::MachineHandle;

use crate::in_use::Frontend;

/// The guest, as long as there is one: disks are opened before it comes, and closed after it.
#[derive(Clone, Default)]
pub(super) struct Guest(Arc<Mutex<Option<MachineHandle>>>);

impl Guest {
    pub(super) fn is_there(&self, handle: MachineHandle) {
        *self.handle() = Some(handle);
        // What became larger meanwhile.
        self.look_at_sizes();
    }

    /// The handle has the disks in its hands, too.
    pub(super) fn is_gone(&self) {
        *self.handle() = None;
    }

    fn look_at_sizes(&self) {
        let handle = self.handle().clone();
        // A machine that has ended needs to know nothing, and one of type `mmio` has no way to tell its guest.
        let _ = handle.map(|handle| handle.refresh_disks());
    }

    fn handle(&self) -> MutexGuard<'_, Option<MachineHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frontend for Guest {
    fn resized(&self) {
        self.look_at_sizes();
    }
}
