//! One record as bytes: a header with a checksum of its own, JSON, a newline.
//!
//! A loss of power may leave any of the 512-byte pieces of an append unwritten: these read zero. No piece of a complete frame
//! reads zero as a whole, since JSON has no zero bytes, the header begins with its magic and the frame ends with a newline. So
//! an append that did not end is told from a damaged record, whatever byte is wrong.

use crate::id::Epoch;

const MAGIC: [u8; 4] = *b"CSVj";
const HEADER: usize = 36;
/// A state of 64 MiB is beyond any volume; more is a damaged length.
const MAX_PAYLOAD: usize = 64 << 20;
const PIECE: u64 = 512;

/// What lies at an offset of a journal.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'a> {
    /// A sound record, and how many bytes it takes.
    Record { payload: &'a [u8], len: usize },
    /// An append that did not end, or nothing.
    End,
    /// Anything else, with the rule that is broken.
    Damaged(&'static str),
}

/// A record as bytes.
pub(super) fn encode(epoch: Epoch, seq: u64, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(HEADER + payload.len() + 1);
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&epoch.0.to_le_bytes());
    frame.extend_from_slice(&seq.to_le_bytes());
    frame.extend_from_slice(&u64::try_from(payload.len()).unwrap_or(u64::MAX).to_le_bytes());
    frame.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let header = crc32fast::hash(&frame);
    frame.extend_from_slice(&header.to_le_bytes());
    frame.extend_from_slice(payload);
    frame.push(b'\n');
    frame
}

/// What lies at `offset` of the journal `bytes` of `epoch`, where record `seq` should be.
pub(super) fn decode(bytes: &[u8], offset: usize, epoch: Epoch, seq: u64) -> Frame<'_> {
    let rest = &bytes[offset..];
    let damaged = |reason, end: usize| {
        if has_unwritten_piece(bytes, offset, end) {
            Frame::End
        } else {
            Frame::Damaged(reason)
        }
    };
    if rest.len() < HEADER {
        return Frame::End;
    }
    let (header, sum) = rest[..HEADER].split_at(HEADER - 4);
    if crc32fast::hash(header).to_le_bytes() != sum {
        // How long the record is cannot be known. The first byte after the header is never zero, so with it no piece is.
        return damaged(
            "the header does not have its checksum",
            offset + rest.len().min(HEADER + 1),
        );
    }
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    if header[..4] != MAGIC {
        return Frame::Damaged("not a record");
    }
    if number(4) != epoch.0 {
        return Frame::Damaged("a record of another epoch");
    }
    if number(12) != seq {
        return Frame::Damaged("a record that is not the next one");
    }
    let Some(len) = usize::try_from(number(20)).ok().filter(|&len| len <= MAX_PAYLOAD) else {
        return Frame::Damaged("a record that is too long");
    };
    let end = HEADER + len + 1;
    if rest.len() < end {
        return Frame::End;
    }
    let payload = &rest[HEADER..HEADER + len];
    if rest[end - 1] != b'\n' {
        return damaged("the record does not end with a newline", offset + end);
    }
    if crc32fast::hash(payload).to_le_bytes() != header[28..32] {
        return damaged("the record does not have its checksum", offset + end);
    }
    Frame::Record { payload, len: end }
}

/// Whether a piece of `bytes[start..end]`, cut at multiples of 512, reads zero as a whole.
fn has_unwritten_piece(bytes: &[u8], start: usize, end: usize) -> bool {
    let piece = usize::try_from(PIECE).expect("small");
    let mut from = start;
    while from < end {
        let to = ((from / piece + 1) * piece).min(end);
        if bytes[from..to].iter().all(|&byte| byte == 0) {
            return true;
        }
        from = to;
    }
    false
}
