//! The serial port: the guest's console.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_superio::Trigger;
use vm_superio::serial::{NoEvents, SerialState};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::state::{Serial, StateError};

/// Bytes of input that wait for the guest; what is typed beyond is dropped.
const MAX_PENDING: usize = 64 << 10;
/// What Linux writes when it gives up.
const PANIC: &[u8] = b"Kernel panic - not syncing";

/// The interrupt of the port.
struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// The port, with input that its small buffer has no room for.
pub(crate) struct Com1 {
    serial: vm_superio::Serial<Line, NoEvents, Watched>,
    pending: VecDeque<u8>,
}

impl Com1 {
    /// A port whose output goes to `output`.
    pub(crate) fn new(output: Box<dyn Write + Send>, panic: PanicWatch) -> io::Result<Self> {
        let watched = Watched {
            output,
            panic,
            matched: 0,
        };
        Ok(Self {
            serial: vm_superio::Serial::new(Line(EventFd::new(EFD_NONBLOCK)?), watched),
            pending: VecDeque::new(),
        })
    }

    /// The state as a message.
    pub(crate) fn save(&self) -> Serial {
        let state = self.serial.state();
        Serial {
            registers: vec![
                state.baud_divisor_low,
                state.baud_divisor_high,
                state.interrupt_enable,
                state.interrupt_identification,
                state.line_control,
                state.line_status,
                state.modem_control,
                state.modem_status,
                state.scratch,
            ],
            received: state.in_buffer,
            pending: self.pending.iter().copied().collect(),
            panicked: self.serial.writer().panic.is_set(),
            matched: u32::try_from(self.serial.writer().matched).unwrap_or(0),
        }
    }

    /// A port as it was saved.
    pub(crate) fn restore(
        output: Box<dyn Write + Send>,
        panic: PanicWatch,
        saved: &Serial,
    ) -> Result<Self, StateError> {
        let wrong = |what| StateError::damaged("com1", what);
        let registers: [u8; 9] = saved
            .registers
            .as_slice()
            .try_into()
            .map_err(|_| wrong("has other registers"))?;
        let matched = usize::try_from(saved.matched)
            .ok()
            .filter(|matched| *matched < PANIC.len());
        if saved.pending.len() > MAX_PENDING {
            return Err(wrong("has too much input"));
        }
        panic.0.store(saved.panicked, Ordering::Release);
        let watched = Watched {
            output,
            panic,
            matched: matched.ok_or(wrong("has written something else"))?,
        };
        let [
            low,
            high,
            enable,
            identification,
            line,
            status,
            modem,
            modem_status,
            scratch,
        ] = registers;
        let state = SerialState {
            baud_divisor_low: low,
            baud_divisor_high: high,
            interrupt_enable: enable,
            interrupt_identification: identification,
            line_control: line,
            line_status: status,
            modem_control: modem,
            modem_status,
            scratch,
            in_buffer: saved.received.clone(),
        };
        let event = EventFd::new(EFD_NONBLOCK).map_err(|_| wrong("cannot have an event counter"))?;
        let serial = vm_superio::Serial::from_state(&state, Line(event), NoEvents, watched);
        Ok(Self {
            serial: serial.map_err(|_| wrong("has received too much"))?,
            pending: saved.pending.iter().copied().collect(),
        })
    }

    /// What is signalled, for KVM to inject.
    pub(crate) fn event(&self) -> &EventFd {
        &self.serial.interrupt_evt().0
    }

    pub(crate) fn read(&mut self, register: u8) -> u8 {
        let value = self.serial.read(register);
        self.feed();
        value
    }

    /// Output that cannot be written is lost: a guest does not stop because nobody listens.
    pub(crate) fn write(&mut self, register: u8, value: u8) {
        if let Err(error) = self.serial.write(register, value) {
            tracing::debug!(?error, "output of the guest's console is lost");
        }
    }

    /// Gives the guest input.
    pub(crate) fn input(&mut self, bytes: &[u8]) {
        let room = MAX_PENDING.saturating_sub(self.pending.len());
        self.pending.extend(&bytes[..bytes.len().min(room)]);
        self.feed();
    }

    fn feed(&mut self) {
        let room = self.serial.fifo_capacity().min(self.pending.len());
        if room == 0 {
            return;
        }
        let next: Vec<u8> = self.pending.iter().take(room).copied().collect();
        // In loopback mode nothing is taken: it stays until the guest reads again.
        let taken = self.serial.enqueue_raw_bytes(&next).unwrap_or(0);
        self.pending.drain(..taken);
    }
}

/// Whether Linux has written on the console that it gave up.
#[derive(Clone, Debug, Default)]
pub(crate) struct PanicWatch(Arc<AtomicBool>);

impl PanicWatch {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// The output, watched for a panic.
struct Watched {
    output: Box<dyn Write + Send>,
    panic: PanicWatch,
    /// Bytes of [`PANIC`] that were written last.
    matched: usize,
}

impl Write for Watched {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for byte in bytes {
            // The first letter occurs once: after a mismatch the text can only begin anew.
            self.matched = match *byte {
                byte if byte == PANIC[self.matched] => self.matched + 1,
                byte if byte == PANIC[0] => 1,
                _ => 0,
            };
            if self.matched == PANIC.len() {
                self.panic.0.store(true, Ordering::Release);
                self.matched = 0;
            }
        }
        self.output.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panics(output: &[u8]) -> bool {
        let panic = PanicWatch::default();
        let mut com1 = Com1::new(Box::new(io::sink()), panic.clone()).unwrap();
        output.iter().for_each(|byte| com1.write(0, *byte));
        panic.is_set()
    }

    #[test]
    fn a_panic_is_seen() {
        assert!(panics(b"[    1.0] Kernel panic - not syncing: VFS\n"));
        assert!(panics(b"KeKernel panic - not syncing"));
        assert!(!panics(b"Kernel panic - no syncing"));
    }

    #[test]
    fn input_waits_for_room() {
        let mut com1 = Com1::new(Box::new(io::sink()), PanicWatch::default()).unwrap();
        let typed: Vec<u8> = (0..200).collect();
        com1.input(&typed);
        let read: Vec<u8> = (0..200).map(|_| com1.read(0)).collect();
        assert_eq!(read, typed);
        com1.input(&vec![1; MAX_PENDING * 2]);
        assert!(com1.pending.len() <= MAX_PENDING);
    }
}
