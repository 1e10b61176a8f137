//! Zeroes in a file, made and found by whatever the file system offers.

use std::io;

use vhd_block::is_zero;

use super::{Segment, StorageFile, io_kind};
use crate::ErrorKind;
use crate::units::{u64_from, usize_from};

const CHUNK: usize = 64 << 10;

/// Bytes read first where zeroes are looked for, and at once from then on.
const FIRST_LOOK: u64 = 4096;
const LOOK: u64 = 256 << 10;

/// Makes a range read zero and frees its space, or writes zeroes where the file system has no holes.
pub fn clear_range(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<()> {
    or_write_zeroes(file, offset, len, file.punch_hole(offset, len))
}

/// Whether a failure to make a range a hole is that the file system needs space for that, and says so although there is a
/// hole already.
pub(crate) fn is_hole_already(error: &io::Error, file: &dyn StorageFile, offset: u64, len: u64) -> bool {
    io_kind(error) == ErrorKind::NoSpace && is_hole(file, offset, len).unwrap_or(false)
}

fn is_hole(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<bool> {
    let (segment, end) = file.segment_at(offset)?;
    Ok(segment == Segment::Hole && end >= offset.saturating_add(len))
}

/// Makes a range read zero and keeps its space, by writing zeroes where the file system has nothing better.
pub fn zero_range_kept(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<()> {
    or_write_zeroes(file, offset, len, file.zero_range(offset, len))
}

fn or_write_zeroes(file: &dyn StorageFile, offset: u64, len: u64, tried: io::Result<()>) -> io::Result<()> {
    match tried {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => write_zeroes(file, offset, len),
        other => other,
    }
}

fn write_zeroes(file: &dyn StorageFile, offset: u64, len: u64) -> io::Result<()> {
    let zeroes = vec![0; CHUNK.min(usize_from(len))];
    let mut done = 0;
    while done < len {
        let part = u64_from(zeroes.len()).min(len - done);
        file.write_all_at(&zeroes[..usize_from(part)], offset + done)?;
        done += part;
    }
    Ok(())
}

/// Whether `len` bytes from `offset` read zero, up to the end of a file that ends before. Holes are not read.
pub(crate) fn reads_zero(file: &dyn StorageFile, offset: u64, len: u64, buffer: &mut Vec<u8>) -> io::Result<bool> {
    buffer.resize(usize_from(LOOK), 0);
    let end = file.len()?.min(offset.saturating_add(len));
    let mut at = offset;
    while at < end {
        let (segment, segment_end) = file.segment_at(at)?;
        let stop = end.min(segment_end.max(at + 1));
        if segment == Segment::Hole {
            at = stop;
            continue;
        }
        // Most data shows itself at once: the first look is a short one.
        let mut part = FIRST_LOOK;
        while at < stop {
            let take = part.min(stop - at);
            let bytes = &mut buffer[..usize_from(take)];
            file.read_exact_at(bytes, at)?;
            if !is_zero(bytes) {
                return Ok(false);
            }
            at += take;
            part = LOOK;
        }
    }
    Ok(true)
}
