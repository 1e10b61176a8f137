//! Snapshots of the machine that runs in this process.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

use super::{Event, Worker};
use crate::commands::vm::record::{Record, SavedDisk};
use crate::commands::vm::snapshot::{LivePart, Store, Taken, Turn};
use crate::failure::Failure;
use crate::output;

impl Worker {
    /// Keeps the state of the machine: while the guest is held, its memory is written and its disks switch to new files.
    pub(super) fn take_snapshot(&self, name: &str, turn: &Turn<'_>) -> Result<Taken, Failure> {
        let (store, running) = self.store(turn)?;
        let taken = self.take(name, store, running);
        match &taken {
            Ok(_) => self.events.say(&Event::SnapshotTaken { snapshot: name }),
            // What cannot be undone now is left to the next command.
            Err(_) => {
                if let Err(left) = self
                    .open_store(turn)
                    .and_then(|(mut store, running)| store.recover(&running))
                {
                    output::warning(left.message());
                }
            }
        }
        taken
    }

    fn take(&self, name: &str, store: Store, running: Vec<LivePart>) -> Result<Taken, Failure> {
        self.disks.require_keepable()?;
        let handle = self.handle()?;
        let kernel = self.facts().map_or_else(String::new, |facts| facts.kernel);
        let (machine, disks) = (self.name.clone(), Arc::clone(&self.disks));
        let announced = store.announce(name, running)?;
        let record = move || {
            let disks = disks.describe()?.into_iter().map(SavedDisk::stamped).collect();
            Ok(Record::new(machine, kernel, disks).bytes())
        };
        let file = announced.file()?;
        let held = Instant::now();
        let taken = handle.checkpoint(file, move |saved| announced.complete(saved, record, held));
        taken.map_err(|error| self.failed(error))?
    }

    /// Deletes a snapshot; returns why files of it stay for now.
    pub(super) fn delete_snapshot(&self, name: &str) -> Result<Vec<String>, Failure> {
        let turn = self.desk.turn(&self.name)?;
        let (mut store, running) = self.store(&turn)?;
        let waiting = store.delete(name, &running)?;
        self.events.say(&Event::SnapshotDeleted { snapshot: name });
        Ok(waiting)
    }

    /// Ends the guest, so that the machine goes on from a snapshot; the client is answered then. All that can be refused is
    /// refused before.
    pub(super) fn go_back(&self, name: &str, first: Option<&str>, client: UnixStream) -> Result<(), Failure> {
        let turn = self.desk.turn(&self.name)?;
        let (store, running) = self.store(&turn)?;
        store.look_at(name, &running)?;
        drop((store, running));
        if let Some(first) = first {
            self.keep_and_hold(first, &turn)?;
        }
        turn.go_back(name, client);
        self.guest.stop();
        Ok(())
    }

    /// Keeps the state of the machine, which does not go on from it.
    fn keep_and_hold(&self, name: &str, turn: &Turn<'_>) -> Result<(), Failure> {
        let handle = self.handle()?;
        let was_paused = handle.is_paused().map_err(|error| self.failed(error))?;
        handle.pause().map_err(|error| self.failed(error))?;
        let taken = self.take_snapshot(name, turn).map(drop);
        if taken.is_err() && !was_paused {
            handle.resume().map_err(|error| self.failed(error))?;
        }
        taken
    }

    /// The snapshots of this machine, after an interrupted command was brought to its end, and its disks that can have some.
    fn store(&self, turn: &Turn<'_>) -> Result<(Store, Vec<LivePart>), Failure> {
        let (mut store, running) = self.open_store(turn)?;
        store.recover_loudly(&running)?;
        Ok((store, running))
    }

    fn open_store(&self, turn: &Turn<'_>) -> Result<(Store, Vec<LivePart>), Failure> {
        Ok((Store::of_running(&self.name, turn.cancel())?, self.disks.parts()?))
    }
}
