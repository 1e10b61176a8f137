//! The threads of the processors.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::signal::{Killable as _, SIGRTMIN, register_signal_handler};

use super::Vcpu;
use super::vcpu::Exit;
use crate::bus::Bus;
use crate::error::host;
use crate::{End, Error};

/// How long a thread is given to notice that it is to end, before it is interrupted once more: the signal may come just
/// before it enters the guest.
const KICK_AGAIN: Duration = Duration::from_millis(5);

/// The processors of a machine while they run. Dropping ends them.
pub(crate) struct Processors {
    threads: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    signal: libc::c_int,
}

struct Shared {
    ends: AtomicBool,
    /// Which of them had halted for good when they were interrupted last.
    halted: Vec<AtomicBool>,
}

impl Processors {
    /// Starts a thread for each. The first end or failure of each is reported.
    pub(crate) fn start(vcpus: Vec<Vcpu>, bus: &Arc<Bus>, report: &Sender<Result<End, Error>>) -> Result<Self, Error> {
        let mut processors = Self {
            threads: Vec::new(),
            shared: Arc::new(Shared {
                ends: AtomicBool::new(false),
                halted: vcpus.iter().map(|_| AtomicBool::new(false)).collect(),
            }),
            signal: kick_signal().map_err(host("handle a signal"))?,
        };
        for (number, vcpu) in vcpus.into_iter().enumerate() {
            let (bus, shared, report) = (Arc::clone(bus), Arc::clone(&processors.shared), report.clone());
            let thread = thread::Builder::new()
                .name(format!("processor {number}"))
                .spawn(move || run(vcpu, number, &bus, &shared, &report))
                .map_err(host("start the thread of a processor"))?;
            processors.threads.push(thread);
        }
        Ok(processors)
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
fn run(mut vcpu: Vcpu, number: usize, bus: &Bus, shared: &Shared, report: &Sender<Result<End, Error>>) {
    while !shared.ends.load(Ordering::Acquire) {
        let ended = match vcpu.run(bus) {
            Ok(Exit::Kicked) => {
                shared.halted[number].store(vcpu.is_halted_for_good(), Ordering::Release);
                continue;
            }
            Ok(Exit::End(end)) => Ok(end),
            Err(error) => Err(error),
        };
        // Nobody waits any more once another processor has ended the machine.
        let _ = report.send(ended);
        return;
    }
}

/// The signal that interrupts a processor; its handler does nothing.
fn kick_signal() -> io::Result<libc::c_int> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    let signal = SIGRTMIN();
    register_signal_handler(signal, nothing).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    Ok(signal)
}
