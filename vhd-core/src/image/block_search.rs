//! Blocks that no table entry refers to: what looks like one, and where such are in space that nothing uses.

use std::io;

use super::hidden::absent_runs;
use crate::format::BlockLayout;
use crate::storage::{Segment, StorageFile, is_zero, reads_zero};
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

/// Whether a block with a bitmap of its own may begin at `at` of a file whose block space ends at `end`: some bits are set,
/// those behind the last sector are equal, and sectors whose bit is clear are zero.
pub(crate) fn looks_like_block(file: &dyn StorageFile, layout: BlockLayout, at: u64, end: u64) -> io::Result<bool> {
    let data = at + layout.bitmap_bytes();
    if data > end {
        return Ok(false);
    }
    let mut bitmap = vec![0; usize_from(layout.bitmap_bytes())];
    file.read_exact_at(&mut bitmap, at)?;
    let sectors = layout.sectors_per_block();
    let padding = &bitmap[usize_from(sectors.div_ceil(8))..];
    let evenly = is_zero(padding) || padding.iter().all(|&byte| byte == 0xFF);
    if !evenly || is_zero(&bitmap) {
        return Ok(false);
    }
    let range = |first: u64, count: u64| {
        let start = (data + first * SECTOR_SIZE).min(end);
        (start, (start + count * SECTOR_SIZE).min(end))
    };
    let mut buffer = Vec::new();
    // Nearly everything that is no bitmap is told by one sector.
    if let Some(first) = first_absent(&bitmap, sectors) {
        let (start, end) = range(first, 1);
        if !reads_zero(file, start, end - start, &mut buffer)? {
            return Ok(false);
        }
    }
    // What does look like one may have thousands of runs, in a hole all of them.
    let mut hole_end = data;
    for (first, count) in absent_runs(&bitmap, sectors) {
        let (start, end) = range(first, count);
        if start >= hole_end {
            let (segment, segment_end) = file.segment_at(start)?;
            hole_end = if segment == Segment::Hole { segment_end } else { start };
        }
        if end > hole_end && !reads_zero(file, start, end - start, &mut buffer)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn first_absent(bitmap: &[u8], sectors: u64) -> Option<u64> {
    let byte = bitmap.iter().position(|&byte| byte != 0xFF)?;
    let first = 8 * u64_from(byte) + u64::from(bitmap[byte].leading_ones());
    (first < sectors).then_some(first)
}

/// The places between `from` and `to` where blocks may begin: each sector is looked at, and behind a block that was found
/// the sector behind it. `looks` is how many more sectors are looked at.
pub(crate) fn blocks_between(
    file: &dyn StorageFile,
    layout: BlockLayout,
    (from, to): (u64, u64),
    looks: &mut u64,
) -> io::Result<Vec<u64>> {
    let (mut found, stored) = (Vec::new(), layout.stored_bytes());
    let Some(mut at) = from.checked_next_multiple_of(SECTOR_SIZE) else {
        return Ok(found);
    };
    // Up to where there may be bits.
    let mut data_end = at;
    while *looks > 0 && at.checked_add(stored).is_some_and(|end| end <= to) {
        if at >= data_end {
            match file.segment_at(at)? {
                (Segment::Hole, end) => {
                    // A bitmap that begins in a hole has its first bit behind it.
                    let last_sector = layout.bitmap_bytes() - SECTOR_SIZE;
                    at = at.max((end / SECTOR_SIZE * SECTOR_SIZE).saturating_sub(last_sector));
                    data_end = end;
                    continue;
                }
                (Segment::Data, end) => data_end = end,
            }
        }
        *looks -= 1;
        if looks_like_block(file, layout, at, to)? {
            found.push(at);
            at += stored;
        } else {
            at += SECTOR_SIZE;
        }
    }
    Ok(found)
}
