//! What a delta says of the disks it leads from and to: a sector of our own in a gap of the file, which no reader of
//! the format looks at.

use std::mem::offset_of;

use zerocopy::big_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{DynamicHeader, UniqueId, table_bytes};
use crate::units::SECTOR_SIZE;

/// Bytes of a record.
pub const DELTA_RECORD_SIZE: usize = 512;

const MAGIC: [u8; 8] = *b"vhddelta";
const VERSION: u32 = 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    delta_id: [u8; 16],
    base_sha256: [u8; 32],
    result_sha256: [u8; 32],
    disk_size: U64,
    padding: [u8; 404],
    /// CRC-32 of all bytes before it.
    checksum: U32,
}

const _: () = assert!(size_of::<RawRecord>() == DELTA_RECORD_SIZE);

/// What a delta says of the disks it leads from and to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaRecord {
    /// The identity of the delta itself: a record that came into another image by copying is none.
    pub delta_id: UniqueId,
    /// The SHA-256 of the disk it is to be put on.
    pub base_sha256: [u8; 32],
    /// The SHA-256 of the disk that results.
    pub result_sha256: [u8; 32],
    /// Bytes of both disks.
    pub disk_size: u64,
}

impl DeltaRecord {
    /// Where the record of an image with this header is: in the first sector behind the table and the locators.
    /// `None` if that is past the largest offset.
    #[must_use]
    pub fn offset(header: &DynamicHeader) -> Option<u64> {
        let table = header
            .table_offset
            .checked_add(table_bytes(u64::from(header.max_table_entries)));
        let locators = header.locators.iter().flatten().map(super::LocatorEntry::end);
        let ends: Option<Vec<u64>> = std::iter::once(table).chain(locators).collect();
        ends?.into_iter().max()?.checked_next_multiple_of(SECTOR_SIZE)
    }

    /// The record in `bytes`; `None` if there is none.
    #[must_use]
    pub fn decode(bytes: &[u8; DELTA_RECORD_SIZE]) -> Option<Self> {
        let raw: &RawRecord = zerocopy::transmute_ref!(bytes);
        let is_record = raw.magic == MAGIC && raw.version == VERSION && raw.checksum.get() == sum(bytes);
        is_record.then_some(Self {
            delta_id: UniqueId(raw.delta_id),
            base_sha256: raw.base_sha256,
            result_sha256: raw.result_sha256,
            disk_size: raw.disk_size.get(),
        })
    }

    /// The record as it stands in the file.
    #[must_use]
    pub fn encode(&self) -> [u8; DELTA_RECORD_SIZE] {
        let mut raw = RawRecord {
            magic: MAGIC,
            version: U32::new(VERSION),
            reserved: U32::ZERO,
            delta_id: self.delta_id.0,
            base_sha256: self.base_sha256,
            result_sha256: self.result_sha256,
            disk_size: U64::new(self.disk_size),
            padding: [0; 404],
            checksum: U32::ZERO,
        };
        raw.checksum = U32::new(sum(zerocopy::transmute_ref!(&raw)));
        zerocopy::transmute!(raw)
    }
}

fn sum(bytes: &[u8; DELTA_RECORD_SIZE]) -> u32 {
    crc32fast::hash(&bytes[..offset_of!(RawRecord, checksum)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_is_noticed() {
        let record = DeltaRecord {
            delta_id: UniqueId([1; 16]),
            base_sha256: [2; 32],
            result_sha256: [3; 32],
            disk_size: 4 << 30,
        };
        let good = record.encode();
        assert_eq!(DeltaRecord::decode(&good), Some(record));
        for bit in 0..DELTA_RECORD_SIZE * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(DeltaRecord::decode(&bytes), None, "bit {bit}");
        }
    }
}
