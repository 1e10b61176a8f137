//! Where everything goes when an image of blocks grows: the table stays where it is or goes behind the header if
//! what is in its way can move, else to the end of the file.

use std::ops::Range;

use super::ResizeError;
use crate::device::DeviceError;
use crate::format::{
    BlockLayout, DynamicHeader, FOOTER_SIZE, HEADER_SIZE, LocatorEntry, MAX_LOCATOR_LENGTH, TableEntry, table_bytes,
};
use crate::image::{Arrangement, Image, MAX_BLOCKS, PlacedBlock};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from};

/// A block that makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockMove {
    pub(super) block: BlockIndex,
    /// Where its bitmap is.
    pub(super) from: u64,
    /// Where its bitmap goes: behind everything that the file has.
    pub(super) to: u64,
    /// Bytes of bitmap and data that lie on the disk.
    pub(super) len: u64,
}

/// A parent locator's text that makes room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LocatorMove {
    pub(super) slot: usize,
    /// The entry as it is.
    pub(super) entry: LocatorEntry,
    /// Where the text goes.
    pub(super) to: u64,
}

impl LocatorMove {
    fn target(&self) -> Range<u64> {
        self.to..self.to + text_space(&self.entry)
    }

    /// The entry that leads to the new place.
    pub(super) fn moved(&self) -> LocatorEntry {
        LocatorEntry {
            offset: self.to,
            space: u32::try_from(text_space(&self.entry)).unwrap_or(u32::MAX),
            ..self.entry
        }
    }
}

/// The blocks that move, and what has to be cleared behind the end of the disk in a last block that stays.
type BlocksInTheWay = (Vec<BlockMove>, Option<(u64, u64)>);

/// How an image of blocks grows.
#[derive(Debug)]
pub(super) struct Growth {
    /// Where the table will be.
    pub(super) table: Range<u64>,
    /// Its entries: one for each block.
    pub(super) entries: u32,
    /// The table is not where it was.
    pub(super) table_moves: bool,
    pub(super) moves: Vec<BlockMove>,
    pub(super) locators: Vec<LocatorMove>,
    /// What lies behind the end of the disk in its last block: start and length.
    pub(super) clear: Option<(u64, u64)>,
    /// Where the tail footer has to be, if the file has to become longer.
    pub(super) end: Option<u64>,
}

/// Entries of the table of a disk of `size` bytes.
pub(super) fn entries_for(layout: BlockLayout, size: u64) -> Result<u32, ResizeError> {
    let blocks = layout.blocks_for(size);
    match u32::try_from(blocks) {
        Ok(entries) if blocks <= MAX_BLOCKS => Ok(entries),
        _ => Err(ResizeError::TooManyBlocks {
            blocks,
            block_size: layout.block_size(),
            maximum: MAX_BLOCKS,
        }),
    }
}

impl Growth {
    /// Plans the growth to `size` bytes; `None` for a fixed image.
    pub(super) fn plan(image: &Image, size: u64) -> Result<Option<Self>, ResizeError> {
        let (Some(header), Some(arrangement)) = (image.header(), image.arrangement()?) else {
            return Ok(None);
        };
        let entries = entries_for(header.layout, size)?;
        let header_offset = image.footer().data_offset.unwrap_or(0);
        let ground = Ground {
            header,
            header_region: header_offset..header_offset + u64_from(HEADER_SIZE),
            old_table: header.table_offset..header.table_offset + table_bytes(u64::from(header.max_table_entries)),
            file_end: image.file_len()?.next_multiple_of(SECTOR_SIZE),
            size: image.disk_size(),
            arrangement: &arrangement,
        };
        ground.plan(entries).map(Some)
    }
}

/// What there is.
struct Ground<'a> {
    header: &'a DynamicHeader,
    header_region: Range<u64>,
    old_table: Range<u64>,
    arrangement: &'a Arrangement,
    file_end: u64,
    /// Bytes on the disk.
    size: u64,
}

impl Ground<'_> {
    fn plan(&self, entries: u32) -> Result<Growth, ResizeError> {
        let need = table_bytes(u64::from(entries));
        let places = [self.header.table_offset, self.header_region.end];
        let near = places.into_iter().find_map(|start| {
            let table = start..start.checked_add(need)?;
            let locators = self.room_for(&table)?;
            Some((table, locators))
        });
        let behind = self.claimed_end();
        let (table, locators) = near.unwrap_or((behind..behind.saturating_add(need), Vec::new()));
        let taken: Vec<Range<u64>> = std::iter::once(table.clone())
            .chain(locators.iter().map(LocatorMove::target))
            .collect();
        let taken_end = taken.iter().map(|range| range.end).fold(behind, u64::max);
        let (moves, clear) = self.moves(&taken, taken_end)?;
        let needed = taken.iter().map(|range| range.end);
        let needed = needed.chain(moves.iter().map(|step| step.to + self.header.layout.stored_bytes()));
        let needed = needed.max().unwrap_or(0);
        Ok(Growth {
            table_moves: table.start != self.old_table.start,
            end: (needed > self.arrangement.space_end).then(|| needed.max(self.file_end)),
            table,
            entries,
            moves,
            locators,
            clear,
        })
    }

    /// Whether the table can be there, and which locators make room for it and go where.
    fn room_for(&self, table: &Range<u64>) -> Option<Vec<LocatorMove>> {
        let mut staying = vec![0..u64_from(FOOTER_SIZE), self.header_region.clone()];
        if table.start != self.old_table.start {
            staying.push(self.old_table.clone());
        }
        let (movable, fast): (Vec<_>, Vec<_>) = self.locators().partition(|(_, entry)| self.is_movable(entry));
        staying.extend(fast.iter().map(|(_, entry)| claimed(entry)));
        let free = |range: &Range<u64>| !staying.iter().any(|taken| overlap(taken, range));
        if !free(table) {
            return None;
        }
        let mut in_the_way = table.clone();
        loop {
            let (moving, rest): (Vec<_>, Vec<_>) = movable
                .iter()
                .partition(|(_, entry)| overlap(&claimed(entry), &in_the_way));
            // The old texts stay readable until the header leads to the new ones.
            let ends = moving.iter().map(|(_, entry)| text(entry).end);
            let start = ends.fold(table.end, u64::max).next_multiple_of(SECTOR_SIZE);
            let moves = place_one_behind_the_other(&moving, start);
            let end = moves.last().map_or(table.end, |last| last.target().end);
            if !moves.is_empty() && !free(&(start..end)) {
                return None;
            }
            in_the_way = table.start..end;
            if !rest.iter().any(|(_, entry)| overlap(&claimed(entry), &in_the_way)) {
                return Some(moves);
            }
        }
    }

    fn locators(&self) -> impl Iterator<Item = (usize, LocatorEntry)> {
        let slots = self.header.locators.iter().enumerate();
        slots.filter_map(|(slot, entry)| Some((slot, (*entry)?)))
    }

    /// Its text is in the file, and no larger than any.
    fn is_movable(&self, entry: &LocatorEntry) -> bool {
        entry.length <= MAX_LOCATOR_LENGTH && text(entry).end <= self.arrangement.space_end
    }

    /// What becomes of the blocks when `taken` is needed: those that move go `behind` everything.
    fn moves(&self, taken: &[Range<u64>], behind: u64) -> Result<BlocksInTheWay, ResizeError> {
        let layout = self.header.layout;
        let (mut moves, mut clear, mut next) = (Vec::new(), None, behind);
        for placed in &self.arrangement.blocks {
            let on_disk = layout.bitmap_bytes() + layout.bytes_on_disk(placed.block, self.size);
            let whole = placed.offset..placed.offset + layout.stored_bytes();
            let used = placed.offset..placed.offset + on_disk;
            let is_cut = used.end < whole.end;
            let in_the_way = taken.iter().any(|range| overlap(range, &used));
            let is_cramped = is_cut && self.is_cramped(placed, &whole, taken);
            if !in_the_way && !is_cramped {
                if is_cut {
                    clear = Some((used.end, whole.end - used.end));
                }
                continue;
            }
            let to = layout.aligned_start(next);
            TableEntry::at(FileOffset(to)).ok_or(DeviceError::ImageFull { offset: to })?;
            next = to + layout.stored_bytes();
            moves.push(BlockMove {
                block: placed.block,
                from: placed.offset,
                to,
                len: on_disk,
            });
        }
        Ok((moves, clear))
    }

    /// Whether the last block has no room for what it has behind the end of the disk.
    fn is_cramped(&self, last: &PlacedBlock, whole: &Range<u64>, taken: &[Range<u64>]) -> bool {
        let neighbours = self.arrangement.blocks.iter().filter(|other| other.block != last.block);
        let mut neighbours = neighbours.map(|other| other.offset..other.end);
        let mut fixed = self.arrangement.fixed.iter().map(|&(start, end)| start..end);
        whole.end > self.arrangement.space_end
            || neighbours.any(|range| overlap(&range, whole))
            || fixed.any(|range| overlap(&range, whole))
            || taken.iter().any(|range| overlap(range, whole))
    }

    /// Where the file ends, and everything that the header claims behind that: a block there would be refused.
    fn claimed_end(&self) -> u64 {
        let reachable = self
            .arrangement
            .fixed
            .iter()
            .filter(|(start, _)| TableEntry::at(FileOffset(start / SECTOR_SIZE * SECTOR_SIZE)).is_some());
        let ends = reachable.map(|(_, end)| end.checked_next_multiple_of(SECTOR_SIZE).unwrap_or(u64::MAX));
        ends.fold(self.file_end, u64::max)
    }
}

fn place_one_behind_the_other(moving: &[(usize, LocatorEntry)], start: u64) -> Vec<LocatorMove> {
    let mut to = start;
    let placed = moving.iter().map(|(slot, entry)| {
        let step = LocatorMove {
            slot: *slot,
            entry: *entry,
            to,
        };
        to = step.target().end;
        step
    });
    placed.collect()
}

/// Where the text of a locator is.
fn text(entry: &LocatorEntry) -> Range<u64> {
    entry.offset..entry.offset.saturating_add(u64::from(entry.length))
}

/// The space that a locator's text takes at a new place.
fn text_space(entry: &LocatorEntry) -> u64 {
    u64::from(entry.length).next_multiple_of(SECTOR_SIZE).max(SECTOR_SIZE)
}

/// The space that a locator claims.
fn claimed(entry: &LocatorEntry) -> Range<u64> {
    let end = entry.end().unwrap_or(u64::MAX);
    entry.offset..end.max(entry.offset.saturating_add(1))
}

fn overlap(a: &Range<u64>, b: &Range<u64>) -> bool {
    a.start < b.end && b.start < a.end
}
