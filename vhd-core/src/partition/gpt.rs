//! GUID partition tables (UEFI specification, chapter 5.3) of disks with sectors of 512 bytes.

use std::mem::offset_of;

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Partition, PartitionError, range_of, read_sectors};
use crate::device::Disk;
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

const SECTOR: usize = usize_from(SECTOR_SIZE);
const SIGNATURE: [u8; 8] = *b"EFI PART";
/// The sector of the first header.
pub(super) const PRIMARY: u64 = 1;
/// Bytes that an array of entries may have: 64 times what everybody writes.
const MAX_ARRAY: u64 = 1 << 20;
const MIN_ENTRY: u32 = 128;
const MAX_ENTRY: u32 = 4096;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    signature: [u8; 8],
    revision: U32,
    header_size: U32,
    pub(super) checksum: U32,
    reserved: U32,
    pub(super) own_lba: U64,
    pub(super) other_lba: U64,
    first_usable: U64,
    pub(super) last_usable: U64,
    disk_guid: [u8; 16],
    pub(super) array_lba: U64,
    entries: U32,
    entry_size: U32,
    array_checksum: U32,
    rest: [u8; SECTOR - HEADER],
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    kind: [u8; 16],
    _guid: [u8; 16],
    first: U64,
    last: U64,
    _attributes: U64,
    name: [[u8; 2]; 36],
}

/// Bytes of the header that are defined.
const HEADER: usize = 92;
const _: () = assert!(size_of::<RawHeader>() == SECTOR);
const _: () = assert!(size_of::<RawEntry>() == 128);

/// A header whose checksum matches and whose numbers are possible.
#[derive(Clone, Copy)]
pub struct GptHeader {
    pub(super) raw: RawHeader,
}

impl GptHeader {
    /// The header in sector `lba` of a disk of `sectors` sectors.
    pub fn decode(sector: &[u8; SECTOR], lba: u64, sectors: u64) -> Result<Self, PartitionError> {
        let raw: &RawHeader = zerocopy::transmute_ref!(sector);
        if raw.signature != SIGNATURE {
            return Err(PartitionError::Signature { lba });
        }
        let impossible = |field, value| Err(PartitionError::Field { lba, field, value });
        let size = u64::from(raw.header_size.get());
        if !(u64_from(HEADER)..=SECTOR_SIZE).contains(&size) {
            return impossible("size", size);
        }
        let header = Self { raw: *raw };
        let (stored, computed) = (raw.checksum.get(), header.sum());
        if stored != computed {
            return Err(PartitionError::Checksum {
                lba,
                part: "header",
                stored,
                computed,
            });
        }
        let entry_size = raw.entry_size.get();
        if !(MIN_ENTRY..=MAX_ENTRY).contains(&entry_size) || !entry_size.is_power_of_two() {
            return impossible("entry size", u64::from(entry_size));
        }
        if header.array_bytes() > MAX_ARRAY {
            return impossible("number of entries", u64::from(raw.entries.get()));
        }
        let array_end = raw.array_lba.get().checked_add(header.array_sectors());
        if array_end.is_none_or(|end| end > sectors) {
            return impossible("first sector of the entries", raw.array_lba.get());
        }
        if raw.own_lba.get() != lba {
            return impossible("own sector", raw.own_lba.get());
        }
        Ok(header)
    }

    pub(super) fn sum(&self) -> u32 {
        let mut raw = self.raw;
        raw.checksum = U32::ZERO;
        let size = usize_from(u64::from(raw.header_size.get())).min(SECTOR);
        crc32fast::hash(&raw.as_bytes()[..size])
    }

    /// The sector of the other header.
    #[must_use]
    pub fn other_lba(&self) -> u64 {
        self.raw.other_lba.get()
    }

    fn array_bytes(&self) -> u64 {
        u64::from(self.raw.entries.get()) * u64::from(self.raw.entry_size.get())
    }

    pub(super) fn array_sectors(&self) -> u64 {
        self.array_bytes().div_ceil(SECTOR_SIZE)
    }

    /// The header as it stands in its sector.
    #[must_use]
    pub fn encode(&self) -> [u8; SECTOR] {
        zerocopy::transmute!(self.raw)
    }
}

/// A header and its entries.
#[derive(Clone)]
pub struct Gpt {
    pub(super) header: GptHeader,
    /// The array of entries, filled up to whole sectors.
    pub(super) array: Vec<u8>,
}

impl Gpt {
    /// The table of the first header.
    pub fn primary(disk: &Disk) -> Result<Self, PartitionError> {
        Self::at(disk, PRIMARY)
    }

    /// The table of the header in sector `lba`.
    pub fn at(disk: &Disk, lba: u64) -> Result<Self, PartitionError> {
        let sectors = disk.size() / SECTOR_SIZE;
        if lba >= sectors {
            return Err(PartitionError::Signature { lba });
        }
        let mut sector = [0; SECTOR];
        read_sectors(disk, lba, &mut sector)?;
        let header = GptHeader::decode(&sector, lba, sectors)?;
        let mut array = vec![0; usize_from(header.array_sectors() * SECTOR_SIZE)];
        read_sectors(disk, header.raw.array_lba.get(), &mut array)?;
        let used = &array[..usize_from(header.array_bytes())];
        let (stored, computed) = (header.raw.array_checksum.get(), crc32fast::hash(used));
        if stored != computed {
            return Err(PartitionError::Checksum {
                lba,
                part: "entries",
                stored,
                computed,
            });
        }
        Ok(Self { header, array })
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &GptHeader {
        &self.header
    }

    /// The partitions, by number.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        let size = usize_from(u64::from(self.header.raw.entry_size.get()));
        let entries = self.array[..usize_from(self.header.array_bytes())].chunks_exact(size);
        (1..)
            .zip(entries)
            .filter_map(|(number, bytes)| {
                let (entry, _) = RawEntry::read_from_prefix(bytes).ok()?;
                entry.partition(number)
            })
            .collect()
    }
}

impl RawEntry {
    fn partition(&self, number: u32) -> Option<Partition> {
        let (first, last) = (self.first.get(), self.last.get());
        if self.kind == [0; 16] || last < first {
            return None;
        }
        let units = self.name.iter().map(|unit| u16::from_le_bytes(*unit));
        let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
        let name = String::from_utf16_lossy(&units);
        Some(Partition {
            number,
            range: range_of(first, (last - first).saturating_add(1)),
            kind: guid(self.kind),
            name: (!name.is_empty()).then_some(name),
        })
    }
}

/// A GUID in text form: its first three fields are little-endian in a GPT.
fn guid(bytes: [u8; 16]) -> String {
    uuid::Uuid::from_bytes_le(bytes).to_string()
}

const _: () = assert!(offset_of!(RawHeader, rest) == HEADER);
