//! A machine from its name to its end: what `run` and `restore` have in common.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::thread;

use hypervisor::{End, Error, Machine, Sandbox};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::console::{HINT, RawTerminal, pass_input};
use super::disks::OpenDisks;
use super::record::{Record, SavedDisk};
use super::run::failed;
use super::worker::{Claim, Console, Event, Events, Facts, MachineName, Saving, Server, Worker, take_name};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::interrupt;
use crate::output;

/// What ends a machine.
const SIGNALS: &[i32] = &[SIGTERM, SIGINT, SIGHUP];

/// What belongs to a machine that runs in this process.
pub(super) struct Attended {
    name: MachineName,
    /// Nothing where nobody will find it.
    claim: Option<Claim>,
    pub(super) disks: Arc<OpenDisks>,
    pub(super) console: Console,
    pub(super) events: Arc<Events>,
    sandbox: Sandbox,
    facts: OnceLock<Facts>,
    saving: Arc<Saving>,
}

impl Attended {
    /// Takes the name. A machine that was given none runs without it too, and nobody finds it.
    pub(super) fn new(name: Option<&MachineName>, events: Option<&Path>, sandbox: Sandbox) -> Result<Self, Failure> {
        let claim = match name {
            Some(name) => Some(take_name(name.clone())?),
            None => take_name(MachineName::of_this_process())
                .inspect_err(|failure| {
                    output::warning(format_args!("`vhd vm list` will not find it: {}", failure.message()));
                })
                .ok(),
        };
        let name = claim
            .as_ref()
            .map_or_else(MachineName::of_this_process, |claim| claim.name().clone());
        Ok(Self {
            events: Arc::new(Events::open(&name, events)?),
            name,
            claim,
            disks: Arc::default(),
            sandbox,
            console: Console::default(),
            facts: OnceLock::new(),
            saving: Arc::default(),
        })
    }

    pub(super) fn name(&self) -> &MachineName {
        &self.name
    }

    /// Says what the machine is, once that is known.
    pub(super) fn describe(&self, facts: Facts) {
        // It is said once.
        let _ = self.facts.set(facts);
    }

    /// Makes the machine and runs it to its end.
    pub(super) fn run(self, make: impl FnOnce(&Self) -> Result<Machine, Failure>) -> Result<Exit, Failure> {
        let ended = make(&self).and_then(|machine| self.attend(machine));
        // Whatever happened to the machine, the images are closed in order.
        // INV-75: the chains are described when no command can change them any more.
        self.disks.stop();
        let disks = self.disks.describe();
        let closed = self.disks.close();
        let ended = ended.and_then(|end| closed.map(|()| end));
        // INV-86: the file of a saved machine is complete only when its disks are.
        let completed = match (&ended, disks) {
            (Ok(End::Saved), Ok(disks)) => self.saving.complete(Ok(self.record(disks).bytes())),
            (Ok(End::Saved), Err(failure)) => self.saving.complete(Err(&failure)).and(Err(failure)),
            (Ok(_), _) => Ok(()),
            (Err(failure), _) => self.saving.complete(Err(failure)),
        };
        let ended = ended.and_then(|end| completed.map(|()| end));
        self.events.say(&match &ended {
            Ok(end) => Event::ended(*end),
            Err(failure) => Event::failed(failure),
        });
        // The name is free again once the disks are.
        drop(self.claim);
        exit(ended?)
    }

    fn record(&self, disks: Vec<SavedDisk>) -> Record {
        let kernel = self.facts.get().map_or_else(String::new, |facts| facts.kernel.clone());
        let disks = disks.into_iter().map(SavedDisk::stamped).collect();
        Record::new(self.name.clone(), kernel, disks)
    }

    fn attend(&self, machine: Machine) -> Result<End, Failure> {
        let facts = self
            .facts
            .get()
            .expect("whoever made the machine has said what it is")
            .clone();
        let kernel = facts.kernel.clone();
        let handle = machine.handle();
        self.disks.belong_to(handle.clone());
        let worker = Worker::new(facts, handle, self);
        let listen = |claim| Server::listen(claim, Arc::new(worker));
        // The machine and its disks are made: nothing starts a program or changes the process from here on.
        self.sandbox.confine_process().map_err(|error| failed(&kernel, error))?;
        let _server = self.claim.as_ref().map(listen).transpose()?;
        run_attended(machine).map_err(|error| failed(&kernel, error))
    }

    pub(super) fn saving(&self) -> Arc<Saving> {
        Arc::clone(&self.saving)
    }
}

fn exit(end: End) -> Result<Exit, Failure> {
    match end {
        End::PowerOff | End::Saved => Ok(Exit::Ok),
        End::Reset => Ok(Exit::GuestReset),
        End::Panic => Ok(Exit::GuestPanic),
        End::Stopped => {
            let message =
                "the machine was ended before the guest powered off; what the guest has flushed is on its disks";
            Err(Failure::new(Kind::GuestStopped, message))
        }
    }
}

/// Runs a machine whose console is ours.
fn run_attended(machine: Machine) -> Result<End, Error> {
    let terminal_failed = |source| Error::Host {
        operation: "prepare the terminal",
        source,
    };
    let signals = Signals::new(SIGNALS).map_err(|source| Error::Host {
        operation: "handle signals",
        source,
    })?;
    interrupt::is_handled_elsewhere(SIGNALS);
    stop_on_signals(signals, &machine);
    let terminal = RawTerminal::enter().map_err(terminal_failed)?;
    if terminal.is_terminal() {
        output::eprint(HINT);
    }
    pass_input(machine.handle(), terminal.is_terminal());
    machine.run()
}

fn stop_on_signals(mut signals: Signals, machine: &Machine) {
    let handle = machine.handle();
    thread::spawn(move || signals.forever().for_each(|_| handle.stop()));
}
