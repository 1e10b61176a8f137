//! The threads of the processors.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use super::Vcpu;
use super::vcpu::Exit;
use crate::Error;
use crate::bus::Bus;
use crate::error::host;
use crate::running::Event;
use crate::sandbox::{Sandbox, Task};
use crate::state::Processor;

/// How long a thread is given to notice that it is to end, before it is interrupted once more: the signal may come just
/// before it enters the guest.
const KICK_AGAIN: Duration = Duration::from_millis(5);

/// The processors of a machine while they run. Dropping ends them.
pub(crate) struct Processors {
    vcpus: Vec<Arc<Mutex<Vcpu>>>,
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    signal: libc::c_int,
}

struct Shared {
    ends: AtomicBool,
    /// Which of them had halted for good when they were interrupted last.
    halted: Vec<AtomicBool>,
    gate: Mutex<Gate>,
    changed: Condvar,
}

/// What all threads pass before they enter the guest.
struct Gate {
    closed: bool,
    /// Threads that are not held at the gate.
    outside: usize,
    /// One of them has reported an end or a failure: the guest does not go on.
    has_ended: bool,
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, Gate> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits while the gate is closed; returns whether the processor is to go on.
    fn pass(&self) -> bool {
        let mut gate = self.gate();
        if gate.closed {
            gate.outside -= 1;
            self.changed.notify_all();
            while gate.closed && !self.ends.load(Ordering::Acquire) {
                gate = self.changed.wait(gate).unwrap_or_else(PoisonError::into_inner);
            }
            gate.outside += 1;
        }
        !self.ends.load(Ordering::Acquire)
    }

    /// A thread is gone.
    fn leave(&self, has_ended: bool) {
        let mut gate = self.gate();
        gate.outside -= 1;
        gate.has_ended |= has_ended;
        self.changed.notify_all();
    }
}

impl Processors {
    /// Starts a thread for each, held until [`resume`](Self::resume). The first end or failure of each is reported.
    pub(crate) fn start(
        vcpus: Vec<Vcpu>,
        bus: &Arc<Bus>,
        report: &Sender<Event>,
        sandbox: Sandbox,
    ) -> Result<Self, Error> {
        let gate = Gate {
            closed: true,
            outside: 0,
            has_ended: false,
        };
        let mut processors = Self {
            threads: Vec::new(),
            shared: Arc::new(Shared {
                ends: AtomicBool::new(false),
                halted: vcpus.iter().map(|_| AtomicBool::new(false)).collect(),
                gate: Mutex::new(gate),
                changed: Condvar::new(),
            }),
            vcpus: vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect(),
            signal: kick_signal().map_err(host("handle a signal"))?,
        };
        for (number, vcpu) in processors.vcpus.iter().enumerate() {
            let (vcpu, bus) = (Arc::clone(vcpu), Arc::clone(bus));
            let (shared, report) = (Arc::clone(&processors.shared), report.clone());
            processors.shared.gate().outside += 1;
            let thread = thread::Builder::new()
                .name(format!("processor {number}"))
                .spawn(move || {
                    if let Err(error) = sandbox.confine_thread(Task::Processor) {
                        let _ = report.send(Event::Ended(Err(error)));
                        return shared.leave(true);
                    }
                    run(&vcpu, number, &bus, &shared, &report);
                })
                .map_err(|error| {
                    processors.shared.leave(false);
                    host("start the thread of a processor")(error)
                })?;
            processors.threads.push(thread);
        }
        Ok(processors)
    }

    /// Holds all of them where an instruction of the guest is complete.
    ///
    /// # Errors
    /// [`Error::Ended`] where the guest ended by itself before that.
    pub(crate) fn pause(&self) -> Result<(), Error> {
        self.shared.gate().closed = true;
        loop {
            // A processor that is interrupted has completed the access to a device that it was in.
            self.kick();
            let gate = self.shared.gate();
            let is_outside = |gate: &mut Gate| gate.outside > 0;
            let waited = self.shared.changed.wait_timeout_while(gate, KICK_AGAIN, is_outside);
            let (gate, _) = waited.unwrap_or_else(PoisonError::into_inner);
            match gate.outside {
                0 if gate.has_ended => return Err(Error::Ended),
                0 => return Ok(()),
                _ => {}
            }
        }
    }

    /// Lets all of them go on.
    pub(crate) fn resume(&self) {
        self.shared.gate().closed = false;
        self.shared.changed.notify_all();
    }

    /// The state of each, while they are held.
    pub(crate) fn save(&self, msrs: &[u32]) -> Result<Vec<Processor>, Error> {
        let locked = |vcpu: &Arc<Mutex<Vcpu>>| vcpu.lock().unwrap_or_else(PoisonError::into_inner).save(msrs);
        self.vcpus.iter().map(locked).collect()
    }

    /// Interrupts all of them.
    pub(crate) fn kick(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            // A thread that is gone since needs no signal.
            let _ = thread.kill(self.signal);
        }
    }

    /// Whether none of them can go on by itself, as far as they said when they were interrupted last.
    pub(crate) fn all_halted(&self) -> bool {
        let halted = |flag: &AtomicBool| flag.load(Ordering::Acquire);
        self.shared.halted.iter().all(halted)
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Release);
        self.resume();
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            self.kick();
            thread::sleep(KICK_AGAIN);
        }
        for thread in self.threads.drain(..) {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

/// The thread of a processor.
fn run(vcpu: &Mutex<Vcpu>, number: usize, bus: &Bus, shared: &Shared, report: &Sender<Event>) {
    while shared.pass() {
        let mut vcpu = vcpu.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = match vcpu.run(bus) {
            Ok(Exit::Kicked) => {
                shared.halted[number].store(vcpu.is_halted_for_good(), Ordering::Release);
                continue;
            }
            Ok(Exit::End(end)) => Ok(end),
            Err(error) => Err(error),
        };
        drop(vcpu);
        // Nobody waits any more once another processor has ended the machine.
        let _ = report.send(Event::Ended(ended));
        return shared.leave(true);
    }
    shared.leave(false);
}

/// The signal that interrupts a processor; its handler does nothing.
fn kick_signal() -> io::Result<libc::c_int> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let signal = SIGRTMIN();
    register_signal_handler(signal, nothing).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    Ok(signal)
}
