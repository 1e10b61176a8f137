//! What other threads do with a machine that runs.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;
use crate::legacy::Com1;
use crate::machine::{End, MachineDisk};
use crate::running::{Event, Running};
use crate::slots::Slots;
use crate::state::Saved;

/// What a machine is controlled by from other threads while it runs.
#[derive(Clone)]
pub struct MachineHandle {
    com1: Arc<Mutex<Com1>>,
    slots: Option<Arc<Slots>>,
    events: Sender<Event>,
}

impl MachineHandle {
    pub(crate) fn new(com1: Arc<Mutex<Com1>>, slots: Option<Arc<Slots>>, events: Sender<Event>) -> Self {
        Self { com1, slots, events }
    }

    /// Gives the guest input on its console. What is more than 64 KiB ahead of the guest is dropped.
    pub fn input(&self, bytes: &[u8]) {
        self.com1.lock().unwrap_or_else(PoisonError::into_inner).input(bytes);
    }

    /// Ends the machine as if its power was cut. What the guest has flushed stays.
    pub fn stop(&self) {
        // A machine that has ended already needs no stop.
        let _ = self.events.send(Event::Ended(Ok(End::Stopped)));
    }

    /// Presses the power button. It depends on the guest whether it powers off then.
    ///
    /// # Errors
    /// [`Error::NoPowerButton`] for a machine of another type than [`MachineType::Vhd1`](crate::MachineType::Vhd1).
    pub fn press_power_button(&self) -> Result<(), Error> {
        let slots = self.slots.as_ref().ok_or(Error::NoPowerButton)?;
        slots.hotplug.press_power_button();
        Ok(())
    }

    /// Holds the guest: on return no processor runs, and no request to a disk is on its way. Does nothing to a machine that
    /// is held. It waits for a machine that was made and does not run yet.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn pause(&self) -> Result<(), Error> {
        self.ask(Running::pause)
    }

    /// Lets the guest go on. Does nothing to a machine that is not held.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn resume(&self) -> Result<(), Error> {
        self.ask(|running| {
            running.resume();
            Ok(())
        })
    }

    /// Whether the guest is held.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn is_paused(&self) -> Result<bool, Error> {
        self.ask(|running| Ok(running.is_paused()))
    }

    /// Writes the machine to an empty file, and ends it with [`End::Saved`] when `commit` has taken it and given the file its name. The file is
    /// good for a restore when it was completed, after the disks are closed. Where something fails before, the machine goes
    /// on as it was.
    ///
    /// # Errors
    /// [`Error::State`] where it cannot be written, [`Error::Disk`] where a disk cannot be flushed, [`Error::Host`] for
    /// `commit`, [`Error::Kvm`], [`Error::Ended`].
    pub fn save(&self, file: File, commit: impl FnOnce(Saved) -> io::Result<()> + Send + 'static) -> Result<(), Error> {
        self.ask(|running| running.save(file, commit))
    }

    /// Writes the machine to an empty file and lets it go on. In between, while no processor runs and no request to a disk is on
    /// its way, `commit` is called on the machine's thread with what is to be completed; returns what it returned. It must not
    /// ask the machine for anything.
    ///
    /// # Errors
    /// As of [`save`](Self::save); then `commit` was not called.
    pub fn checkpoint<T: Send + 'static>(
        &self,
        file: File,
        commit: impl FnOnce(Saved) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.ask(|running| running.checkpoint(file, commit))
    }

    /// Gives the guest another disk while it runs, and says so to it; returns the slot, by which it is removed. A guest that
    /// has no driver for hot-plug does not look.
    ///
    /// # Errors
    /// [`Error::NoHotPlug`] for a machine of another type than [`MachineType::Vhd1`](crate::MachineType::Vhd1),
    /// [`Error::Disks`] where it has as many as it can have, [`Error::Ended`], and what KVM or the host cannot do.
    pub fn add_disk(&self, disk: MachineDisk) -> Result<usize, Error> {
        self.slots.as_ref().ok_or(Error::NoHotPlug)?.add(disk)
    }

    /// Asks the guest to let go of the disk in a slot: it takes as long as it wants. Returns whether it has, and then the
    /// disk is flushed and its slot free. Call it until then; the guest is asked again every five seconds.
    ///
    /// # Errors
    /// [`Error::NoHotPlug`], [`Error::NoDisk`], [`Error::Ended`], and [`Error::Disk`] where the disk cannot be flushed.
    pub fn remove_disk(&self, slot: usize) -> Result<bool, Error> {
        self.slots.as_ref().ok_or(Error::NoHotPlug)?.remove(slot)
    }

    /// Gives the disk in a slot another size in bytes, and says so to the guest.
    ///
    /// # Errors
    /// [`Error::NoHotPlug`], [`Error::NoDisk`], [`Error::Ended`], and [`Error::Disk`] where the disk cannot have that size.
    pub fn resize_disk(&self, slot: usize, size: u64) -> Result<(), Error> {
        self.slots.as_ref().ok_or(Error::NoHotPlug)?.resize(slot, size)
    }

    /// Says to the guest which disks have another size than it knows: for disks whose size others change.
    ///
    /// # Errors
    /// [`Error::NoHotPlug`]: a machine of another type has no way to say it.
    pub fn refresh_disks(&self) -> Result<(), Error> {
        self.slots.as_ref().ok_or(Error::NoHotPlug)?.refresh();
        Ok(())
    }

    /// Has the thread that runs the machine do something, and waits for it.
    pub(crate) fn ask<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Running) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let (answer, answers) = channel();
        let job = move |running: &mut Running| {
            // Whoever asked waits for the answer.
            let _ = answer.send(job(running));
        };
        self.events.send(Event::Do(Box::new(job))).map_err(|_| Error::Ended)?;
        answers.recv().map_err(|_| Error::Ended)?
    }
}
