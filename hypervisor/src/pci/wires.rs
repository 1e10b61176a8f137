//! What a function needs of KVM.

use vmm_sys_util::eventfd::EventFd;

/// An interrupt as a write to memory: where, and what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) address: u64,
    pub(crate) data: u32,
}

/// What a function needs of KVM. Failures are told by whoever does it: the guest cannot be told.
pub(crate) trait Wires: Send + Sync {
    /// What is signalled on this line sends the message from now on.
    fn route(&self, line: u32, message: Message);

    /// A write to `address` is signalled, and the processor goes on at once.
    fn connect_doorbell(&self, event: &EventFd, address: u64);

    /// It is signalled no longer.
    fn disconnect_doorbell(&self, event: &EventFd, address: u64);
}
