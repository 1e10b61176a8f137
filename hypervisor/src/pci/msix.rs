//! MSI-X (PCI 3.0, section 6.8.2): interrupts as messages to the processors, each of which the guest can mask.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::{ConfigSpace, Message, Wires};
use crate::state::{Messages, StateError};

/// Bytes of an entry of the table: address, data, control.
const ENTRY: usize = 16;
/// The number of the capability.
const CAPABILITY: u8 = 0x11;
/// Bit of an entry's control: it is masked.
const MASKED: u8 = 1;
/// Bits of the upper byte of the capability's control: all are masked; messages are used.
const MASK_ALL: u8 = 1 << 6;
const ENABLED: u8 = 1 << 7;

/// What is signalled to send a message, and the line of KVM that it is connected to.
#[derive(Debug)]
pub(crate) struct Vector {
    pub(crate) event: EventFd,
    pub(crate) line: u32,
}

/// The messages of a function.
pub(crate) struct Msix {
    vectors: Vec<Vector>,
    wires: Arc<dyn Wires>,
    state: Mutex<State>,
}

struct State {
    control: u8,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    bytes: [u8; ENTRY],
    /// It was to be sent while it was masked.
    pending: bool,
    /// What KVM sends.
    routed: Option<Message>,
}

impl Entry {
    fn message(&self) -> Message {
        let dword = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| self.bytes[at + byte]));
        Message {
            address: u64::from(dword(0)) | u64::from(dword(4)) << 32,
            data: dword(8),
        }
    }

    fn is_masked(&self) -> bool {
        self.bytes[12] & MASKED != 0
    }
}

impl fmt::Debug for Msix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Msix")
            .field("vectors", &self.vectors)
            .finish_non_exhaustive()
    }
}

impl Msix {
    pub(crate) fn new(vectors: Vec<Vector>, wires: Arc<dyn Wires>) -> Self {
        let mut masked = Entry::default();
        masked.bytes[12] = MASKED;
        let state = Mutex::new(State {
            control: 0,
            entries: vec![masked; vectors.len()],
        });
        Self { vectors, wires, state }
    }

    /// How many messages there are.
    pub(crate) fn count(&self) -> usize {
        self.vectors.len()
    }

    /// Adds the capability, with table and pending bits at these offsets of the first window; returns where its control is.
    pub(crate) fn describe(&self, config: &mut ConfigSpace, table: u32, pending: u32) -> usize {
        let last = u16::try_from(self.count().saturating_sub(1)).unwrap_or(0);
        let mut body = last.to_le_bytes().to_vec();
        body.extend(table.to_le_bytes());
        body.extend(pending.to_le_bytes());
        let at = config.add_capability(CAPABILITY, &body);
        config.allow(at + 3, &[ENABLED | MASK_ALL]);
        at + 3
    }

    /// The guest has written the upper byte of the capability's control.
    pub(crate) fn set_control(&self, control: u8) {
        let mut state = self.state();
        state.control = control;
        (0..self.count()).for_each(|number| self.settle(&mut state, number));
    }

    pub(crate) fn read_table(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let state = self.state();
        if let Some(entry) = state.entries.get(offset / ENTRY) {
            let bytes = entry.bytes.iter().skip(offset % ENTRY);
            data.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        }
    }

    /// Fields are written whole, one or two at a time.
    pub(crate) fn write_table(&self, offset: usize, data: &[u8]) {
        let is_whole = matches!(data.len(), 4 | 8) && offset.is_multiple_of(data.len());
        let mut state = self.state();
        let number = offset / ENTRY;
        if let Some(entry) = state.entries.get_mut(number).filter(|_| is_whole) {
            entry.bytes[offset % ENTRY..][..data.len()].copy_from_slice(data);
            self.settle(&mut state, number);
        }
    }

    pub(crate) fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let state = self.state();
        let bit = |number: usize| state.entries.get(number).is_some_and(|entry| entry.pending);
        for (at, byte) in (offset..).zip(data) {
            *byte = (0..8).fold(0, |bits, number| bits | u8::from(bit(at * 8 + number)) << number);
        }
    }

    /// Sends a message, or keeps it while it is masked. A number that is none sends nothing.
    pub(crate) fn send(&self, number: usize) {
        let mut state = self.state();
        let all_masked = state.control & MASK_ALL != 0;
        if state.control & ENABLED == 0 {
            return;
        }
        let Some(entry) = state.entries.get_mut(number) else {
            return;
        };
        if all_masked || entry.is_masked() {
            entry.pending = true;
        } else {
            self.signal(number);
        }
    }

    pub(crate) fn save(&self) -> Messages {
        let state = self.state();
        Messages {
            control: state.control.into(),
            entries: state.entries.iter().map(|entry| entry.bytes.to_vec()).collect(),
            pending: state.entries.iter().map(|entry| entry.pending).collect(),
        }
    }

    /// Becomes what was saved; KVM learns the messages.
    pub(crate) fn restore(&self, saved: &Messages) -> Result<(), StateError> {
        let wrong = || StateError::damaged("function", "has messages of another machine");
        let mut state = self.state();
        if saved.entries.len() != state.entries.len() || saved.pending.len() != state.entries.len() {
            return Err(wrong());
        }
        state.control = u8::try_from(saved.control).map_err(|_| wrong())?;
        for (number, (bytes, pending)) in saved.entries.iter().zip(&saved.pending).enumerate() {
            state.entries[number] = Entry {
                bytes: bytes.as_slice().try_into().map_err(|_| wrong())?,
                pending: *pending,
                routed: None,
            };
            self.settle(&mut state, number);
        }
        Ok(())
    }

    /// Nothing is pending any more.
    pub(crate) fn forget(&self) {
        self.state().entries.iter_mut().for_each(|entry| entry.pending = false);
    }

    /// After a change: KVM learns a message that can be sent, and what waited for it is sent.
    fn settle(&self, state: &mut State, number: usize) {
        let open = state.control & (ENABLED | MASK_ALL) == ENABLED;
        let entry = &mut state.entries[number];
        if !open || entry.is_masked() {
            return;
        }
        let message = entry.message();
        if entry.routed != Some(message) {
            self.wires.route(self.vectors[number].line, message);
            entry.routed = Some(message);
        }
        if std::mem::take(&mut entry.pending) {
            self.signal(number);
        }
    }

    fn signal(&self, number: usize) {
        // KVM takes what is written at once; a full counter is a pending interrupt all the same.
        let _ = self.vectors[number].event.write(1);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "msix_tests.rs"]
mod tests;
