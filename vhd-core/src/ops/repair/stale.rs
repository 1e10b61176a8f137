//! Bytes that a bitmap hides.

use super::draft::Draft;
use super::error::{Doing as _, RepairError};
use super::finding::{Certainty, RepairCode};
use super::footer::Basis;
use super::header::Located;
use crate::format::{DiskType, TableEntry};
use crate::image::{absent_runs, read_table};
use crate::storage::{StorageFile as _, reads_zero};
use crate::units::{BlockIndex, SECTOR_SIZE, u64_from};

/// Bytes that are cleared at most: the undo file keeps all of them.
const MOST: u64 = 256 << 20;

/// Clears sectors of a dynamic image that the bitmaps call absent and that are not zero: programs that ignore bitmaps
/// read them. In a differencing image nothing depends on it. More than 256 MiB of them are left alone.
pub(super) fn clear(draft: &mut Draft, basis: &Basis, located: &Located) -> Result<(), RepairError> {
    if basis.footer.disk_type != DiskType::Dynamic {
        return Ok(());
    }
    let table = read_table(
        &*draft.overlay,
        &located.header,
        &basis.footer,
        located.offset,
        draft.len()?,
    );
    let entries = table.map_err(|error| RepairError::hopeless(error.to_string()))?;
    let mut stale = Vec::new();
    for (block, entry) in (0..).map(BlockIndex).zip(&entries) {
        find(draft, basis, located, (block, *entry), &mut stale)?;
        if u64_from(stale.len()) * SECTOR_SIZE > MOST {
            return Ok(());
        }
    }
    for at in &stale {
        draft.overlay.punch_hole(*at, SECTOR_SIZE).doing("clear", *at)?;
    }
    if let Some(first) = stale.first() {
        let message = format!(
            "{} sectors that bitmaps call absent are not zero: they are cleared",
            stale.len()
        );
        draft.found(RepairCode::StaleSectors, Certainty::Certain, Some(*first), message);
    }
    Ok(())
}

fn find(
    draft: &Draft,
    basis: &Basis,
    located: &Located,
    (block, entry): (BlockIndex, TableEntry),
    stale: &mut Vec<u64>,
) -> Result<(), RepairError> {
    let Some(offset) = entry.bitmap_offset() else {
        return Ok(());
    };
    let layout = located.header.layout;
    if offset.0 + layout.bitmap_bytes() > draft.len()? {
        return Ok(()); // the table lies over something else that was written: the last check says so
    }
    let bitmap = draft.read(offset.0, layout.bitmap_bytes())?;
    let sectors = layout.bytes_on_disk(block, basis.footer.current_size) / SECTOR_SIZE;
    let mut buffer = Vec::new();
    for (first, count) in absent_runs(&bitmap, sectors) {
        let run = offset.0 + layout.bitmap_bytes() + first * SECTOR_SIZE;
        let is_zero = |at, len, buffer: &mut Vec<u8>| reads_zero(&*draft.overlay, at, len, buffer).doing("read", at);
        if is_zero(run, count * SECTOR_SIZE, &mut buffer)? {
            continue;
        }
        for at in (0..count).map(|sector| run + sector * SECTOR_SIZE) {
            if !is_zero(at, SECTOR_SIZE, &mut buffer)? {
                stale.push(at);
            }
        }
    }
    Ok(())
}
