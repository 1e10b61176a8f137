//! A footer that is not at the end of its file: of a fixed image that something was appended to, or that lies on a
//! larger device.
//!
//! A raw disk can hold VHD files in its file systems, whose footers are nothing to it. Far from the end only a footer
//! counts that is a fixed image's and lies where the disk that it describes ends, counted from the start of the file.

use std::io;

use super::content::{ends_with_partition_table, partitioned_end};
use super::sample::Sample;
use crate::format::{COOKIE, DiskType, FOOTER_SIZE, Footer, has_footer_cookie};
use crate::storage::{Segment, StorageFile};
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

/// How far to look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Just before the end.
    Near,
    /// In all places that are cheap to look at.
    Far,
}

/// Bytes before the end in which any trace of a footer counts.
const NEAR: u64 = 64 << 10;
/// Bytes before the end of the data, and behind the last partition, that are searched sector by sector.
const FAR: u64 = 16 << 20;
/// Bytes that are read at once.
const PIECE: u64 = 1 << 20;
/// Disks are mostly multiples of this.
const USUAL_SIZE: u64 = 1 << 20;
/// Multiples of it that are looked at before that: each costs one small read.
const MAX_PROBES: u64 = 256;
/// Segments of a file that are asked for to find where its data ends.
const MAX_SEGMENTS: usize = 1024;

/// Where a footer is in a file that has none at its end.
pub(super) fn find_inside(sample: &Sample<'_>, reach: Reach) -> io::Result<Option<u64>> {
    let (file, file_len) = (sample.file(), sample.file_len());
    if let Some(offset) = find_near_end(file, file_len)? {
        return Ok(Some(offset));
    }
    if reach == Reach::Near || ends_with_partition_table(sample) {
        return Ok(None);
    }
    let data_end = data_end(file, file_len)?;
    let window = data_end.saturating_sub(FAR);
    if let Some(offset) = find_own(file, window, data_end)? {
        return Ok(Some(offset));
    }
    if let Some(end) = partitioned_end(sample).filter(|end| *end < window)
        && let Some(offset) = find_own(file, end, (end + FAR).min(window))?
    {
        return Ok(Some(offset));
    }
    probe_usual_sizes(file, window)
}

/// The last cookie within [`NEAR`] of the end.
fn find_near_end(file: &dyn StorageFile, file_len: u64) -> io::Result<Option<u64>> {
    let searched = file_len.min(NEAR);
    let start = file_len - searched;
    let mut tail = vec![0; usize_from(searched)];
    file.read_exact_at(&mut tail, start)?;
    let found = tail.windows(COOKIE.len()).rposition(has_footer_cookie);
    Ok(found.map(|position| start + u64_from(position)))
}

/// Where the data of a file ends, as far as its holes tell: a file that was made longer has nothing behind that.
fn data_end(file: &dyn StorageFile, file_len: u64) -> io::Result<u64> {
    // Windows that double, from the end: the first that has data has the last of it.
    let mut size = FAR;
    let start = loop {
        let start = file_len.saturating_sub(size);
        let (segment, end) = file.segment_at(start)?;
        if start == 0 || segment == Segment::Data || end < file_len {
            break start;
        }
        size = size.saturating_mul(2);
    };
    let (mut at, mut data_end) = (start, start);
    for _ in 0..MAX_SEGMENTS {
        if at >= file_len {
            return Ok(data_end);
        }
        let (segment, end) = file.segment_at(at)?;
        if segment == Segment::Data {
            data_end = end;
        }
        at = end.max(at + 1);
    }
    Ok(file_len)
}

/// The footer of a fixed image that ends where it lies, between two offsets, at a multiple of a sector.
fn find_own(file: &dyn StorageFile, from: u64, to: u64) -> io::Result<Option<u64>> {
    let mut buffer = vec![0; usize_from(PIECE)];
    let mut start = from.next_multiple_of(SECTOR_SIZE);
    while start + SECTOR_SIZE <= to {
        let len = (to - start).min(PIECE) / SECTOR_SIZE * SECTOR_SIZE;
        let piece = &mut buffer[..usize_from(len)];
        file.read_exact_at(piece, start)?;
        let (sectors, _) = piece.as_chunks::<FOOTER_SIZE>();
        for (index, sector) in sectors.iter().enumerate() {
            let offset = start + u64_from(index * FOOTER_SIZE);
            if is_own(sector, offset) {
                return Ok(Some(offset));
            }
        }
        start += len;
    }
    Ok(None)
}

/// Looks where a disk of a usual size would end.
fn probe_usual_sizes(file: &dyn StorageFile, before: u64) -> io::Result<Option<u64>> {
    let last = before / USUAL_SIZE;
    for index in (1..=last).rev().take(usize_from(MAX_PROBES)) {
        let offset = index * USUAL_SIZE;
        let mut sector = [0; FOOTER_SIZE];
        file.read_exact_at(&mut sector, offset)?;
        if is_own(&sector, offset) {
            return Ok(Some(offset));
        }
    }
    Ok(None)
}

/// Whether a sector is the footer of a fixed disk that ends where the sector begins.
fn is_own(sector: &[u8; FOOTER_SIZE], offset: u64) -> bool {
    has_footer_cookie(sector)
        && Footer::decode(sector).is_ok_and(|footer| {
            let ends_here = footer.current_size == offset || footer.original_size == offset;
            footer.disk_type == DiskType::Fixed && ends_here
        })
}
