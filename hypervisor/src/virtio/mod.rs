//! virtio devices: what a device does is apart from how the guest reaches it.

pub(crate) mod block;
mod device;
mod interrupt;
pub(crate) mod mmio;
pub(crate) mod pci;
mod session;

pub(crate) use device::VirtioDevice;
pub(crate) use interrupt::{Interrupt, Line, Reason};
use session::Session;
