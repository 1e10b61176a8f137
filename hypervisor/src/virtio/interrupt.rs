//! What a device says to its driver.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Bit of the interrupt status: buffers were used.
const USED: u32 = 1;
/// Bit of the interrupt status: the configuration or the device's status changed.
const CHANGED: u32 = 2;

/// The interrupt line of a device, with the reasons that are pending.
#[derive(Debug)]
pub(crate) struct Interrupt {
    event: EventFd,
    reasons: AtomicU32,
    needs_reset: AtomicBool,
}

impl Interrupt {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            event: EventFd::new(EFD_NONBLOCK)?,
            reasons: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        })
    }

    /// What is signalled, for KVM to inject.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Buffers were used.
    pub(crate) fn used(&self) {
        self.raise(USED);
    }

    /// The driver broke the rules: nothing is served until it resets the device.
    pub(crate) fn require_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(CHANGED);
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(crate) fn reasons(&self) -> u32 {
        self.reasons.load(Ordering::Acquire)
    }

    /// The driver has seen these reasons.
    pub(crate) fn acknowledge(&self, reasons: u32) {
        self.reasons.fetch_and(!reasons, Ordering::AcqRel);
    }

    pub(crate) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.reasons.store(0, Ordering::Release);
    }

    fn raise(&self, reason: u32) {
        self.reasons.fetch_or(reason, Ordering::AcqRel);
        // The counter cannot overflow: KVM takes what is written at once. Without KVM (in tests) nobody reads it, and
        // a full counter is a pending interrupt all the same.
        let _ = self.event.write(1);
    }
}
