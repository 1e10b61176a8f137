//! The backup of a GPT follows the end of its disk.

use std::sync::Arc;

use super::ResizeError;
use super::family::Family;
use crate::device::{ByteRange, Disk, ZeroOptions};
use crate::image::OpenMode;
use crate::partition::{Relocated, backup_ranges, relocate};
use crate::units::u64_from;

/// Whether the disk has a GPT that does not end at `size`.
pub(super) fn must_move(disk: &Disk, size: u64) -> Result<bool, ResizeError> {
    match relocate(disk, size)? {
        None => Ok(false),
        Some(relocated) => differs(disk, &relocated),
    }
}

/// Writes the GPT of the family's image so that it ends at `size`, durably; whether that changed anything. What was
/// the backup behind `size` becomes zero.
pub(super) fn move_backup(family: &Family, size: u64) -> Result<bool, ResizeError> {
    let device = Arc::new(family.device(family.image, &OpenMode::read_write())?);
    let disk = Disk::new(Arc::clone(&device) as _);
    let outdated = backup_ranges(&disk)?.into_iter().filter(|range| range.end() > size);
    let outdated: Vec<ByteRange> = outdated.collect();
    let Some(relocated) = relocate(&disk, size)? else {
        return Ok(false);
    };
    let moved = differs(&disk, &relocated)?;
    if moved {
        for (offset, bytes) in relocated.patches() {
            disk.write_at(bytes, *offset)?;
            disk.flush()?;
        }
    }
    for range in outdated {
        disk.write_zeroes(cut_front(range, size), ZeroOptions::default())?;
    }
    drop(disk);
    if let Some(device) = Arc::into_inner(device) {
        device.close()?;
    }
    Ok(moved)
}

/// What of a range is behind `size`; the part before is the new backup's by now, or nobody's.
fn cut_front(range: ByteRange, size: u64) -> ByteRange {
    let start = range.start.max(size);
    ByteRange::new(start, range.end() - start)
}

fn differs(disk: &Disk, relocated: &Relocated) -> Result<bool, ResizeError> {
    for (offset, bytes) in relocated.patches() {
        let mut found = vec![0; bytes.len()];
        // Behind the end of a disk that is yet to grow nothing is right.
        if offset + u64_from(bytes.len()) > disk.size() {
            return Ok(true);
        }
        disk.read_at(&mut found, *offset)?;
        if found != *bytes {
            return Ok(true);
        }
    }
    Ok(false)
}
