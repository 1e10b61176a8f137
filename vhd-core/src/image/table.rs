//! The block allocation table in memory: one atomic word per block, read without a lock.

use crate::format::{ENTRIES_PER_SECTOR, TableEntry};
use crate::sync::{AtomicU64, Ordering};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from};

/// What is known of one block: where its bitmap stands in the file, whether the block is complete and
/// whether the file's table already says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slot(u64);

impl Slot {
    const ENTRY: u64 = 0xFFFF_FFFF;
    const ALLOCATED: u64 = 1 << 32;
    const FULL: u64 = 1 << 33;
    const UNPUBLISHED: u64 = 1 << 34;

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
    slots: Box<[AtomicU64]>,
}

impl BlockTable {
    pub(super) fn new(slots: impl Iterator<Item = Slot>) -> Self {
        Self {
            slots: slots.map(|slot| AtomicU64::new(slot.0)).collect(),
        }
    }

    /// Bytes of the table in the file, for the blocks that the disk has.
    pub(super) fn file_bytes(&self) -> u64 {
        u64_from(self.slots.len().div_ceil(ENTRIES_PER_SECTOR)) * SECTOR_SIZE
    }

    /// Bytes of memory that the table takes.
    pub(super) fn memory(&self) -> u64 {
        u64_from(size_of_val(&*self.slots))
    }

    /// The slot of `block`, which is inside the disk. Acquire: what its publisher wrote before is seen.
    pub(super) fn get(&self, block: BlockIndex) -> Slot {
        Slot(self.slots[block.as_usize()].load(Ordering::Acquire))
    }

    /// Gives `block` its space. The caller holds the block's stripe and has written what readers must find.
    pub(super) fn allocate(&self, block: BlockIndex, slot: Slot) {
        self.slots[block.as_usize()].store(slot.0, Ordering::Release);
    }

    /// Notes that every sector of `block` is present.
    pub(super) fn mark_full(&self, block: BlockIndex) {
        self.slots[block.as_usize()].fetch_or(Slot::FULL, Ordering::AcqRel);
    }

    /// Allows the entry of `block` to reach the file.
    pub(super) fn mark_published(&self, block: BlockIndex) {
        self.slots[block.as_usize()].fetch_and(!Slot::UNPUBLISHED, Ordering::AcqRel);
    }

    /// The table sector with number `sector` as the file may hold it now; unused past the last block.
    pub(super) fn encode_sector(&self, sector: u64, out: &mut Vec<u8>) {
        let first = crate::units::usize_from(sector) * ENTRIES_PER_SECTOR;
        for index in first..first + ENTRIES_PER_SECTOR {
            let entry = match self.slots.get(index) {
                Some(word) => Slot(word.load(Ordering::Acquire)).durable_entry(),
                None => TableEntry::unused(),
            };
            out.extend_from_slice(&entry.to_be_bytes());
        }
    }

    /// How many blocks have space.
    pub(super) fn allocated(&self) -> u64 {
        let words = self
            .slots
            .iter()
            .filter(|word| Slot(word.load(Ordering::Relaxed)).is_allocated());
        u64_from(words.count())
    }
}

/// The number of the table sector that holds the entry of `block`.
pub(super) fn table_sector_of(block: BlockIndex) -> u64 {
    u64::from(block.0) / u64_from(ENTRIES_PER_SECTOR)
}
