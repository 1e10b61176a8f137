//! virtio devices: what a device does is apart from how the guest reaches it.

pub(crate) mod block;
mod device;
mod interrupt;
pub(crate) mod mmio;
pub(crate) mod pci;
mod queue;
mod queue_thread;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod ring;
pub(crate) mod rng;
mod session;

pub(crate) use device::VirtioDevice;
pub(crate) use interrupt::{Interrupt, Line, Reason};
use session::Session;

use crate::state::StateError;

/// The features that a device goes on with, of those that it has: what it offered when it was saved.
///
/// # Errors
/// One of them is none that it has.
fn offer_again(offered: u64, saved: u64) -> Result<u64, StateError> {
    match saved & !offered {
        0 => Ok(saved),
        missing => Err(StateError::Features { missing }),
    }
}
