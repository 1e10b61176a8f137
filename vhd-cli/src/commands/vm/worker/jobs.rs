//! What others ask of a machine, done.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hypervisor::{Error, MachineHandle};

use super::events::now;
use super::message::{Answer, Job, MachineInfo, Named};
use super::saving::Pending;
use super::{Console, Event, Events, MachineName, Saving};
use crate::codes::Kind;
use crate::commands::vm::attend::Attended;
use crate::commands::vm::disk_spec::DiskSpec;
use crate::commands::vm::disks::{Elsewhere, OpenDisks};
use crate::commands::vm::guest::Guest;
use crate::commands::vm::passed::Passed;
use crate::commands::vm::reach::Confinement;
use crate::commands::vm::run::failed;
use crate::commands::vm::snapshot::Desk;
use crate::control::descriptors::receive_files;
use crate::control::line::{PATIENCE, receive, send};
use crate::failure::Failure;
use crate::input::Source;

/// How long a command may take to open a disk.
const OPENING: Duration = Duration::from_secs(60);

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

/// The files of a disk, opened by the client.
fn ask_for_disk(client: &UnixStream) -> io::Result<(Passed, Vec<OwnedFd>)> {
    send(client, &Answer::Outside)?;
    // It looks for those that rely on the disk.
    let passed: Passed = receive(client, Some(Instant::now() + OPENING))?;
    let files = receive_files(client, passed.files.len(), PATIENCE)?;
    Ok((passed, files))
}

/// Has the client give the file its name, while the machine is held.
fn require_name(client: &UnixStream) -> io::Result<()> {
    send(client, &Answer::Written)?;
    match receive::<Named>(client, Some(Instant::now() + PATIENCE))?.failed {
        None => Ok(()),
        Some(reason) => Err(io::Error::other(reason)),
    }
}

fn not_passed(error: io::Error) -> Failure {
    let message = format!("the command did not pass what it said it would: {error}");
    Failure::new(Kind::MachineControl, message)
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
    confinement: Confinement,
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
            confinement: attended.confinement.clone(),
        }
    }

    /// Writes the machine to a file and ends it; whoever has the disks completes the file and answers the client.
    pub(super) fn save(&self, file: String, client: UnixStream) -> Result<(), Failure> {
        let passed = receive_files(&client, 1, PATIENCE).map_err(not_passed)?;
        let _turn = self.desk.turn(&self.name)?;
        self.disks.require_lasting()?;
        let (saving, about) = (Arc::clone(&self.saving), file.clone());
        let into = passed.into_iter().next().map(File::from);
        let into = into.ok_or_else(|| not_passed(io::ErrorKind::UnexpectedEof.into()))?;
        let saved = self.handle()?.save(into, move |saved| {
            require_name(&client)?;
            saving.put(Pending { saved, file, client });
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
            Job::Console | Job::DiskAdd { .. } | Job::SaveInto { .. } | Job::SnapshotApply { .. } => {}
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
            files: self.confinement.describe(),
            disks: self.disks.info(),
        })
    }

    /// Files that the process may not open come from the client. A layer that is thrown away is among them.
    pub(super) fn add_disk(&self, disk: DiskSpec, client: &UnixStream) -> Result<(), Failure> {
        let _turn = self.desk.turn(&self.name)?;
        let is_near = self.confinement.reaches(&disk.path());
        let must_be_here = Source::or_remote(&disk.path(), None)?.remote().is_some() || disk.resizable && is_near;
        let ask = || ask_for_disk(client).map_err(not_passed);
        let elsewhere: Option<Elsewhere<'_>> = match must_be_here || self.confinement.is_off() {
            true => None,
            false => Some(&ask),
        };
        let is_tried = is_near && !disk.snapshot;
        let (id, of_machine) = self.disks.add(disk, is_tried, elsewhere)?;
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
