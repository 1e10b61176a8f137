//! What an export stores, as its server tells.

use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhd_block::{ByteRange, Coalescer, Extent, ExtentKind};

use crate::protocol::{AllocationStatus, Descriptor};

/// How long an answer is true for one who asks again: long enough for a walk that stops at each extent.
const MAX_AGE: Duration = Duration::from_secs(1);

/// A range that reads in one way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The byte behind it; it begins where the one before ends.
    pub(super) end: u64,
    pub(super) kind: ExtentKind,
}

/// The kind that a status in `base:allocation` means. A hole that is not known to read zero may hold anything.
fn kind(status: u64) -> ExtentKind {
    let status = AllocationStatus::from_bits_truncate(u32::try_from(status & 0xffff_ffff).unwrap_or_default());
    match (
        status.contains(AllocationStatus::ZERO),
        status.contains(AllocationStatus::HOLE),
    ) {
        (true, true) => ExtentKind::Hole,
        (true, false) => ExtentKind::Zero,
        (false, _) => ExtentKind::Data,
    }
}

/// What of an answer to a request for `range` is about it, in whole blocks of `block` bytes: one that is stored in part
/// is stored. `None` if the answer does not reach the end of the first block.
pub(super) fn pieces(descriptors: &[Descriptor], range: ByteRange, block: u32) -> Option<Vec<Piece>> {
    let block = u64::from(block);
    let mut pieces: Vec<Piece> = Vec::new();
    // Of the block that `at` is in the middle of.
    let mut partial: Option<ExtentKind> = None;
    let mut at = range.start;
    for descriptor in descriptors {
        let end = at.saturating_add(descriptor.length).min(range.end());
        let kind = kind(descriptor.status);
        while at < end {
            let border = match partial {
                Some(_) => at.next_multiple_of(block).max(at + 1),
                None => end - end % block,
            };
            if partial.is_none() && border <= at {
                partial = Some(kind);
                at = end;
                break;
            }
            let next = border.min(end);
            let merged = partial.map_or(kind, |other| more_stored(other, kind));
            at = next;
            if next == border {
                push(
                    &mut pieces,
                    Piece {
                        end: border,
                        kind: merged,
                    },
                );
                partial = None;
            } else {
                partial = Some(merged);
            }
        }
    }
    if at == range.end()
        && let Some(kind) = partial
    {
        push(&mut pieces, Piece { end: at, kind });
    }
    (!pieces.is_empty()).then_some(pieces)
}

fn more_stored(a: ExtentKind, b: ExtentKind) -> ExtentKind {
    match (a, b) {
        (ExtentKind::Data, _) | (_, ExtentKind::Data) => ExtentKind::Data,
        (ExtentKind::Zero, _) | (_, ExtentKind::Zero) => ExtentKind::Zero,
        (ExtentKind::Hole, ExtentKind::Hole) => ExtentKind::Hole,
    }
}

fn push(pieces: &mut Vec<Piece>, piece: Piece) {
    match pieces.last_mut() {
        Some(last) if last.kind == piece.kind => last.end = piece.end,
        _ => pieces.push(piece),
    }
}

/// Passes a piece on that begins at `start`.
pub(super) fn pass(coalescer: &mut Coalescer<'_>, start: u64, piece: Piece) -> ControlFlow<()> {
    coalescer.push(Extent {
        range: ByteRange::new(start, piece.end - start),
        kind: piece.kind,
        depth: 0,
        file_offset: (piece.kind != ExtentKind::Hole).then_some(start),
    })
}

/// The last answer: a walk that is stopped at each extent asks for the same again and again.
#[derive(Debug, Default)]
pub(super) struct StatusCache(Mutex<Cached>);

#[derive(Debug, Default)]
struct Cached {
    /// Changes that began or ended; an answer is not true for longer than one number.
    changes: u64,
    answer: Option<Answer>,
}

#[derive(Debug)]
struct Answer {
    start: u64,
    pieces: Vec<Piece>,
    since: Instant,
}

impl StatusCache {
    /// Something changes, or has.
    pub(super) fn changed(&self) {
        let mut cached = self.lock();
        cached.changes += 1;
        cached.answer = None;
    }

    /// To be asked before the server is.
    pub(super) fn changes(&self) -> u64 {
        self.lock().changes
    }

    /// Keeps an answer that was asked for after `changes`.
    pub(super) fn keep(&self, changes: u64, start: u64, pieces: Vec<Piece>) {
        let mut cached = self.lock();
        if cached.changes == changes {
            let since = Instant::now();
            cached.answer = Some(Answer { start, pieces, since });
        }
    }

    /// What is known from `at` on.
    pub(super) fn find(&self, at: u64) -> Option<Piece> {
        let cached = self.lock();
        let answer = cached.answer.as_ref()?;
        if at < answer.start || answer.since.elapsed() > MAX_AGE {
            return None;
        }
        let index = answer.pieces.partition_point(|piece| piece.end <= at);
        answer.pieces.get(index).copied()
    }

    fn lock(&self) -> MutexGuard<'_, Cached> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn statuses() {
        assert_eq!(kind(3), ExtentKind::Hole);
        assert_eq!(kind(2), ExtentKind::Zero);
        assert_eq!([kind(0), kind(1), kind(4), kind(1 << 32)], [ExtentKind::Data; 4]);
        assert_eq!(kind((1 << 32) | 7), ExtentKind::Hole);
    }

    proptest! {
        /// Against each byte by itself.
        #[test]
        fn pieces_are_whole_blocks_and_true(
            lengths in prop::collection::vec((1_u64..40, 0_u64..4), 1..30), start in 0_u64..5, blocks in 1_u64..30,
        ) {
            let block = 8;
            let range = ByteRange::new(start * block, blocks * block);
            let descriptors: Vec<_> = lengths.iter().map(|&(length, status)| Descriptor { length, status }).collect();
            let bytes: Vec<ExtentKind> = lengths
                .iter()
                .flat_map(|&(length, status)| (0..length).map(move |_| kind(status)))
                .take(usize::try_from(range.len).unwrap())
                .collect();
            let mut expected = Vec::new();
            for (index, one) in bytes.chunks_exact(8).enumerate() {
                let kind = one.iter().copied().fold(ExtentKind::Hole, more_stored);
                push(&mut expected, Piece { end: range.start + 8 * (u64::try_from(index).unwrap() + 1), kind });
            }
            let found = pieces(&descriptors, range, 8).unwrap_or_default();
            prop_assert_eq!(found, expected);
        }
    }
}
