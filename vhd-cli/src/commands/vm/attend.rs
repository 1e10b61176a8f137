//! A machine from its name to its end: what `run`, `restore` and `snapshot apply` have in common.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use hypervisor::{End, Error, Machine, Reach, Sandbox, StateFile};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::console::{HINT, RawTerminal, pass_input};
use super::disks::OpenDisks;
use super::guest::Guest;
use super::reach::{self, Confinement};
use super::record::{Record, SavedDisk};
use super::run::{SandboxArgs, failed};
use super::snapshot::{Desk, Kept, Store, hold_directory, leave_directory, recover_before_start};
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
    pub(super) sandbox: Sandbox,
    /// Where it may open files besides.
    allowed: Reach,
    facts: Arc<Mutex<Option<Facts>>>,
    saving: Arc<Saving>,
    desk: Arc<Desk>,
    pub(super) confinement: Confinement,
}

/// How others reach the machine, whichever guest it has.
struct Front {
    _server: Option<Server>,
    _terminal: RawTerminal,
}

impl Attended {
    /// Takes the name. A machine that was given none runs without it too, and nobody finds it. What an interrupted command left
    /// of its snapshots is brought to an end.
    pub(super) fn new(
        name: Option<&MachineName>,
        events: Option<&Path>,
        sandbox: &SandboxArgs,
    ) -> Result<Self, Failure> {
        let claim = match name {
            Some(name) => Some(take_name(name.clone())?),
            None => take_name(MachineName::of_this_process())
                .inspect_err(|failure| {
                    output::warning(format_args!("`vhd vm list` will not find it: {}", failure.message()));
                })
                .ok(),
        };
        if let Some(claim) = &claim {
            recover_before_start(claim.name())?;
        }
        let name = claim
            .as_ref()
            .map_or_else(MachineName::of_this_process, |claim| claim.name().clone());
        Ok(Self {
            events: Arc::new(Events::open(&name, events)?),
            name,
            claim,
            disks: Arc::default(),
            sandbox: sandbox.mode(),
            allowed: sandbox.reach()?,
            console: Console::default(),
            facts: Arc::default(),
            saving: Arc::default(),
            desk: Arc::default(),
            confinement: Confinement::default(),
        })
    }

    pub(super) fn name(&self) -> &MachineName {
        &self.name
    }

    /// Says what the machine is, once that is known.
    pub(super) fn describe(&self, facts: Facts) {
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = Some(facts);
    }

    /// The disks are open, and no thread is there yet but this one. From here on the process opens by their paths only what is the
    /// machine's; all threads are started under that.
    pub(super) fn confine(&self) -> Result<(), Failure> {
        let reach = || {
            let claim = self.claim.as_ref();
            let lasting = claim.map(|claim| hold_directory(claim.name())).transpose()?;
            let place = claim.map(Claim::place);
            let mut reach = self.allowed.clone();
            self.disks.reach(&mut reach)?;
            reach::allow_machine(&mut reach, &self.name, place, lasting.flatten());
            Ok(reach)
        };
        self.confinement.begin(self.sandbox, reach)?;
        self.disks.listen()
    }

    /// Makes the machine and runs it to its end, and from each snapshot that it goes back to.
    pub(super) fn run(self, make: impl FnOnce(&Self) -> Result<Machine, Failure>) -> Result<Exit, Failure> {
        let mut front = None;
        let mut made = make(&self);
        let ended = loop {
            let ended = made.and_then(|machine| self.attend(machine, &mut front));
            let going_back = self.desk.guest_ended();
            let ended = self.close(ended);
            match (&ended, going_back) {
                (Ok(end), Some(snapshot)) if *end != End::Saved => made = self.go_back(&snapshot),
                _ => break ended,
            }
        };
        let failed = ended.as_ref().err();
        let gone = Failure::new(Kind::NoSuchMachine, format!("the machine {} has ended", self.name));
        self.desk.answer(Err(failed.unwrap_or(&gone)));
        self.events.say(&match &ended {
            Ok(end) => Event::ended(*end),
            Err(failure) => Event::failed(failure),
        });
        drop(front);
        if let Some(claim) = &self.claim {
            leave_directory(claim.name());
        }
        // The name is free again once the disks are.
        drop(self.claim);
        exit(ended?)
    }

    /// Whatever happened to the machine, the images are closed in order.
    fn close(&self, ended: Result<End, Failure>) -> Result<End, Failure> {
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
        ended.and_then(|end| completed.map(|()| end))
    }

    fn record(&self, disks: Vec<SavedDisk>) -> Record {
        let disks = disks.into_iter().map(SavedDisk::stamped).collect();
        Record::new(self.name.clone(), self.kernel(), disks)
    }

    /// The file of the kernel, for people.
    fn kernel(&self) -> String {
        let facts = self.facts.lock().unwrap_or_else(PoisonError::into_inner);
        facts.as_ref().map_or_else(String::new, |facts| facts.kernel.clone())
    }

    fn attend(&self, machine: Machine, front: &mut Option<Front>) -> Result<End, Failure> {
        let of_host = |error| failed(&self.kernel(), error);
        self.disks.belong_to(machine.handle());
        if front.is_none() {
            *front = Some(self.open_front()?);
        }
        self.desk.answer(Ok(()));
        machine.run().map_err(of_host)
    }

    /// The machine and its disks are made: nothing starts a program or changes the process from here on.
    fn open_front(&self) -> Result<Front, Failure> {
        let of_host = |error| failed(&self.kernel(), error);
        self.sandbox.confine_process().map_err(of_host)?;
        let listen = |claim| Server::listen(claim, Arc::new(Worker::new(self)));
        let server = self.claim.as_ref().map(listen).transpose()?;
        Ok(Front {
            _server: server,
            _terminal: attach(self.disks.guest()).map_err(of_host)?,
        })
    }

    /// Puts the disks back to a snapshot, and makes the machine that goes on from there.
    fn go_back(&self, snapshot: &str) -> Result<Machine, Failure> {
        let mut store = Store::of_running(&self.name, Arc::default())?;
        let kept = store.look_at(snapshot, &[])?;
        self.go_on_from(&mut store, kept)
    }

    /// The same from a snapshot that was looked at.
    pub(super) fn go_on_from(&self, store: &mut Store, mut kept: Kept) -> Result<Machine, Failure> {
        store.apply(&mut kept)?;
        let trust = |disk: &SavedDisk| kept.has_part(disk);
        let machine = self.restore(&kept.state, &kept.record, &trust);
        let machine = machine.map_err(|failure| failure.about(kept.file().display()))?;
        self.events.say(&Event::WentBack { snapshot: kept.name() });
        Ok(machine)
    }

    /// Makes a machine as it was saved. Of disks that are trusted it does not matter whether they were written since.
    pub(super) fn restore(
        &self,
        saved: &StateFile,
        record: &Record,
        trust: &dyn Fn(&SavedDisk) -> bool,
    ) -> Result<Machine, Failure> {
        let disks = self.disks.reopen(&record.disks, &saved.slots(), trust)?;
        self.confine()?;
        self.describe(Facts {
            name: self.name.clone(),
            kernel: record.kernel.clone(),
            machine: saved.machine_type().name(),
            cpus: saved.cpus(),
            memory: saved.memory(),
        });
        let machine = Machine::restore(saved, disks, Box::new(self.console.clone()), self.sandbox);
        machine.map_err(|error| failed(&record.kernel, error))
    }

    pub(super) fn saving(&self) -> Arc<Saving> {
        Arc::clone(&self.saving)
    }

    pub(super) fn desk(&self) -> Arc<Desk> {
        Arc::clone(&self.desk)
    }

    pub(super) fn facts(&self) -> Arc<Mutex<Option<Facts>>> {
        Arc::clone(&self.facts)
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

/// Gives the guest our terminal, and has signals end it.
fn attach(guest: Guest) -> Result<RawTerminal, Error> {
    let host = |operation| move |source| Error::Host { operation, source };
    let signals = Signals::new(SIGNALS).map_err(host("handle signals"))?;
    interrupt::is_handled_elsewhere(SIGNALS);
    stop_on_signals(signals, guest.clone());
    let terminal = RawTerminal::enter().map_err(host("prepare the terminal"))?;
    if terminal.is_terminal() {
        output::eprint(HINT);
    }
    pass_input(guest, terminal.is_terminal());
    Ok(terminal)
}

fn stop_on_signals(mut signals: Signals, guest: Guest) {
    thread::spawn(move || signals.forever().for_each(|_| guest.stop()));
}
