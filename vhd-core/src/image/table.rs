//! The block allocation table in memory: atomic words, read without a lock.
//!
//! An image that is written, and one whose every read comes here, has a word for each block. An ancestor has one for each
//! block with space alone: the table of an empty child of 2 TiB would take 8 MiB otherwise, and a chain may have thousands
//! of them. It is asked once per block (the chain's index of places remembers the answer), so a search does not matter.

use super::open::MAX_BLOCKS;
use crate::format::{ENTRIES_PER_SECTOR, TableEntry};
use crate::sync::{AtomicU64, Ordering};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from, usize_from};

/// What is known of one block: where its bitmap stands in the file, whether the block is complete and
/// whether the file's table already says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u64);

impl Slot {
    const ENTRY: u64 = 0xFFFF_FFFF;
    const ALLOCATED: u64 = 1 << 32;
    const FULL: u64 = 1 << 33;
    const UNPUBLISHED: u64 = 1 << 34;
    /// All of them.
    const BITS: u64 = (Self::UNPUBLISHED << 1) - 1;

    /// A block without space in this file.
    pub(super) const UNALLOCATED: Self = Self(0);

    /// A block as the file's table has it; its bitmap has not been looked at.
    pub(super) fn published(entry: TableEntry) -> Self {
        match entry.bitmap_offset() {
            Some(_) => Self(u64::from(u32::from_be_bytes(entry.to_be_bytes())) | Self::ALLOCATED),
            None => Self::UNALLOCATED,
        }
    }

    /// A block that was just given space; the file's table does not know it yet.
    pub(super) fn unpublished(entry: TableEntry, full: bool) -> Self {
        let full = if full { Self::FULL } else { 0 };
        Self(Self::published(entry).0 | Self::UNPUBLISHED | full)
    }

    pub(super) fn is_allocated(self) -> bool {
        self.0 & Self::ALLOCATED != 0
    }

    /// Every sector of the block is in this file: the bitmap need not be consulted.
    pub(super) fn is_full(self) -> bool {
        self.0 & Self::FULL != 0
    }

    /// Where the block's bitmap starts; `None` for a block without space.
    pub(super) fn bitmap_offset(self) -> Option<FileOffset> {
        self.entry().bitmap_offset()
    }

    /// The file's table does not have the block yet.
    pub(super) fn is_unpublished(self) -> bool {
        self.0 & Self::UNPUBLISHED != 0
    }

    fn entry(self) -> TableEntry {
        if !self.is_allocated() {
            return TableEntry::unused();
        }
        let sector = u32::try_from(self.0 & Self::ENTRY).unwrap_or(u32::MAX);
        TableEntry::from_be_bytes(sector.to_be_bytes())
    }

    /// The entry that the file's table may hold now: an unpublished block is not in it (INV-01).
    fn durable_entry(self) -> TableEntry {
        if self.is_unpublished() {
            TableEntry::unused()
        } else {
            self.entry()
        }
    }
}

/// The slots of all blocks of an image.
pub(super) struct BlockTable {
    slots: Slots,
    /// Blocks of the disk.
    blocks: usize,
}

enum Slots {
    /// One for each block.
    All(Box<[AtomicU64]>),
    /// One for each block with space, ascending; the block's number is above the slot.
    Allocated(Box<[AtomicU64]>),
}

/// Where a block's number is in a word of [`Slots::Allocated`].
const NUMBER_SHIFT: u32 = 40;

const _: () = assert!(MAX_BLOCKS <= 1 << (u64::BITS - NUMBER_SHIFT) && Slot::UNPUBLISHED < 1 << NUMBER_SHIFT);

fn number(word: u64) -> u64 {
    word >> NUMBER_SHIFT
}

impl BlockTable {
    /// A table of `blocks` slots, of which those in `used` have space, that answers at once and can be changed.
    pub(super) fn of_all(blocks: usize, used: &[(BlockIndex, TableEntry)]) -> Self {
        let slots: Box<[AtomicU64]> = (0..blocks).map(|_| AtomicU64::new(Slot::UNALLOCATED.0)).collect();
        for &(block, entry) in used {
            slots[block.as_usize()].store(Slot::published(entry).0, Ordering::Relaxed);
        }
        let slots = Slots::All(slots);
        Self { slots, blocks }
    }

    /// The same for an ancestor: `used`, which is in order, takes memory, and nothing else.
    pub(super) fn of_used(blocks: usize, used: &[(BlockIndex, TableEntry)]) -> Self {
        let word = |&(block, entry): &(BlockIndex, TableEntry)| {
            AtomicU64::new(u64::from(block.0) << NUMBER_SHIFT | Slot::published(entry).0)
        };
        let slots = Slots::Allocated(used.iter().map(word).collect());
        Self { slots, blocks }
    }

    /// Bytes of the table in the file, for the blocks that the disk has.
    pub(super) fn file_bytes(&self) -> u64 {
        u64_from(self.blocks.div_ceil(ENTRIES_PER_SECTOR)) * SECTOR_SIZE
    }

    /// Bytes of memory that the table takes.
    pub(super) fn memory(&self) -> u64 {
        match &self.slots {
            Slots::All(words) | Slots::Allocated(words) => u64_from(size_of_val(&**words)),
        }
    }

    /// The word of `block`; `None` for a block without space in a table of used blocks.
    fn word(&self, block: BlockIndex) -> Option<&AtomicU64> {
        match &self.slots {
            Slots::All(words) => Some(&words[block.as_usize()]),
            Slots::Allocated(words) => {
                let word = words.get(first_from(words, block))?;
                (number(word.load(Ordering::Relaxed)) == u64::from(block.0)).then_some(word)
            }
        }
    }

    /// The slot of `block`, which is inside the disk. Acquire: what its publisher wrote before is seen.
    pub(super) fn get(&self, block: BlockIndex) -> Slot {
        match self.word(block) {
            Some(word) => Slot(word.load(Ordering::Acquire) & Slot::BITS),
            None => Slot::UNALLOCATED,
        }
    }

    /// Gives `block` its space. The caller holds the block's stripe and has written what readers must find.
    pub(super) fn allocate(&self, block: BlockIndex, slot: Slot) {
        match &self.slots {
            Slots::All(words) => words[block.as_usize()].store(slot.0, Ordering::Release),
            Slots::Allocated(_) => unreachable!("an ancestor is not written to"),
        }
    }

    /// Notes that every sector of `block` is present.
    pub(super) fn mark_full(&self, block: BlockIndex) {
        if let Some(word) = self.word(block) {
            word.fetch_or(Slot::FULL, Ordering::AcqRel);
        }
    }

    /// Allows the entry of `block` to reach the file.
    pub(super) fn mark_published(&self, block: BlockIndex) {
        if let Some(word) = self.word(block) {
            word.fetch_and(!Slot::UNPUBLISHED, Ordering::AcqRel);
        }
    }

    /// The table sector with number `sector` as the file may hold it now; unused past the last block.
    pub(super) fn encode_sector(&self, sector: u64, out: &mut Vec<u8>) {
        let first = usize_from(sector) * ENTRIES_PER_SECTOR;
        for index in first..first + ENTRIES_PER_SECTOR {
            let block = u32::try_from(index).ok().filter(|_| index < self.blocks);
            let entry = match block {
                Some(block) => self.get(BlockIndex(block)).durable_entry(),
                None => TableEntry::unused(),
            };
            out.extend_from_slice(&entry.to_be_bytes());
        }
    }

    /// How many blocks have space.
    pub(super) fn allocated(&self) -> u64 {
        match &self.slots {
            Slots::All(words) => {
                let used = words.iter().filter(|word| is_used(word));
                u64_from(used.count())
            }
            Slots::Allocated(words) => u64_from(words.len()),
        }
    }

    /// The first block from `block` on that has space.
    pub(super) fn next_allocated(&self, block: BlockIndex) -> Option<BlockIndex> {
        match &self.slots {
            Slots::All(words) => {
                let found = words
                    .iter()
                    .zip(0..)
                    .skip(block.as_usize())
                    .find(|(word, _)| is_used(word));
                found.map(|(_, block)| BlockIndex(block))
            }
            Slots::Allocated(words) => {
                let word = words.get(first_from(words, block))?;
                u32::try_from(number(word.load(Ordering::Relaxed))).ok().map(BlockIndex)
            }
        }
    }
}

fn is_used(word: &AtomicU64) -> bool {
    Slot(word.load(Ordering::Relaxed)).is_allocated()
}

/// Where the word of the first block from `block` on is. Their numbers never change.
fn first_from(words: &[AtomicU64], block: BlockIndex) -> usize {
    words.partition_point(|word| number(word.load(Ordering::Relaxed)) < u64::from(block.0))
}

/// The number of the table sector that holds the entry of `block`.
pub(super) fn table_sector_of(block: BlockIndex) -> u64 {
    u64::from(block.0) / u64_from(ENTRIES_PER_SECTOR)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_table_answer_alike() {
        let entry = |sector: u32| TableEntry::from_raw(sector);
        let used = [(0, 10), (5, 7), (6, 4_000_000_000), (299, 30)];
        let used = used.map(|(block, sector)| (BlockIndex(block), entry(sector)));
        let tables = [BlockTable::of_all(300, &used), BlockTable::of_used(300, &used)];
        for table in &tables {
            table.mark_full(BlockIndex(6));
            // A block without space is not full.
            assert_eq!((table.allocated(), table.file_bytes()), (4, 3 * 512));
        }
        let [all, few] = &tables;
        assert!(few.memory() < all.memory());
        for block in (0..300).map(BlockIndex) {
            assert_eq!(all.get(block), few.get(block), "{block:?}");
            assert_eq!(all.next_allocated(block), few.next_allocated(block), "{block:?}");
        }
        assert!(few.get(BlockIndex(6)).is_full() && !few.get(BlockIndex(5)).is_full());
        assert_eq!(few.next_allocated(BlockIndex(7)), Some(BlockIndex(299)));
        for sector in 0..3 {
            let (mut left, mut right) = (Vec::new(), Vec::new());
            all.encode_sector(sector, &mut left);
            few.encode_sector(sector, &mut right);
            assert_eq!(left, right);
        }
        assert_eq!(BlockTable::of_used(300, &[]).next_allocated(BlockIndex(0)), None);
    }

    #[test]
    fn the_highest_block_and_sector_fit_into_a_word() {
        let last = BlockIndex(u32::try_from(MAX_BLOCKS - 1).unwrap());
        let table = BlockTable::of_used(usize_from(MAX_BLOCKS), &[(last, TableEntry::from_raw(u32::MAX - 1))]);
        assert_eq!(table.get(last).bitmap_offset(), Some(FileOffset(0xFFFF_FFFE * 512)));
        assert_eq!(table.next_allocated(BlockIndex(0)), Some(last));
    }
}
