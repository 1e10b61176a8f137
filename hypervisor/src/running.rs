//! A machine while it runs: what its owner's thread does until the guest ends.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use vhd_block::Disk;

use crate::bus::Bus;
use crate::cpu::Processors;
use crate::error::host;
use crate::kvm::Vm;
use crate::mem;
use crate::slots::Slots;
use crate::state::{self, Saved, SavedState, section};
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

/// What a machine has besides its processors.
pub(crate) struct Parts {
    pub(crate) bus: Arc<Bus>,
    pub(crate) slots: Option<Arc<Slots>>,
    /// Those that are in no slot.
    pub(crate) disks: Vec<Disk>,
    pub(crate) vm: Arc<Vm>,
    /// What it is.
    pub(crate) identity: state::Machine,
}

/// A machine whose processors have their threads.
pub(crate) struct Running {
    processors: Processors,
    bus: Arc<Bus>,
    slots: Option<Arc<Slots>>,
    /// Those that are in no slot.
    disks: Vec<Disk>,
    vm: Arc<Vm>,
    identity: state::Machine,
    is_paused: bool,
    /// How it ends when what is being done is done.
    end: Option<End>,
}

impl Running {
    /// Takes over processors that are held.
    pub(crate) fn new(processors: Processors, parts: Parts) -> Self {
        let Parts {
            bus,
            slots,
            disks,
            vm,
            identity,
        } = parts;
        Self {
            processors,
            bus,
            slots,
            disks,
            vm,
            identity,
            is_paused: true,
            end: None,
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
                    match self.end.take() {
                        Some(end) => return Ok(end),
                        None => continue,
                    }
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

    /// Writes the machine to an empty file and ends it, when `commit` has given the file its name. If something of that fails,
    /// the machine goes on as it was.
    pub(crate) fn save(&mut self, file: File, commit: impl FnOnce(Saved) -> io::Result<()>) -> Result<(), Error> {
        let was_paused = self.is_paused;
        self.pause()?;
        let named = |saved| commit(saved).map_err(host("give the file its name"));
        let saved = self.write(file).and_then(named);
        match &saved {
            Ok(()) => self.end = Some(End::Saved),
            Err(_) if !was_paused => self.resume(),
            Err(_) => {}
        }
        saved
    }

    /// Writes the machine to an empty file while it is held, and has `commit` called before it goes on. It goes on whatever comes of
    /// that; a machine that was held before stays so.
    pub(crate) fn checkpoint<T>(&mut self, file: File, commit: impl FnOnce(Saved) -> T) -> Result<T, Error> {
        let was_paused = self.is_paused;
        self.pause()?;
        let committed = self.write(file).map(commit);
        if !was_paused {
            self.resume();
        }
        committed
    }

    /// INV-86: what a disk cannot make durable is noticed while the machine can still go on.
    fn write(&self, file: File) -> Result<Saved, Error> {
        let in_slots = self.slots.as_ref().map(|slots| slots.open_disks()).unwrap_or_default();
        self.disks.iter().chain(&in_slots).try_for_each(Disk::flush)?;
        let processors = self.vm.save_processors(&self.processors)?;
        let mut sections = vec![section("cpuid", 0, self.vm.cpu_table())];
        sections.extend(
            (0..)
                .zip(&processors)
                .map(|(number, one)| section("processor", number, one)),
        );
        sections.push(section("interrupts", 0, &self.vm.save_interrupts()?));
        sections.extend(self.bus.save());
        let memory = mem::backing(self.vm.memory()).ok_or(Error::Ended)?;
        let machine = self.identity.clone();
        Ok(state::write(SavedState { machine, sections }, memory, file)?)
    }

    /// Ends the processors, then the devices; returns the disks, which are still to be flushed.
    pub(crate) fn take_apart(self) -> Vec<Disk> {
        drop(self.processors);
        drop(self.bus);
        let mut disks = self.disks;
        disks.extend(self.slots.map(|slots| slots.close()).unwrap_or_default());
        disks
    }
}
