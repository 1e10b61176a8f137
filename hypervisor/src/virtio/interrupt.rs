//! What a device says to its driver.

use std::fmt::Debug;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use vmm_sys_util::eventfd::EventFd;

/// Why a driver is interrupted; the values are bits of the interrupt status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Buffers were used.
    Used = 1,
    /// The configuration or the device's status changed.
    Changed = 2,
}

/// How an interrupt gets to the guest.
pub(crate) trait Line: Debug + Send + Sync {
    /// Interrupts the driver.
    fn signal(&self, reason: Reason);
}

/// An edge of an interrupt line, whatever the reason.
impl Line for EventFd {
    fn signal(&self, _: Reason) {
        // The counter cannot overflow: KVM takes what is written at once. Without KVM (in tests) nobody reads it, and
        // a full counter is a pending interrupt all the same.
        let _ = self.write(1);
    }
}

/// The interrupt of a device, with the reasons that are pending.
#[derive(Debug)]
pub(crate) struct Interrupt {
    line: Box<dyn Line>,
    reasons: AtomicU32,
    needs_reset: AtomicBool,
}

impl Interrupt {
    pub(crate) fn new(line: impl Line + 'static) -> Self {
        Self {
            line: Box::new(line),
            reasons: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
        }
    }

    /// Buffers were used.
    pub(crate) fn used(&self) {
        self.raise(Reason::Used);
    }

    /// The configuration changed.
    pub(crate) fn changed(&self) {
        self.raise(Reason::Changed);
    }

    /// The driver broke the rules: nothing is served until it resets the device.
    pub(crate) fn require_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.raise(Reason::Changed);
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

    /// The pending reasons, which the driver has seen with that.
    pub(crate) fn take_reasons(&self) -> u32 {
        self.reasons.swap(0, Ordering::AcqRel)
    }

    /// Becomes what was saved.
    pub(crate) fn restore(&self, reasons: u32, needs_reset: bool) {
        self.needs_reset.store(needs_reset, Ordering::Release);
        self.reasons.store(reasons, Ordering::Release);
    }

    pub(crate) fn reset(&self) {
        self.needs_reset.store(false, Ordering::Release);
        self.reasons.store(0, Ordering::Release);
    }

    fn raise(&self, reason: Reason) {
        self.reasons.fetch_or(reason as u32, Ordering::AcqRel);
        self.line.signal(reason);
    }
}
