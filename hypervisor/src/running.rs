//! A machine while it runs: what its owner's thread does until the guest ends.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use vhd_block::Disk;

use crate::bus::Bus;
use crate::cpu::Processors;
use crate::slots::Slots;
use crate::{End, Error};

/// How often processors are asked whether they halted for good. Nothing tells us: the guest has no ACPI to power off with,
/// and KVM waits by itself.
const HALT_CHECK: Duration = Duration::from_millis(500);
/// So many times in a row all of them must have halted: a processor may wake another between the questions.
const HALT_CHECKS: u32 = 2;

/// What happens to a machine that runs.
pub(crate) enum Event {
    /// The guest has ended, or is to end.
    Ended(Result<End, Error>),
    /// Another thread wants something done between two instructions of the guest, or while it waits.
    Do(Job),
}

/// Something to be done with a machine that runs.
pub(crate) type Job = Box<dyn FnOnce(&mut Running) + Send>;

/// A machine whose processors have their threads.
pub(crate) struct Running {
    processors: Processors,
    bus: Arc<Bus>,
    slots: Option<Arc<Slots>>,
    is_paused: bool,
}

impl Running {
    /// Takes over processors that are held.
    pub(crate) fn new(processors: Processors, bus: Arc<Bus>, slots: Option<Arc<Slots>>) -> Self {
        Self {
            processors,
            bus,
            slots,
            is_paused: true,
        }
    }

    /// Waits for the first report of an end, or until all processors have halted for good; does what is asked for meanwhile.
    pub(crate) fn until_end(&mut self, events: &Receiver<Event>) -> Result<End, Error> {
        let mut halted = 0;
        loop {
            match events.recv_timeout(HALT_CHECK) {
                Ok(Event::Ended(ended)) => return ended,
                Ok(Event::Do(job)) => {
                    job(self);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return Ok(End::Stopped),
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.is_paused {
                continue;
            }
            if let Some(slots) = &self.slots {
                slots.hotplug.remind();
            }
            halted = if self.processors.all_halted() { halted + 1 } else { 0 };
            if halted == HALT_CHECKS {
                return Ok(End::PowerOff);
            }
            self.processors.kick();
        }
    }

    /// Holds the processors, then the devices: on return nobody reads or writes guest memory, and no request to a disk is
    /// on its way.
    pub(crate) fn pause(&mut self) -> Result<(), Error> {
        if !self.is_paused {
            self.processors.pause()?;
            self.bus.for_each_device(&mut |device| device.pause());
            self.is_paused = true;
        }
        Ok(())
    }

    /// Lets a machine go on.
    pub(crate) fn resume(&mut self) {
        if self.is_paused {
            self.bus.for_each_device(&mut |device| device.resume());
            self.processors.resume();
            self.is_paused = false;
        }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Ends the processors, then the devices; returns the disks of the slots, which are still to be flushed.
    pub(crate) fn take_apart(self) -> Vec<Disk> {
        drop(self.processors);
        drop(self.bus);
        self.slots.map(|slots| slots.close()).unwrap_or_default()
    }
}
