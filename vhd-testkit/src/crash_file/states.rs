//! What a file may hold after a crash: the pending changes, and the walk over their outcomes.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use super::CrashFile;
use super::choices::{CrashChoice, Kept, Shape, choices};
use crate::bytes::SECTOR;
use crate::operation::Operation;
use crate::sparse::{Patch, SparseBytes};
use vhd_core::units::u64_from;

const SECTOR_BYTES: u64 = u64_from(SECTOR);

/// What a pending change does.
pub(super) enum Effect {
    /// Stores bytes.
    Store(Vec<Patch>),
    /// Makes the range read zero.
    Zero,
    /// Makes `offset` the length of the file.
    Length,
}

/// One change that no sync has made durable.
pub(super) struct Change {
    /// The number of the file operation it belongs to.
    pub(super) operation: u64,
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) effect: Effect,
}

impl Change {
    /// Applies the sectors that `kept` accepts, counted from the first one of the change.
    pub(super) fn apply(&self, content: &mut SparseBytes, kept: impl Fn(u64) -> bool) {
        let first = self.offset / SECTOR_BYTES;
        let kept = |sector: u64| kept(sector - first);
        match &self.effect {
            Effect::Store(patches) => patches.iter().for_each(|patch| content.store(patch, kept)),
            Effect::Zero => content.zero(self.offset, self.len, kept),
            Effect::Length => content.set_len(self.offset),
        }
    }

    fn is_length(&self) -> bool {
        matches!(self.effect, Effect::Length)
    }

    fn sectors(&self) -> u64 {
        (self.offset + self.len).div_ceil(SECTOR_BYTES) - self.offset / SECTOR_BYTES
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, offset, len) = (self.operation, self.offset, self.len);
        match self.effect {
            Effect::Store(_) => write!(f, "operation {number}: write {offset:#x}+{len:#x}"),
            Effect::Zero => write!(f, "operation {number}: zero {offset:#x}+{len:#x}"),
            Effect::Length => write!(f, "operation {number}: length {offset:#x}"),
        }
    }
}

/// How far an enumeration of crash states goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CrashLimits {
    /// Up to `1 << exhaustive_bits` states every combination is tried: of sectors if that many suffice,
    /// else of whole changes (and then torn ones by the lists below).
    pub exhaustive_bits: u32,
    /// Random subsets with torn changes, beyond an enumeration that is not exhaustive.
    pub random: u64,
    /// The seed of the random subsets.
    pub seed: u64,
    /// Only states in which a part of the latest operation persisted. With an observer that looks at every
    /// operation this visits each state once, as the others were seen one operation before. Sound only
    /// while the checked expectation does not narrow between two operations.
    pub newest_only: bool,
}

impl Default for CrashLimits {
    fn default() -> Self {
        Self {
            exhaustive_bits: 10,
            random: 64,
            seed: 0,
            newest_only: false,
        }
    }
}

/// The disk at one moment: what is durable, and what is not yet. Cheap to clone and to keep.
#[derive(Clone)]
pub struct CrashSnapshot {
    inner: Arc<Inner>,
}

struct Inner {
    durable: SparseBytes,
    current: SparseBytes,
    pending: Vec<Arc<Change>>,
    operations: u64,
    operation: Operation,
}

impl CrashSnapshot {
    pub(super) fn new(
        durable: SparseBytes,
        current: SparseBytes,
        pending: Vec<Arc<Change>>,
        operations: u64,
        operation: Operation,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                durable,
                current,
                pending,
                operations,
                operation,
            }),
        }
    }

    /// The number of the latest changing operation, from 1; syncs count.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.inner.operations
    }

    /// The operation after which an observer sees this; a `Len` in a snapshot taken by hand.
    #[must_use]
    pub fn operation(&self) -> Operation {
        self.inner.operation
    }

    /// The changes that are not durable. A write that grows the file counts as two.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.inner.pending.len()
    }

    /// What a reader saw at this moment, as a file of its own with everything durable.
    #[must_use]
    pub fn current(&self) -> CrashFile {
        CrashFile::from_sparse(self.inner.current.clone())
    }

    /// What is on the disk whatever happens, as a file of its own.
    #[must_use]
    pub fn durable(&self) -> CrashFile {
        CrashFile::from_sparse(self.inner.durable.clone())
    }

    /// What the file could hold if power failed at this moment, each content once.
    #[must_use]
    pub fn crash_states(&self, limits: &CrashLimits) -> CrashStates {
        let data = self.inner.pending.iter().filter(|change| !change.is_length());
        let shape = Shape {
            sectors: data.map(|change| change.sectors()).collect(),
            lengths: self.inner.pending.iter().filter(|change| change.is_length()).count(),
        };
        CrashStates {
            snapshot: self.clone(),
            choices: choices(shape, limits),
            newest_only: limits.newest_only && !self.inner.pending.is_empty(),
            seed: limits.seed,
            seen: HashSet::new(),
        }
    }

    /// The one state that `choice` describes: to repeat what a failure printed.
    ///
    /// # Panics
    /// When the choice is of a snapshot with other changes.
    #[must_use]
    pub fn crash_state(&self, choice: CrashChoice) -> CrashState {
        CrashState {
            content: self.materialise(&choice),
            choice,
            snapshot: self.clone(),
            seed: 0,
        }
    }

    fn materialise(&self, choice: &CrashChoice) -> SparseBytes {
        let mut content = self.inner.durable.clone();
        let (mut lengths, mut kept) = (0, choice.kept.iter());
        for change in &self.inner.pending {
            if change.is_length() {
                if lengths < choice.lengths {
                    change.apply(&mut content, |_| true);
                }
                lengths += 1;
            } else {
                let kept = *kept.next().expect("a choice has an entry for each data change");
                if kept != Kept::Nothing {
                    change.apply(&mut content, |sector| kept.has(sector));
                }
            }
        }
        // Data past the length that persisted belongs to no file.
        content.cut(content.len());
        content
    }

    /// Whether a part of the latest operation is in the choice.
    fn has_newest(&self, choice: &CrashChoice) -> bool {
        let Some(newest) = self.inner.pending.last().map(|change| change.operation) else {
            return true;
        };
        let (mut lengths, mut kept) = (0, choice.kept.iter());
        self.inner.pending.iter().any(|change| {
            let persisted = if change.is_length() {
                lengths += 1;
                lengths <= choice.lengths
            } else {
                kept.next().is_some_and(|kept| *kept != Kept::Nothing)
            };
            persisted && change.operation == newest
        })
    }
}

impl fmt::Debug for CrashSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "after operation {} on {:?}:",
            self.inner.operations, self.inner.durable
        )?;
        self.inner
            .pending
            .iter()
            .try_for_each(|change| writeln!(f, "  {change}"))
    }
}

/// The contents that a crash may leave, each once.
pub struct CrashStates {
    snapshot: CrashSnapshot,
    choices: Box<dyn Iterator<Item = CrashChoice> + Send>,
    newest_only: bool,
    seed: u64,
    seen: HashSet<u64>,
}

impl Iterator for CrashStates {
    type Item = CrashState;

    fn next(&mut self) -> Option<CrashState> {
        loop {
            let choice = self.choices.next()?;
            if self.newest_only && !self.snapshot.has_newest(&choice) {
                continue;
            }
            let content = self.snapshot.materialise(&choice);
            if self.seen.insert(content.difference_hash(&self.snapshot.inner.durable)) {
                return Some(CrashState {
                    content,
                    choice,
                    snapshot: self.snapshot.clone(),
                    seed: self.seed,
                });
            }
        }
    }
}

impl fmt::Debug for CrashStates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CrashStates({} so far, {:?})", self.seen.len(), self.snapshot)
    }
}

/// One content that a crash may leave. Its `Display` tells what persisted, and the seed: print it on failure.
#[derive(Clone)]
pub struct CrashState {
    content: SparseBytes,
    choice: CrashChoice,
    snapshot: CrashSnapshot,
    seed: u64,
}

impl CrashState {
    /// The content.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.content.to_vec()
    }

    /// The content as a durable file, so that work goes on and may crash again.
    #[must_use]
    pub fn file(&self) -> CrashFile {
        CrashFile::from_sparse(self.content.clone())
    }

    /// The length of the file.
    #[must_use]
    pub fn file_len(&self) -> u64 {
        self.content.len()
    }

    /// What persisted.
    #[must_use]
    pub fn choice(&self) -> &CrashChoice {
        &self.choice
    }
}

impl fmt::Display for CrashState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &self.snapshot.inner;
        writeln!(
            f,
            "crash after operation {} leaves {:#x} bytes (seed {:#x}), of these changes since the last sync:",
            inner.operations,
            self.content.len(),
            self.seed
        )?;
        let (mut lengths, mut kept) = (0, self.choice.kept.iter());
        for change in &inner.pending {
            if change.is_length() {
                lengths += 1;
                let outcome = if lengths <= self.choice.lengths {
                    Kept::All
                } else {
                    Kept::Nothing
                };
                writeln!(f, "  {change}: {outcome}")?;
            } else if let Some(kept) = kept.next() {
                writeln!(f, "  {change}: {kept}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for CrashState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
