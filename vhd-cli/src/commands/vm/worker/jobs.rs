//! What others ask of a machine, done.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hypervisor::{Error, MachineHandle};
use vhd_core::storage::{StagedFile, StorageError, StorageFile as _};

use super::events::now;
use super::message::{Answer, Job, MachineInfo};
use super::saving::Pending;
use super::{Console, Event, Events, MachineName, Saving};
use crate::codes::Kind;
use crate::commands::vm::attend::Attended;
use crate::commands::vm::disk_spec::DiskSpec;
use crate::commands::vm::disks::OpenDisks;
use crate::commands::vm::guest::Guest;
use crate::commands::vm::run::failed;
use crate::commands::vm::snapshot::Desk;
use crate::failure::Failure;

/// What does not change about a machine.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) name: MachineName,
    /// The file of the kernel.
    pub(crate) kernel: String,
    pub(crate) machine: &'static str,
    pub(crate) cpus: u8,
    /// Bytes.
    pub(crate) memory: u64,
}

/// A machine that runs in this process.
pub(crate) struct Worker {
    pub(super) name: MachineName,
    facts: Arc<Mutex<Option<Facts>>>,
    started: String,
    pub(super) guest: Guest,
    pub(super) disks: Arc<OpenDisks>,
    console: Console,
    pub(super) events: Arc<Events>,
    saving: Arc<Saving>,
    pub(super) desk: Arc<Desk>,
}

impl Worker {
    pub(crate) fn new(attended: &Attended) -> Self {
        Self {
            name: attended.name().clone(),
            facts: attended.facts(),
            started: now(),
            guest: attended.disks.guest(),
            disks: Arc::clone(&attended.disks),
            console: attended.console.clone(),
            events: Arc::clone(&attended.events),
            saving: attended.saving(),
            desk: attended.desk(),
        }
    }

    /// Writes the machine to a file and ends it; whoever has the disks completes the file and answers the client.
    pub(super) fn save(&self, path: PathBuf, client: UnixStream) -> Result<(), Failure> {
        if path.symlink_metadata().is_ok() {
            return Err(StorageError::Exists { path }.into());
        }
        let _turn = self.desk.turn(&self.name)?;
        self.disks.require_lasting()?;
        let staged = StagedFile::create_beside(&path)?;
        let storage = staged.storage();
        let host_file = storage.host_file().expect("it was just created on this host");
        let file = host_file
            .try_clone()
            .map_err(|error| Failure::io("write", &path, &error))?;
        let (saving, about) = (Arc::clone(&self.saving), path.display().to_string());
        let saved = self.handle()?.save(file, move |saved| {
            staged.publish(false, false).map_err(io::Error::other)?;
            saving.put(Pending { saved, path, client });
            Ok(())
        });
        saved.map_err(|error| self.failed(error).about(about))
    }

    /// Does what is asked for.
    pub(super) fn answer(&self, job: Job) -> Result<Answer, Failure> {
        match job {
            Job::Info => return self.info().map(Answer::Info),
            Job::Pause => {
                self.handle()?.pause().map_err(|error| self.failed(error))?;
                self.events.say(&Event::Paused);
            }
            Job::Resume => {
                self.handle()?.resume().map_err(|error| self.failed(error))?;
                self.events.say(&Event::Resumed);
            }
            Job::Stop { force: true } => self.guest.stop(),
            Job::Stop { force: false } => self.press_power_button()?,
            Job::DiskAdd { disk } => self.add_disk(disk)?,
            Job::DiskRemove { id } => return self.remove_disk(&id),
            Job::DiskResize { id, size, shrink } => {
                let _turn = self.desk.turn(&self.name)?;
                self.disks.require_growth(&id, size, shrink)?;
                let slot = self.disks.slot(&id)?;
                self.handle()?
                    .resize_disk(slot, size)
                    .map_err(|error| self.failed(error))?;
                self.events.say(&Event::DiskResized { id: &id, size });
            }
            Job::SnapshotCreate { name } => {
                let turn = self.desk.turn(&self.name)?;
                return self.take_snapshot(&name, &turn).map(Answer::Taken);
            }
            Job::SnapshotDelete { name } => return self.delete_snapshot(&name).map(Answer::Deleted),
            // They are not answered like others.
            Job::Console | Job::Save { .. } | Job::SnapshotApply { .. } => {}
        }
        Ok(Answer::Done)
    }

    /// Passes the console on until the client goes away.
    pub(super) fn attach(&self, mut client: &UnixStream) -> io::Result<()> {
        client.set_read_timeout(None)?;
        self.console.attach(client.try_clone()?);
        let mut typed = [0; 1024];
        loop {
            match client.read(&mut typed) {
                // It may still listen.
                Ok(0) => return Ok(()),
                Ok(len) => self.guest.input(&typed[..len]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn info(&self) -> Result<MachineInfo, Failure> {
        let is_paused = self.handle()?.is_paused().map_err(|error| self.failed(error))?;
        let Facts {
            name,
            kernel,
            machine,
            cpus,
            memory,
        } = self.facts().ok_or_else(|| self.ended())?;
        Ok(MachineInfo {
            name,
            pid: std::process::id(),
            state: if is_paused { "paused" } else { "running" }.to_owned(),
            machine: machine.to_owned(),
            cpus,
            memory,
            started: self.started.clone(),
            kernel,
            disks: self.disks.info(),
        })
    }

    fn add_disk(&self, disk: DiskSpec) -> Result<(), Failure> {
        let _turn = self.desk.turn(&self.name)?;
        let (id, of_machine) = self.disks.add(disk)?;
        match self.handle()?.add_disk(of_machine) {
            Ok(slot) => self.disks.put(&id, slot),
            Err(error) => {
                // It was not given to the machine, and is closed again.
                self.disks.close_one(&id)?;
                return Err(self.failed(error));
            }
        }
        self.events.say(&Event::DiskAdded { id: &id });
        Ok(())
    }

    fn remove_disk(&self, id: &str) -> Result<Answer, Failure> {
        let _turn = self.desk.turn(&self.name)?;
        let slot = self.disks.slot(id)?;
        if !self.handle()?.remove_disk(slot).map_err(|error| self.failed(error))? {
            return Ok(Answer::Waits);
        }
        self.disks.close_one(id)?;
        self.events.say(&Event::DiskRemoved { id });
        Ok(Answer::Done)
    }

    /// A guest that is held would not notice.
    fn press_power_button(&self) -> Result<(), Failure> {
        if self.handle()?.is_paused().map_err(|error| self.failed(error))? {
            let message = format!(
                "the machine {} is paused, and so does not notice its power button; resume it first, or stop it with --force",
                self.name
            );
            return Err(Failure::new(Kind::MachineCannot, message));
        }
        self.handle()?
            .press_power_button()
            .map_err(|error| self.failed(error))?;
        self.events.say(&Event::PowerButton);
        Ok(())
    }

    /// The guest that there is.
    pub(super) fn handle(&self) -> Result<MachineHandle, Failure> {
        self.guest.handle().ok_or_else(|| self.ended())
    }

    pub(super) fn facts(&self) -> Option<Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ended(&self) -> Failure {
        self.desk.gone(&self.name)
    }

    pub(super) fn failed(&self, error: Error) -> Failure {
        match error {
            Error::Ended => self.ended(),
            error => failed(&self.facts().map_or_else(String::new, |facts| facts.kernel), error),
        }
    }
}
