//! The GUID partition table.

use super::{Partition, SECTOR};
use crate::Unusable;
use crate::bytes::{has, le32, le64};
use crate::window::Window;

pub(super) const SIGNATURE: &[u8] = b"EFI PART";
const HEADER: usize = 92;
const HEADER_CHECKSUM: std::ops::Range<usize> = 16..20;
const MIN_ENTRY: u64 = 128;
/// Bytes: real tables take 16 KiB.
const MAX_TABLE: u64 = 1 << 20;
/// Linux RAID, as it stands on disk.
const RAID_TYPE: [u8; 16] = [
    0x0F, 0x88, 0x9D, 0xA1, 0xFC, 0x05, 0x3B, 0x4D, 0xA0, 0x06, 0x74, 0x3F, 0x0F, 0x84, 0x91, 0x1E,
];

pub(super) fn partitions(disk: &Window<'_>) -> Result<Vec<Partition>, Unusable> {
    let sector = disk.read(SECTOR, SECTOR)?;
    let size = le32(&sector, 12);
    let header = usize::try_from(size).ok().and_then(|size| sector.get(..size));
    let header = header.filter(|header| header.len() >= HEADER && has(header, 0, SIGNATURE));
    let mut header = header.ok_or(Unusable::Table("there is no GPT header"))?.to_vec();
    let expected = le32(&header, 16);
    header[HEADER_CHECKSUM].fill(0);
    if crc32fast::hash(&header) != expected || le64(&header, 24) != 1 {
        return Err(Unusable::Table("the GPT header is damaged"));
    }
    let (entries, entry_size) = (u64::from(le32(&header, 80)), u64::from(le32(&header, 84)));
    let table_size = entries.saturating_mul(entry_size);
    if entry_size < MIN_ENTRY || table_size > MAX_TABLE {
        return Err(Unusable::Table("the GPT has entries of an unknown kind"));
    }
    let at = le64(&header, 72).checked_mul(SECTOR);
    let at = at.ok_or(Unusable::Table("the GPT is not inside the disk"))?;
    let table = disk.read(at, table_size)?;
    if crc32fast::hash(&table) != le32(&header, 88) {
        return Err(Unusable::Table("the entries of the GPT are damaged"));
    }
    Ok(entries_of(&table, entry_size))
}

fn entries_of(table: &[u8], entry_size: u64) -> Vec<Partition> {
    let entry_size = crate::bytes::index(entry_size);
    let entries = (1..).zip(table.chunks_exact(entry_size));
    let used = entries.filter(|(_, entry)| !entry.starts_with(&[0; 16]));
    let partitions = used.filter_map(|(number, entry)| {
        let (first, last) = (le64(entry, 32), le64(entry, 40));
        let sectors = last.checked_sub(first)?.checked_add(1)?;
        Some(Partition {
            number,
            start: first.checked_mul(SECTOR)?,
            len: sectors.checked_mul(SECTOR)?,
            is_raid: entry.starts_with(&RAID_TYPE),
        })
    });
    partitions.collect()
}

const _: () = assert!(HEADER < 512);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_without_a_type_or_with_a_negative_length_are_none() {
        let mut table = vec![0; 3 * 128];
        table[128] = 1;
        table[128 + 32] = 9;
        table[128 + 40] = 8;
        table[256] = 1;
        table[256 + 32] = 8;
        table[256 + 40] = 9;
        let found = entries_of(&table, 128);
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].number, found[0].start, found[0].len), (3, 4096, 1024));
    }
}
