//! Pieces that are read, and perhaps written, at once.

use crate::device::{ByteRange, Held};
use crate::units::FileOffset;

/// Bytes read at once.
const STEP: u64 = 1 << 20;

/// Bytes of a layer's file that are read although they are not wanted, to spare a read of its own for what is
/// behind them.
const READ_GAP: u64 = 8 << 10;

/// What was found in pieces that are small enough to be read at once.
pub(super) fn cut(found: &[Held]) -> Vec<Held> {
    let mut pieces = Vec::with_capacity(found.len());
    for whole in found {
        let mut done = 0;
        while done < whole.range.len {
            let len = STEP.min(whole.range.len - done);
            pieces.push(Held {
                range: ByteRange::new(whole.range.start + done, len),
                file_offset: FileOffset(whole.file_offset.0 + done),
                ..*whole
            });
            done += len;
        }
    }
    pieces
}

/// How many of the first pieces are read at once: they lie in one file like on the disk, and close together.
pub(super) fn group_len(pieces: &[Held]) -> usize {
    let first = pieces[0];
    let mut end = first.range.end();
    let joins = pieces[1..].iter().take_while(|next| {
        let in_line = next.file_offset.0.wrapping_sub(first.file_offset.0) == next.range.start - first.range.start;
        let together = next.layer == first.layer
            && in_line
            && next.range.start - end <= READ_GAP
            && next.range.end() - first.range.start <= STEP;
        end = next.range.end();
        together
    });
    1 + joins.count()
}

/// From the first of the pieces to the end of the last.
pub(super) fn span(group: &[Held]) -> ByteRange {
    let (first, last) = (group[0].range, group[group.len() - 1].range);
    ByteRange::new(first.start, last.end() - first.start)
}

/// Bytes in the pieces.
pub(super) fn held_bytes(group: &[Held]) -> u64 {
    group.iter().map(|piece| piece.range.len).sum()
}

/// Whether the pieces have gaps, and no more than to double the bytes: one long write is cheaper then than many.
pub(super) fn is_dense(group: &[Held]) -> bool {
    group.len() > 1 && held_bytes(group) * 2 >= span(group).len
}
