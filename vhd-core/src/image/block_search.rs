//! Blocks that no table entry refers to: what looks like one, and where such are in space that nothing uses.

use std::io;

use super::hidden::absent_runs;
use crate::format::BlockLayout;
use crate::storage::{Segment, StorageFile, is_zero, reads_zero};
use crate::units::{SECTOR_SIZE, usize_from};

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
    let mut buffer = Vec::new();
    for (first, count) in absent_runs(&bitmap, sectors) {
        let start = (data + first * SECTOR_SIZE).min(end);
        let len = (count * SECTOR_SIZE).min(end - start);
        if !reads_zero(file, start, len, &mut buffer)? {
            return Ok(false);
        }
    }
    Ok(true)
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
    while *looks > 0 && at.checked_add(stored).is_some_and(|end| end <= to) {
        *looks -= 1;
        if looks_like_block(file, layout, at, to)? {
            found.push(at);
            at += stored;
            continue;
        }
        at = match file.segment_at(at)? {
            (Segment::Hole, end) => (end / SECTOR_SIZE * SECTOR_SIZE).max(at + SECTOR_SIZE),
            _ => at + SECTOR_SIZE,
        };
    }
    Ok(found)
}
