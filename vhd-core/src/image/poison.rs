//! What a failed sync does to a disk.

use vhd_block::DeviceError;

use crate::sync::{AtomicBool, Ordering};

/// Set by a failed sync, for good. INV-05: what the system could not write it may have dropped, so a later
/// sync that succeeds proves nothing, and nothing is written any more.
#[derive(Debug)]
pub(crate) struct Poison(AtomicBool);

impl Poison {
    pub(crate) fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        if self.0.load(Ordering::Acquire) {
            Err(DeviceError::Poisoned)
        } else {
            Ok(())
        }
    }

    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn on_error<T>(&self, result: Result<T, DeviceError>) -> Result<T, DeviceError> {
        if result.is_err() {
            self.set();
        }
        result
    }
}
