//! A file on a disk that may lose power at any time.
//!
//! What [`CrashFile`] promises is what `StorageFile` promises, and not a bit more:
//!
//! - Every change since the last completed sync may have reached the disk or not, each by itself.
//!   That holds for two writes to parts of one sector too: the later may persist without the earlier, which
//!   is harsher than a page cache.
//! - A change of several 512-byte sectors may have reached it in any part; one sector is atomic.
//! - The length is metadata of its own, with its own order: after a crash it is the durable one or any
//!   that the file had since, whatever became of the data.
//! - Bytes are there only below the length that persisted. Space that a persisted length exposes reads zero
//!   unless its data persisted too, also where an older and longer file had other bytes: truncation is
//!   never undone by growth, and nothing ever reads as garbage.
//! - Holes and zeroed ranges are changes like writes; a crash may leave any sector of them as it was.

mod choices;
mod states;

use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd_core::storage::{Segment, StorageFile};
use vhd_core::units::u64_from;

pub use choices::{CrashChoice, Kept};
pub use states::{CrashLimits, CrashSnapshot, CrashState, CrashStates};

use crate::operation::{Operation, OperationKind, checked_end, total};
use crate::sparse::{PAGE, SparseBytes, patches};
use states::{Change, Effect};

/// Which of the optional calls a [`CrashFile`] offers; the others fail as `Unsupported`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// `punch_hole`.
    pub punch_hole: bool,
    /// `zero_range`.
    pub zero_range: bool,
    /// `allocate`.
    pub allocate: bool,
    /// `share_range_from`, for ranges on multiples of 4096 bytes.
    pub share: bool,
}

impl Support {
    /// Everything, as on a file system with reflinks.
    pub const ALL: Self = Self {
        punch_hole: true,
        zero_range: true,
        allocate: true,
        share: true,
    };
    /// Nothing, as on the plainest file system.
    pub const NONE: Self = Self {
        punch_hole: false,
        zero_range: false,
        allocate: false,
        share: false,
    };
}

/// Called after each change; see [`CrashFile::with_observer`].
pub type Observer = Box<dyn FnMut(&CrashSnapshot) + Send>;

/// An in-memory storage file that knows what a loss of power can do to it. Clones are the same file.
#[derive(Clone)]
pub struct CrashFile {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    observer: Mutex<Option<Observer>>,
    support: Support,
}

struct State {
    /// What is on the disk for sure: everything up to the last sync.
    durable: SparseBytes,
    /// What a reader sees now.
    current: SparseBytes,
    /// The way from `durable` to `current`.
    pending: Vec<Arc<Change>>,
    /// The changing operations so far, syncs included.
    operations: u64,
}

impl CrashFile {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self::from_sparse(SparseBytes::default())
    }

    /// A file that durably holds `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self::from_sparse(SparseBytes::from_bytes(bytes))
    }

    pub(crate) fn from_sparse(content: SparseBytes) -> Self {
        let state = State {
            durable: content.clone(),
            current: content,
            pending: Vec::new(),
            operations: 0,
        };
        let shared = Shared {
            state: Mutex::new(state),
            observer: Mutex::new(None),
            support: Support::ALL,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// The same content as a new file that offers only the calls in `support`. Pending changes are made durable,
    /// the observer stays behind.
    #[must_use]
    pub fn with_support(self, support: Support) -> Self {
        let content = self.lock().current.clone();
        let state = State {
            durable: content.clone(),
            current: content,
            pending: Vec::new(),
            operations: 0,
        };
        let shared = Shared {
            state: Mutex::new(state),
            observer: Mutex::new(None),
            support,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Calls `observer` with a snapshot after every operation that changes the file or syncs it: so a test
    /// can enumerate crashes at each step *inside* a flush. The state before a sync is that after the
    /// operation before it. The observer may read this file but not change it (that would wait for itself).
    /// One that panics is not called again.
    #[must_use]
    pub fn with_observer(self, observer: Observer) -> Self {
        self.set_observer(Some(observer));
        self
    }

    /// Replaces the observer, or removes it.
    pub fn set_observer(&self, observer: Option<Observer>) {
        *self.shared.observer.lock().unwrap_or_else(PoisonError::into_inner) = observer;
    }

    /// The changing operations so far, syncs included.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// The changes that no sync has made durable yet. A write that grows the file counts as two.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.lock().pending.len()
    }

    /// The content as a reader sees it now.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().current.to_vec()
    }

    /// Bytes that take space: what is no hole, in pages of 4096 bytes.
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        self.lock().current.allocated()
    }

    /// The state of the disk at this moment, cheaply.
    #[must_use]
    pub fn snapshot(&self) -> CrashSnapshot {
        let operation = Operation::new(OperationKind::Len, 0, 0);
        self.lock().snapshot(operation)
    }

    /// What the file could hold if power failed at this moment.
    #[must_use]
    pub fn crash_states(&self, limits: &CrashLimits) -> CrashStates {
        self.snapshot().crash_states(limits)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of a test's assertion must not turn into a second one while engines are dropped.
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one changing operation and tells the observer.
    fn change<T>(&self, operation: Operation, apply: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        // Held over both, so that snapshots arrive in the order of the operations.
        let mut observer = self.shared.observer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.lock();
        state.operations += 1;
        let result = apply(&mut state)?;
        // Taken out for the call: one that panics is gone, so that what an engine writes while it is dropped
        // does not panic again and abort the test before it has told anything.
        if let Some(mut observe) = observer.take() {
            let snapshot = state.snapshot(operation);
            drop(state);
            observe(&snapshot);
            *observer = Some(observe);
        }
        Ok(result)
    }

    fn read(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        let state = self.lock();
        let end = checked_end(offset, total(bufs.iter().map(|buf| buf.len())))?;
        if end > state.current.len() && end > offset {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "read of {offset:#x}..{end:#x} in a file of {:#x} bytes",
                    state.current.len()
                ),
            ));
        }
        let mut position = offset;
        for buf in bufs {
            state.current.read(buf, position);
            position += u64_from(buf.len());
        }
        Ok(())
    }

    fn clear(&self, kind: OperationKind, offset: u64, len: u64) -> io::Result<()> {
        self.change(Operation::new(kind, offset, len), |state| {
            let end = offset.saturating_add(len).min(state.current.len());
            if offset < end {
                state.push(offset, end - offset, Effect::Zero);
            }
            Ok(())
        })
    }

    fn require(&self, offered: bool) -> io::Result<()> {
        if offered {
            Ok(())
        } else {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}

impl State {
    fn snapshot(&self, operation: Operation) -> CrashSnapshot {
        CrashSnapshot::new(
            self.durable.clone(),
            self.current.clone(),
            self.pending.clone(),
            self.operations,
            operation,
        )
    }

    /// Applies a change to what readers see and remembers it as not durable.
    fn push(&mut self, offset: u64, len: u64, effect: Effect) {
        let change = Change {
            operation: self.operations,
            offset,
            len,
            effect,
        };
        change.apply(&mut self.current, |_| true);
        self.pending.push(Arc::new(change));
    }

    fn set_len(&mut self, len: u64) {
        if len != self.current.len() {
            self.push(len, 0, Effect::Length);
        }
    }

    fn write(&mut self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let len = total(bufs.iter().map(|buf| buf.len()));
        let end = checked_end(offset, len)?;
        if len > 0 {
            if end > self.current.len() {
                self.set_len(end);
            }
            self.push(offset, len, Effect::Store(patches(bufs, offset)));
        }
        Ok(())
    }
}

impl Default for CrashFile {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for CrashFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        write!(
            f,
            "CrashFile({:?}, {} pending, {} operations)",
            state.current,
            state.pending.len(),
            state.operations
        )
    }
}

impl StorageFile for CrashFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read(&mut [IoSliceMut::new(buf)], offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.read(bufs, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_vectored_at(&[IoSlice::new(buf)], offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let len = total(bufs.iter().map(|buf| buf.len()));
        self.change(Operation::new(OperationKind::Write, offset, len), |state| {
            state.write(bufs, offset)
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.lock().current.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        checked_end(len, 0)?;
        self.change(Operation::new(OperationKind::SetLen, len, 0), |state| {
            state.set_len(len);
            Ok(())
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.change(Operation::new(OperationKind::Sync, 0, 0), |state| {
            state.durable = state.current.clone();
            state.pending.clear();
            Ok(())
        })
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.require(self.shared.support.punch_hole)?;
        self.clear(OperationKind::PunchHole, offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.require(self.shared.support.zero_range)?;
        self.clear(OperationKind::ZeroRange, offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.require(self.shared.support.allocate)?;
        let end = checked_end(offset, len)?;
        self.change(Operation::new(OperationKind::Allocate, offset, len), |state| {
            state.set_len(state.current.len().max(end));
            Ok(())
        })
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        let state = self.lock();
        if offset >= state.current.len() {
            return Ok((Segment::Hole, offset));
        }
        let (data, end) = state.current.segment_at(offset);
        Ok((if data { Segment::Data } else { Segment::Hole }, end))
    }

    fn share_range_from(&self, source: &dyn StorageFile, source_offset: u64, offset: u64, len: u64) -> io::Result<()> {
        let aligned = [source_offset, offset, len]
            .iter()
            .all(|n| n.is_multiple_of(u64_from(PAGE)));
        self.require(self.shared.support.share && aligned)?;
        let mut bytes = vec![0; vhd_core::units::usize_from(len)];
        source.read_exact_at(&mut bytes, source_offset)?;
        self.change(Operation::new(OperationKind::Share, offset, len), |state| {
            state.write(&[IoSlice::new(&bytes)], offset)
        })
    }
}
