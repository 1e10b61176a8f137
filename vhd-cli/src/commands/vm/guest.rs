//! The guest of a machine, for those who have its disks, its console or its name.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hypervisor::MachineHandle;

use crate::in_use::Frontend;

/// The guest, as long as there is one: disks are opened before it comes, and closed after it. Another one may follow, when the
/// machine goes back to a snapshot.
#[derive(Clone, Default)]
pub(super) struct Guest(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    handle: Option<MachineHandle>,
    /// It is to end as soon as it is there.
    is_to_stop: bool,
}

impl Guest {
    pub(super) fn is_there(&self, handle: MachineHandle) {
        let mut state = self.state();
        if state.is_to_stop {
            handle.stop();
        }
        state.handle = Some(handle);
        drop(state);
        // What became larger meanwhile.
        self.look_at_sizes();
    }

    /// The handle has the disks in its hands, too.
    pub(super) fn is_gone(&self) {
        self.state().handle = None;
    }

    /// What it is controlled by.
    pub(super) fn handle(&self) -> Option<MachineHandle> {
        self.state().handle.clone()
    }

    /// Ends it as if its power was cut, or the one that is just being made.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        match &state.handle {
            Some(handle) => handle.stop(),
            None => state.is_to_stop = true,
        }
    }

    /// Gives it input on its console.
    pub(super) fn input(&self, bytes: &[u8]) {
        let handle = self.handle();
        handle.into_iter().for_each(|handle| handle.input(bytes));
    }

    fn look_at_sizes(&self) {
        // A machine that has ended needs to know nothing, and one of type `mmio` has no way to tell its guest.
        let _ = self.handle().map(|handle| handle.refresh_disks());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Frontend for Guest {
    fn resized(&self) {
        self.look_at_sizes();
    }
}
