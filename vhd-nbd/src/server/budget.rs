//! The memory that clients can make the server take, in one account for all of them.
//!
//! Every connection has a small buffer for each direction; they are paid for in advance, by the limit on connections. What
//! more a client needs is taken here: *kept* for as long as a connection wants to be fast (larger buffers, threads), or
//! *taken* for one request. What is kept can't use up all of it, so what is taken comes back: a request takes all that it
//! needs at once, and a client that does not receive its reply is disconnected. So nobody waits for ever.

use std::collections::VecDeque;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes of a buffer; memory is taken in these.
pub(super) const PIECE: usize = 256 << 10;

/// Bytes; the least budget. Half of it is the longest read, whole.
pub const MIN_MEMORY: u64 = 64 << 20;

/// Bytes that a connection takes before it has asked for anything: two narrow buffers, its thread, a negotiation.
const CONNECTION: usize = 128 << 10;

/// Bytes more that TLS takes.
const CONNECTION_TLS: usize = 128 << 10;

/// Bytes that are left to requests, whatever connections keep: at least, and at most.
const FOR_REQUESTS: (usize, usize) = (32 << 20, 64 << 20);

/// Free buffers that are not given back to the system.
const SPARE: usize = 32;

/// How often one who waits looks whether it is of use.
const LOOK: Duration = Duration::from_millis(100);

/// There is no memory for a request, nor was there any soon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the server has no memory left for this request")]
pub(super) struct NoMemory;

/// The account.
#[derive(Debug)]
pub(super) struct Budget {
    /// Bytes that can be kept and taken together.
    limit: usize,
    /// Bytes that can be kept.
    keepable: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    used: usize,
    kept: usize,
    /// Those who wait, the first come first.
    waiting: VecDeque<u64>,
    tickets: u64,
    spare: Vec<Box<[u8]>>,
}

impl Budget {
    /// An account of `memory` bytes, [`MIN_MEMORY`] at least, for up to `connections`. Returns how many that allows: they
    /// take half of it at most.
    pub(super) fn new(memory: u64, connections: usize, tls: bool) -> (Arc<Self>, usize) {
        let memory = usize::try_from(memory.max(MIN_MEMORY)).unwrap_or(usize::MAX);
        let each = CONNECTION + if tls { CONNECTION_TLS } else { 0 };
        let connections = connections.min(memory / 2 / each);
        let limit = memory - connections * each;
        let budget = Self {
            limit,
            keepable: limit.saturating_sub((limit / 2).clamp(FOR_REQUESTS.0, FOR_REQUESTS.1)),
            state: Mutex::default(),
            changed: Condvar::new(),
        };
        (Arc::new(budget), connections)
    }

    /// Keeps so many bytes, if they are there.
    pub(super) fn keep(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        let mut state = self.lock();
        if state.kept + bytes > self.keepable || state.used + bytes > self.limit {
            return None;
        }
        state.used += bytes;
        state.kept += bytes;
        drop(state);
        Some(Charge {
            budget: Arc::clone(self),
            bytes,
            kept: true,
        })
    }

    /// Keeps a buffer, if there is one.
    pub(super) fn keep_piece(self: &Arc<Self>) -> Option<Piece> {
        let charge = self.keep(PIECE)?;
        let bytes = self.buffer().ok()?;
        Some(Piece { bytes, charge })
    }

    /// Takes so many bytes for one request. Waits for them until `patience` is over or `give_up` says that nobody wants
    /// the answer any more.
    pub(super) fn take(
        self: &Arc<Self>,
        bytes: usize,
        patience: Duration,
        give_up: impl Fn() -> bool,
    ) -> Result<Charge, NoMemory> {
        if bytes > self.limit {
            return Err(NoMemory);
        }
        let mut state = self.lock();
        if !(state.waiting.is_empty() && state.used + bytes <= self.limit) {
            state = self.wait(state, bytes, patience, give_up)?;
        }
        state.used += bytes;
        drop(state);
        Ok(Charge {
            budget: Arc::clone(self),
            bytes,
            kept: false,
        })
    }

    /// Takes buffers of together `bytes` bytes or more.
    pub(super) fn take_pieces(
        self: &Arc<Self>,
        bytes: usize,
        patience: Duration,
        give_up: impl Fn() -> bool,
    ) -> Result<Vec<Piece>, NoMemory> {
        let count = bytes.div_ceil(PIECE);
        let mut pieces = Vec::new();
        pieces.try_reserve_exact(count).map_err(|_| NoMemory)?;
        let mut charge = self.take(count * PIECE, patience, give_up)?;
        for _ in 0..count {
            let bytes = self.buffer().map_err(|_| NoMemory)?;
            let charge = charge.split(PIECE);
            pieces.push(Piece { bytes, charge });
        }
        Ok(pieces)
    }

    fn wait<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        bytes: usize,
        patience: Duration,
        give_up: impl Fn() -> bool,
    ) -> Result<MutexGuard<'a, State>, NoMemory> {
        let deadline = Instant::now() + patience;
        let ticket = state.tickets;
        state.tickets += 1;
        state.waiting.push_back(ticket);
        loop {
            let is_next = state.waiting.front() == Some(&ticket);
            let served = is_next && state.used + bytes <= self.limit;
            if served || give_up() || Instant::now() >= deadline {
                state.waiting.retain(|other| *other != ticket);
                // The next may need less.
                self.changed.notify_all();
                return if served { Ok(state) } else { Err(NoMemory) };
            }
            let waited = self.changed.wait_timeout(state, LOOK);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// A buffer of [`PIECE`] bytes that has been paid for. What is in it is from earlier use.
    fn buffer(&self) -> io::Result<Box<[u8]>> {
        let spare = self.lock().spare.pop();
        spare.map_or_else(|| zeroed(PIECE), Ok)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes of the account that are in use, until it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: usize,
    kept: bool,
}

impl Charge {
    fn split(&mut self, bytes: usize) -> Self {
        self.bytes -= bytes;
        Self {
            budget: Arc::clone(&self.budget),
            bytes,
            kept: self.kept,
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let mut state = self.budget.lock();
        state.used -= self.bytes;
        if self.kept {
            state.kept -= self.bytes;
        }
        let waited_for = !state.waiting.is_empty();
        drop(state);
        if waited_for {
            self.budget.changed.notify_all();
        }
    }
}

/// A buffer of [`PIECE`] bytes, on the account until it is dropped.
#[derive(Debug)]
pub(super) struct Piece {
    bytes: Box<[u8]>,
    charge: Charge,
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Piece {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let mut state = self.charge.budget.lock();
        if state.spare.len() < SPARE {
            state.spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

/// A buffer of a connection: a narrow one of its own, and a wide one while the account has it.
#[derive(Debug)]
pub(super) struct Buffer {
    budget: Arc<Budget>,
    narrow: Box<[u8]>,
    wide: Option<Piece>,
}

impl Buffer {
    /// A buffer of `len` bytes.
    pub(super) fn new(budget: &Arc<Budget>, len: usize) -> io::Result<Self> {
        Ok(Self {
            budget: Arc::clone(budget),
            narrow: zeroed(len)?,
            wide: None,
        })
    }

    /// Makes it one of [`PIECE`] bytes, if there is memory; the first `len` bytes stay what they are. Returns whether it
    /// has changed.
    pub(super) fn widen(&mut self, len: usize) -> bool {
        if self.wide.is_some() || self.narrow.len() >= PIECE {
            return false;
        }
        let Some(mut piece) = self.budget.keep_piece() else {
            return false;
        };
        piece[..len].copy_from_slice(&self.narrow[..len]);
        self.wide = Some(piece);
        true
    }

    /// Gives what is more than its own back. What is in it is lost.
    pub(super) fn relax(&mut self) {
        self.wide = None;
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.wide.as_deref().unwrap_or(&self.narrow)
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.wide.as_deref_mut().unwrap_or(&mut self.narrow)
    }
}

/// Zeroes; an error if there is no memory for them.
fn zeroed(len: usize) -> io::Result<Box<[u8]>> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(io::Error::from)?;
    bytes.resize(len, 0);
    Ok(bytes.into_boxed_slice())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    const SOON: Duration = Duration::from_millis(20);
    const NEVER: fn() -> bool = || false;

    #[test]
    fn connections_take_half_of_it_at_most() {
        let (budget, connections) = Budget::new(MIN_MEMORY, 1024, false);
        assert_eq!(connections, 256);
        assert_eq!(budget.limit, 32 << 20);
        assert_eq!(Budget::new(0, 1024, true).1, 128);
        assert_eq!(Budget::new(512 << 20, 1024, true).1, 1024);
        let (budget, connections) = Budget::new(512 << 20, 1024, false);
        assert_eq!((connections, budget.limit), (1024, 384 << 20));
    }

    #[test]
    fn what_is_kept_leaves_room_for_requests() {
        let (budget, _) = Budget::new(MIN_MEMORY * 2, 1, false);
        let kept: Vec<_> = std::iter::from_fn(|| budget.keep_piece()).collect();
        assert!(kept.len() > 200);
        let whole = budget.take_pieces(32 << 20, SOON, NEVER).unwrap();
        assert_eq!(whole.len(), 128);
        drop(kept);
        drop(whole);
        assert_eq!(budget.lock().used, 0);
        assert_eq!(budget.lock().kept, 0);
        assert!(budget.lock().spare.len() <= SPARE);
    }

    #[test]
    fn who_waits_is_served_in_turn() {
        let (budget, _) = Budget::new(MIN_MEMORY, 256, false);
        let all = budget.take(budget.limit, SOON, NEVER).unwrap();
        assert_eq!(budget.take(1, SOON, NEVER).unwrap_err(), NoMemory);
        assert_eq!(
            budget.take(1, Duration::MAX.min(SOON * 1000), || true).unwrap_err(),
            NoMemory
        );
        assert_eq!(budget.take(budget.limit + 1, SOON * 1000, NEVER).unwrap_err(), NoMemory);
        thread::scope(|scope| {
            let waiting: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| budget.take(budget.limit / 2, SOON * 1000, NEVER).map(drop)))
                .collect();
            while budget.lock().waiting.len() < 8 {
                thread::yield_now();
            }
            drop(all);
            assert!(waiting.into_iter().all(|thread| thread.join().unwrap().is_ok()));
        });
        assert_eq!(budget.lock().used, 0);
    }

    #[test]
    fn a_buffer_is_widened_and_keeps_its_bytes() {
        let (budget, _) = Budget::new(MIN_MEMORY * 2, 1, false);
        let mut buffer = Buffer::new(&budget, 16).unwrap();
        buffer.fill(7);
        assert!(buffer.widen(16) && !buffer.widen(16));
        assert_eq!((buffer.len(), &buffer[..16]), (PIECE, &[7; 16][..]));
        buffer.relax();
        assert_eq!(buffer.len(), 16);
        assert_eq!(budget.lock().used, 0);
    }
}
