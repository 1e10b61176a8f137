//! Where everything of a delta will be, known before its first byte is written.

use super::DeltaError;
use crate::device::ByteRange;
use crate::format::{
    BlockLayout, DELTA_RECORD_SIZE, DeltaRecord, DynamicHeader, SECTORS_PER_WORD, TableEntry, mask, table_bytes,
    word_to_bytes,
};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, VirtualOffset, u64_from, usize_from};

/// A block of the delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) block: BlockIndex,
    /// Where its bitmap begins in the file.
    pub(super) at: FileOffset,
}

/// The order of a delta's file.
pub(super) struct Layout {
    pub(super) blocks: Vec<Placed>,
    pub(super) record_at: u64,
    pub(super) footer_at: u64,
    block: BlockLayout,
    /// What the delta holds: sectors, ascending, coalesced.
    ranges: Vec<ByteRange>,
}

impl Layout {
    /// The order of a delta with this header that holds these ranges.
    pub(super) fn new(header: &DynamicHeader, ranges: Vec<ByteRange>) -> Result<Self, DeltaError> {
        let block = header.layout;
        let record_at = DeltaRecord::offset(header).ok_or(DeltaError::TooLarge)?;
        let mut end = record_at + u64_from(DELTA_RECORD_SIZE);
        let mut blocks: Vec<Placed> = Vec::new();
        for range in &ranges {
            let first = block.block_of(VirtualOffset(range.start));
            let last = block.block_of(VirtualOffset(range.end() - 1));
            let first = match blocks.last() {
                Some(known) if known.block == first => first.0 + 1,
                _ => first.0,
            };
            for index in first..=last.0 {
                let at = FileOffset(block.aligned_start(end));
                TableEntry::at(at).ok_or(DeltaError::TooLarge)?;
                end = at.0 + block.stored_bytes();
                blocks.push(Placed {
                    block: BlockIndex(index),
                    at,
                });
            }
        }
        Ok(Self {
            blocks,
            record_at,
            footer_at: end.next_multiple_of(SECTOR_SIZE),
            block,
            ranges,
        })
    }

    /// The block table, filled up to whole sectors.
    pub(super) fn table(&self, header: &DynamicHeader) -> Vec<u8> {
        let mut table = vec![0xFF; usize_from(table_bytes(u64::from(header.max_table_entries)))];
        for placed in &self.blocks {
            let entry = TableEntry::at(placed.at).unwrap_or(TableEntry::unused()).to_be_bytes();
            let at = placed.block.as_usize() * entry.len();
            table[at..at + entry.len()].copy_from_slice(&entry);
        }
        table
    }

    /// What the delta holds of `range`.
    pub(super) fn held(&self, range: ByteRange) -> impl Iterator<Item = ByteRange> {
        let first = self.ranges.partition_point(|held| held.end() <= range.start);
        let held = self.ranges[first..].iter();
        held.take_while(move |held| held.start < range.end()).map(move |held| {
            let start = held.start.max(range.start);
            ByteRange::new(start, held.end().min(range.end()) - start)
        })
    }

    /// The bytes of the disk that a block has, those behind its end included.
    pub(super) fn range_of(&self, block: BlockIndex) -> ByteRange {
        ByteRange::new(self.block.block_start(block).0, self.block.block_size())
    }

    /// The bitmap of a block.
    pub(super) fn bitmap(&self, block: BlockIndex) -> Vec<u8> {
        let mut words = vec![0; usize_from(self.block.bitmap_bytes() / 8)];
        let range = self.range_of(block);
        for held in self.held(range) {
            let (mut at, end) = (
                (held.start - range.start) / SECTOR_SIZE,
                (held.end() - range.start) / SECTOR_SIZE,
            );
            while at < end {
                let bits = u64::from(SECTORS_PER_WORD);
                let count = (bits - at % bits).min(end - at);
                let narrow = |n: u64| u32::try_from(n).unwrap_or(SECTORS_PER_WORD);
                words[usize_from(at / bits)] |= mask(narrow(at % bits), narrow(count));
                at += count;
            }
        }
        words.into_iter().flat_map(word_to_bytes).collect()
    }

    /// Bytes of the disk that the delta holds.
    pub(super) fn held_bytes(&self) -> u64 {
        self.ranges.iter().map(|range| range.len).sum()
    }
}
