//! The entries of the block allocation table (specification, "Block Allocation Table and Data Blocks").

use std::fmt;

use crate::units::{FileOffset, SECTOR_SIZE, checked_align_up, u64_from};

/// The entry of a block that is not in the file. Zero is not such an entry.
pub const UNUSED_ENTRY: u32 = 0xFFFF_FFFF;
/// Bytes of an entry.
pub const TABLE_ENTRY_SIZE: usize = 4;
/// Entries in a sector of the table.
pub const ENTRIES_PER_SECTOR: usize = 128;

const _: () = assert!(u64_from(TABLE_ENTRY_SIZE * ENTRIES_PER_SECTOR) == SECTOR_SIZE);

/// One entry: the sector of the file where a block's bitmap begins, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TableEntry(u32);

impl TableEntry {
    /// The entry of a block that is not in the file.
    #[must_use]
    pub const fn unused() -> Self {
        Self(UNUSED_ENTRY)
    }

    /// The entry of a block whose bitmap begins at `offset`; `None` if that is no sector or too far in the
    /// file for an entry. `offset` is in bytes.
    #[must_use]
    pub fn at(offset: FileOffset) -> Option<Self> {
        if !offset.0.is_multiple_of(SECTOR_SIZE) {
            return None;
        }
        let sector = u32::try_from(offset.0 / SECTOR_SIZE).ok()?;
        (sector != UNUSED_ENTRY).then_some(Self(sector))
    }

    /// Where the block's bitmap begins, in bytes; `None` if the block is not in the file.
    #[must_use]
    pub fn bitmap_offset(self) -> Option<FileOffset> {
        (self.0 != UNUSED_ENTRY).then(|| FileOffset(u64::from(self.0) * SECTOR_SIZE))
    }

    /// The entry with this number, for tables that are kept as numbers: a sector or [`UNUSED_ENTRY`].
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self(raw)
    }

    /// The entry as a number: a sector or [`UNUSED_ENTRY`].
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The entry that stands in the file as `bytes`.
    #[must_use]
    pub const fn from_be_bytes(bytes: [u8; TABLE_ENTRY_SIZE]) -> Self {
        Self(u32::from_be_bytes(bytes))
    }

    /// The entry as it stands in the file.
    #[must_use]
    pub const fn to_be_bytes(self) -> [u8; TABLE_ENTRY_SIZE] {
        self.0.to_be_bytes()
    }
}

impl fmt::Debug for TableEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.bitmap_offset() {
            Some(offset) => write!(f, "TableEntry({offset:?})"),
            None => f.write_str("TableEntry(unused)"),
        }
    }
}

/// Bytes of a table of `entries` entries in the file, padded to a whole sector. Saturates far beyond
/// the 2^32 entries that a header can declare.
#[must_use]
pub fn table_bytes(entries: u64) -> u64 {
    entries
        .checked_mul(u64_from(TABLE_ENTRY_SIZE))
        .and_then(|bytes| checked_align_up(bytes, SECTOR_SIZE))
        .unwrap_or(u64::MAX - (SECTOR_SIZE - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn entries_are_big_endian_sectors() {
        let entry = TableEntry::from_be_bytes([0, 0, 0, 4]);
        assert_eq!(entry.bitmap_offset(), Some(FileOffset(2048)));
        assert_eq!(
            TableEntry::at(FileOffset(0x1234 * 512)).unwrap().to_be_bytes(),
            [0, 0, 0x12, 0x34]
        );
    }

    #[test]
    fn unused_is_all_ones_and_zero_is_used() {
        assert_eq!(TableEntry::unused().to_be_bytes(), [0xFF; 4]);
        assert_eq!(TableEntry::from_be_bytes([0xFF; 4]), TableEntry::unused());
        assert_eq!(TableEntry::unused().bitmap_offset(), None);
        assert_eq!(TableEntry::from_be_bytes([0; 4]).bitmap_offset(), Some(FileOffset(0)));
    }

    #[test]
    fn offsets_without_an_entry() {
        assert_eq!(TableEntry::at(FileOffset(513)), None);
        assert_eq!(TableEntry::at(FileOffset(0xFFFF_FFFF * 512)), None);
        assert_eq!(TableEntry::at(FileOffset(0x1_0000_0000 * 512)), None);
        assert_eq!(TableEntry::at(FileOffset(u64::MAX - 511)), None);
        assert!(TableEntry::at(FileOffset(0xFFFF_FFFE * 512)).is_some());
    }

    #[test]
    fn tables_fill_sectors() {
        assert_eq!(table_bytes(0), 0);
        assert_eq!(table_bytes(1), 512);
        assert_eq!(table_bytes(128), 512);
        assert_eq!(table_bytes(129), 1024);
        assert_eq!(table_bytes(1_044_480), 4_177_920);
        assert_eq!(table_bytes(u64::from(u32::MAX)), 1 << 34);
        assert_eq!(table_bytes(u64::MAX) % 512, 0);
        assert_eq!(table_bytes(u64::MAX / 4) % 512, 0);
    }

    proptest! {
        #[test]
        fn bytes_survive(bytes: [u8; 4]) {
            let entry = TableEntry::from_be_bytes(bytes);
            prop_assert_eq!(entry.to_be_bytes(), bytes);
            prop_assert_eq!(TableEntry::from_raw(entry.raw()), entry);
            let offset = entry.bitmap_offset();
            prop_assert_eq!(offset.map_or(Some(TableEntry::unused()), TableEntry::at), Some(entry));
        }

        #[test]
        fn offsets_survive(sector in 0..UNUSED_ENTRY) {
            let offset = FileOffset(u64::from(sector) * 512);
            prop_assert_eq!(TableEntry::at(offset).unwrap().bitmap_offset(), Some(offset));
            prop_assert_eq!(TableEntry::at(FileOffset(offset.0 + 1)), None);
        }
    }
}
