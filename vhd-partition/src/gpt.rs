//! One GUID partition table: a header and its entries (UEFI specification, chapter 5.3).

use std::ops::Range;

use uuid::Uuid;
use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::oddity::Oddity;
use crate::source::{SECTOR, read, u64_from, usize_from};
use crate::{Partition, PartitionType, ReadAt, TableError};

const SIGNATURE: [u8; 8] = *b"EFI PART";
/// The sector of the first header.
pub(crate) const PRIMARY: u64 = 1;
/// Bytes of entries that are read: 64 times what every tool writes.
const MAX_ARRAY: u64 = 1 << 20;
const MIN_ENTRY: u32 = 128;
const MAX_ENTRY: u32 = 4096;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    signature: [u8; 8],
    revision: U32,
    header_size: U32,
    checksum: U32,
    reserved: U32,
    own_lba: U64,
    other_lba: U64,
    first_usable: U64,
    last_usable: U64,
    disk_guid: [u8; 16],
    array_lba: U64,
    entries: U32,
    entry_size: U32,
    array_checksum: U32,
}

#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawEntry {
    kind: [u8; 16],
    guid: [u8; 16],
    first: U64,
    last: U64,
    attributes: U64,
    name: [[u8; 2]; 36],
}

const HEADER: usize = size_of::<RawHeader>();
const _: () = assert!(HEADER == 92);
const _: () = assert!(size_of::<RawEntry>() == 128);

/// A header whose checksum matches and whose numbers are possible.
#[derive(Clone, Debug)]
pub struct GptHeader {
    raw: RawHeader,
    /// The whole sector: what follows the fields is kept.
    sector: Vec<u8>,
}

impl GptHeader {
    /// The header in a sector, which is sector `lba` of a disk of `sectors` sectors.
    ///
    /// # Errors
    /// If it is no header, its checksum is wrong, or its numbers are not possible on this disk.
    pub fn decode(sector: &[u8], lba: u64, sectors: u64) -> Result<Self, TableError> {
        let (raw, _) = RawHeader::read_from_prefix(sector).map_err(|_| TableError::Signature { lba })?;
        if raw.signature != SIGNATURE {
            return Err(TableError::Signature { lba });
        }
        let impossible = |field, value| Err(TableError::Field { lba, field, value });
        let size = u64::from(raw.header_size.get());
        if !(u64_from(HEADER)..=u64_from(sector.len())).contains(&size) {
            return impossible("size", size);
        }
        let header = Self {
            raw,
            sector: sector.to_vec(),
        };
        let (stored, computed) = (raw.checksum.get(), header.sum());
        if stored != computed {
            return Err(TableError::Checksum {
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
        let array = header.array();
        // The first sector is the MBR's, the second one a header's, and no header lies in its own entries.
        if array.start <= PRIMARY || array.end > sectors || array.contains(&lba) {
            return impossible("first sector of the entries", array.start);
        }
        if raw.own_lba.get() != lba {
            return impossible("own sector", raw.own_lba.get());
        }
        Ok(header)
    }

    fn sum(&self) -> u32 {
        let mut bytes = self.encode();
        let checksum = std::mem::offset_of!(RawHeader, checksum);
        bytes[checksum..checksum + 4].fill(0);
        let size = usize_from(u64::from(self.raw.header_size.get()));
        crc32fast::hash(&bytes[..size.min(bytes.len())])
    }

    /// The sector of the other header.
    #[must_use]
    pub fn other_lba(&self) -> u64 {
        self.raw.other_lba.get()
    }

    /// The first sector that partitions can use.
    pub(crate) fn first_usable(&self) -> u64 {
        self.raw.first_usable.get()
    }

    pub(crate) fn disk_guid(&self) -> Uuid {
        Uuid::from_bytes_le(self.raw.disk_guid)
    }

    /// The sectors of the entries. It does not overflow: `decode` bounds their number.
    pub(crate) fn array(&self) -> Range<u64> {
        let start = self.raw.array_lba.get();
        start..start.saturating_add(self.array_sectors())
    }

    fn array_bytes(&self) -> u64 {
        u64::from(self.raw.entries.get()) * u64::from(self.raw.entry_size.get())
    }

    /// Sectors that the entries take.
    pub(crate) fn array_sectors(&self) -> u64 {
        self.array_bytes().div_ceil(u64_from(self.sector.len()))
    }

    /// The bytes of the header's sector.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.sector.clone();
        bytes[..HEADER].copy_from_slice(self.raw.as_bytes());
        bytes
    }

    /// The same header with other places, and its checksum.
    pub(crate) fn moved(&self, own_lba: u64, other_lba: u64, array_lba: u64, last_usable: u64) -> Self {
        let mut moved = self.clone();
        moved.raw.own_lba = U64::new(own_lba);
        moved.raw.other_lba = U64::new(other_lba);
        moved.raw.array_lba = U64::new(array_lba);
        moved.raw.last_usable = U64::new(last_usable);
        moved.raw.checksum = U32::new(moved.sum());
        moved
    }
}

/// A header and its entries.
#[derive(Clone, Debug)]
pub struct Gpt {
    header: GptHeader,
    /// The entries, filled up to whole sectors.
    array: Vec<u8>,
    sector_size: u64,
}

impl Gpt {
    /// The table of the first header of a disk with sectors of 512 bytes.
    ///
    /// # Errors
    /// As of [`Gpt::at`].
    pub fn primary(disk: &dyn ReadAt) -> Result<Self, TableError> {
        Self::at(disk, SECTOR, PRIMARY)
    }

    /// The table of the header in sector `lba`, by sectors of `sector_size` bytes (512 or 4096).
    ///
    /// # Errors
    /// If the disk cannot be read, or header or entries are damaged.
    pub fn at(disk: &dyn ReadAt, sector_size: u64, lba: u64) -> Result<Self, TableError> {
        let gpt = Self::with_any_entries(disk, sector_size, lba)?;
        gpt.check_entries()?;
        Ok(gpt)
    }

    /// The same, whatever the checksum of the entries is.
    pub(crate) fn with_any_entries(disk: &dyn ReadAt, sector_size: u64, lba: u64) -> Result<Self, TableError> {
        let offset = lba.checked_mul(sector_size).ok_or(TableError::Signature { lba })?;
        let sector = read(disk, offset, sector_size)?.ok_or(TableError::Signature { lba })?;
        let header = GptHeader::decode(&sector, lba, disk.size() / sector_size)?;
        // Inside the disk, as the header was checked for.
        let array = header.array();
        let array = read(disk, array.start * sector_size, (array.end - array.start) * sector_size)?;
        Ok(Self {
            header,
            array: array.ok_or(TableError::Signature { lba })?,
            sector_size,
        })
    }

    pub(crate) fn check_entries(&self) -> Result<(), TableError> {
        let used = &self.array[..usize_from(self.header.array_bytes())];
        let (stored, computed) = (self.header.raw.array_checksum.get(), crc32fast::hash(used));
        if stored != computed {
            return Err(TableError::Checksum {
                lba: self.own_lba(),
                part: "entries",
                stored,
                computed,
            });
        }
        Ok(())
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &GptHeader {
        &self.header
    }

    /// Bytes of the sectors it counts in.
    #[must_use]
    pub fn sector_size(&self) -> u64 {
        self.sector_size
    }

    /// The entries as they are on the disk, filled up to whole sectors.
    pub(crate) fn array(&self) -> &[u8] {
        &self.array
    }

    /// The sector of the header itself.
    pub(crate) fn own_lba(&self) -> u64 {
        self.header.raw.own_lba.get()
    }

    /// Whether the entries of both have the same number and size.
    pub(crate) fn has_form_of(&self, other: &Self) -> bool {
        let form = |gpt: &Self| (gpt.header.raw.entries, gpt.header.raw.entry_size);
        form(self) == form(other)
    }

    /// Whether each sector of the entries is that of the other table, or zero: a copy of it that is being cleared.
    pub(crate) fn is_cleared_copy_of(&self, other: &Self) -> bool {
        let sector = usize_from(self.sector_size);
        let mut pairs = self.array.chunks(sector).zip(other.array.chunks(sector));
        self.has_form_of(other) && pairs.all(|(own, other)| own == other || own.iter().all(|&byte| byte == 0))
    }

    /// The partitions, by number.
    #[must_use]
    pub fn partitions(&self) -> Vec<Partition> {
        self.entries().filter_map(Result::ok).collect()
    }

    /// The entries in use, by number; those that are no partition as what is odd about them.
    pub(crate) fn entries(&self) -> impl Iterator<Item = Result<Partition, Oddity>> {
        let size = usize_from(u64::from(self.header.raw.entry_size.get()));
        let entries = self.array[..usize_from(self.header.array_bytes())].chunks_exact(size);
        (1..).zip(entries).filter_map(|(number, bytes)| {
            let (entry, _) = RawEntry::read_from_prefix(bytes).ok()?;
            (entry.kind != [0; 16]).then(|| entry.partition(number, self.sector_size))
        })
    }
}

impl RawEntry {
    fn partition(&self, number: u32, sector_size: u64) -> Result<Partition, Oddity> {
        let (first, last) = (self.first.get(), self.last.get());
        if last < first {
            return Err(Oddity::Reversed(number));
        }
        let units = self.name.iter().map(|unit| u16::from_le_bytes(*unit));
        let units: Vec<u16> = units.take_while(|&unit| unit != 0).collect();
        let name = String::from_utf16_lossy(&units);
        Ok(Partition {
            number,
            start: first.saturating_mul(sector_size),
            len: (last - first).saturating_add(1).saturating_mul(sector_size),
            kind: PartitionType::Gpt(Uuid::from_bytes_le(self.kind)),
            name: (!name.is_empty()).then_some(name),
            identity: Uuid::from_bytes_le(self.guid).to_string(),
            attributes: self.attributes.get(),
        })
    }
}
