//! The dynamic disk header: the table, the block size and the parent of a sparse image.

mod damaged;

use std::mem::offset_of;
use std::ops::Range;

use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::checksum::field_at;
use super::locator::NO_PLATFORM;
use super::{
    BlockLayout, FOOTER_SIZE, Footer, FormatError, LocatorEntry, PARENT_NAME_UNITS, ParentName, PlatformCode,
    Timestamp, UniqueId, checksum, table_bytes,
};
use crate::units::{SECTOR_SIZE, u64_from};

pub use damaged::{block_layouts, named_parent, reconstruct_header, reseal_header};

/// Bytes of a dynamic disk header.
pub const HEADER_SIZE: usize = 1024;
/// Slots for parent locators in a header.
pub const LOCATOR_COUNT: usize = 8;

const COOKIE: [u8; 8] = *b"cxsparse";

/// Whether `bytes` begin like a dynamic header; the checksum is not looked at.
#[must_use]
pub fn has_header_cookie(bytes: &[u8]) -> bool {
    bytes.starts_with(&COOKIE)
}
const VERSION: u32 = 0x0001_0000;
/// The unused offset to a next structure. The specification names 32 bits of ones, but every Microsoft
/// program writes 64, and several readers insist on them.
const NO_NEXT: u64 = u64::MAX;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLocator {
    code: U32,
    space: U32,
    length: U32,
    reserved: U32,
    offset: U64,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHeader {
    cookie: [u8; 8],
    next: U64,
    table_offset: U64,
    version: U32,
    max_table_entries: U32,
    block_size: U32,
    checksum: U32,
    parent_id: [u8; 16],
    parent_timestamp: U32,
    reserved: U32,
    parent_name: [U16; PARENT_NAME_UNITS],
    locators: [RawLocator; LOCATOR_COUNT],
    padding: [u8; 256],
}

const _: () = assert!(size_of::<RawLocator>() == 24);
const _: () = assert!(size_of::<RawHeader>() == HEADER_SIZE);

const CHECKSUM: Range<usize> = field_at(offset_of!(RawHeader, checksum));

/// The header of a dynamic or differencing disk (specification, "Dynamic Disk Header Format").
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DynamicHeader {
    /// Where the block allocation table begins in the file, in bytes.
    pub table_offset: u64,
    /// The header's version, 0x00010000.
    pub header_version: u32,
    /// Entries of the block allocation table; at least as many as the disk has blocks.
    pub max_table_entries: u32,
    /// The size of the blocks.
    pub layout: BlockLayout,
    /// The parent's unique id; nil in dynamic disks, and in differencing disks over a raw file.
    pub parent_id: UniqueId,
    /// When the parent's file was last changed; many writers leave it unset.
    pub parent_timestamp: Timestamp,
    /// The parent's file name or path.
    pub parent_name: ParentName,
    /// Where the parent may be found; used slots may follow unused ones.
    pub locators: [Option<LocatorEntry>; LOCATOR_COUNT],
}

impl DynamicHeader {
    /// The header of a new dynamic disk of `size` bytes whose table begins at byte `table_offset` of the
    /// file. The table has exactly one entry for each block: some readers refuse more.
    #[must_use]
    pub fn new_dynamic(size: u64, layout: BlockLayout, table_offset: u64) -> Self {
        Self {
            table_offset,
            header_version: VERSION,
            // Every size up to the largest disk fits, with blocks of a single sector too.
            max_table_entries: u32::try_from(layout.blocks_for(size)).unwrap_or(u32::MAX),
            layout,
            parent_id: UniqueId::NIL,
            parent_timestamp: Timestamp::UNSET,
            parent_name: ParentName::EMPTY,
            locators: [None; LOCATOR_COUNT],
        }
    }

    /// The header in `bytes`, checked as far as it stands alone: cookie, checksum, version, block size,
    /// table offset. Whether the table is inside the file, and long enough for the disk
    /// ([`check_table_covers`]), is for the caller to check.
    pub fn decode(bytes: &[u8; HEADER_SIZE]) -> Result<Self, FormatError> {
        let raw: &RawHeader = zerocopy::transmute_ref!(bytes);
        if raw.cookie != COOKIE {
            return Err(FormatError::HeaderCookie { found: raw.cookie });
        }
        let (stored, computed) = (raw.checksum.get(), checksum(bytes, CHECKSUM));
        if stored != computed {
            return Err(FormatError::HeaderChecksum { stored, computed });
        }
        if raw.version != VERSION {
            return Err(FormatError::HeaderVersion {
                found: raw.version.get(),
                expected: VERSION,
            });
        }
        let layout = BlockLayout::new(raw.block_size.get())?;
        check_table_offset(raw.table_offset.get(), raw.max_table_entries.get())?;
        Ok(Self {
            table_offset: raw.table_offset.get(),
            header_version: raw.version.get(),
            max_table_entries: raw.max_table_entries.get(),
            layout,
            parent_id: UniqueId(raw.parent_id),
            parent_timestamp: Timestamp(raw.parent_timestamp.get()),
            parent_name: ParentName::from_units(raw.parent_name.map(U16::get)),
            locators: raw.locators.map(RawLocator::decode),
        })
    }

    /// Whether the header speaks of a parent: only that of a differencing disk does.
    #[must_use]
    pub fn names_parent(&self) -> bool {
        !self.parent_id.is_nil() || !self.parent_name.is_empty() || self.locators.iter().any(Option::is_some)
    }

    /// The header as it stands in the file, with its checksum.
    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_SIZE] {
        let mut raw = RawHeader {
            cookie: COOKIE,
            next: U64::new(NO_NEXT),
            table_offset: U64::new(self.table_offset),
            version: U32::new(self.header_version),
            max_table_entries: U32::new(self.max_table_entries),
            block_size: U32::new(self.layout.block_size_field()),
            checksum: U32::ZERO,
            parent_id: self.parent_id.0,
            parent_timestamp: U32::new(self.parent_timestamp.0),
            reserved: U32::ZERO,
            parent_name: self.parent_name.units().map(U16::new),
            locators: self.locators.map(RawLocator::encode),
            padding: [0; 256],
        };
        raw.checksum = U32::new(checksum(raw.as_bytes(), CHECKSUM));
        zerocopy::transmute!(raw)
    }
}

impl RawLocator {
    fn decode(self) -> Option<LocatorEntry> {
        (self.code != NO_PLATFORM).then(|| LocatorEntry {
            code: PlatformCode::from_u32(self.code.get()),
            space: self.space.get(),
            length: self.length.get(),
            offset: self.offset.get(),
        })
    }

    fn encode(entry: Option<LocatorEntry>) -> Self {
        let code = entry.map_or(NO_PLATFORM, |entry| entry.code.to_u32());
        Self {
            code: U32::new(code),
            space: U32::new(entry.map_or(0, |entry| entry.space)),
            length: U32::new(entry.map_or(0, |entry| entry.length)),
            reserved: U32::ZERO,
            offset: U64::new(entry.map_or(0, |entry| entry.offset)),
        }
    }
}

/// Entries are published by overwriting one sector of the table, so the table has to begin at one.
fn check_table_offset(offset: u64, entries: u32) -> Result<(), FormatError> {
    if !offset.is_multiple_of(SECTOR_SIZE) {
        return Err(FormatError::TableMisaligned { offset });
    }
    if offset < u64_from(FOOTER_SIZE) {
        return Err(FormatError::TableInFooterCopy { offset });
    }
    match offset.checked_add(table_bytes(u64::from(entries))) {
        Some(_) => Ok(()),
        None => Err(FormatError::TablePastEnd { offset }),
    }
}

/// Checks that the header's table has an entry for every block of the footer's disk, and returns the
/// number of those blocks. Entries beyond them exist in the wild and mean nothing.
pub fn check_table_covers(header: &DynamicHeader, footer: &Footer) -> Result<u64, FormatError> {
    let blocks = header.layout.blocks_for(footer.current_size);
    if u64::from(header.max_table_entries) < blocks {
        return Err(FormatError::TableTooShort {
            entries: header.max_table_entries,
            blocks,
        });
    }
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::format::{DEFAULT_BLOCK_SIZE, DiskType};
    use proptest::prelude::*;

    fn sample() -> DynamicHeader {
        let layout = BlockLayout::new(DEFAULT_BLOCK_SIZE).unwrap();
        let mut header = DynamicHeader::new_dynamic((10 << 20) + 512, layout, 0x600);
        header.parent_id = UniqueId([0xAB; 16]);
        header.parent_timestamp = Timestamp(0x0102_0304);
        header.parent_name = "base.vhd".parse().unwrap();
        let locator = LocatorEntry {
            code: PlatformCode::W2ku,
            space: 4096,
            length: 90,
            offset: 0x1000,
        };
        header.locators[6] = Some(locator);
        header
    }

    /// `bytes` after `change`, with the checksum renewed.
    fn resummed(mut bytes: [u8; HEADER_SIZE], change: impl FnOnce(&mut [u8; HEADER_SIZE])) -> [u8; HEADER_SIZE] {
        change(&mut bytes);
        let sum = checksum(&bytes, 36..40);
        bytes[36..40].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    fn kind(bytes: &[u8; HEADER_SIZE]) -> ErrorKind {
        DynamicHeader::decode(bytes).unwrap_err().kind()
    }

    #[test]
    fn every_field_is_where_the_format_has_it() {
        let bytes = sample().encode();
        assert_eq!(&bytes[0..8], b"cxsparse");
        assert_eq!(bytes[8..16], [0xFF; 8]);
        assert_eq!(bytes[16..24], 0x600_u64.to_be_bytes());
        assert_eq!(bytes[24..28], [0, 1, 0, 0]);
        assert_eq!(bytes[28..32], 6_u32.to_be_bytes());
        assert_eq!(bytes[32..36], 0x20_0000_u32.to_be_bytes());
        assert_eq!(bytes[36..40], checksum(&bytes, 36..40).to_be_bytes());
        assert_eq!(bytes[40..56], [0xAB; 16]);
        assert_eq!(bytes[56..60], [1, 2, 3, 4]);
        assert_eq!(bytes[60..64], [0; 4]);
        assert_eq!(&bytes[64..82], b"\0b\0a\0s\0e\0.\0v\0h\0d\0\0");
        assert_eq!(bytes[82..576 + 6 * 24], [0; 576 + 6 * 24 - 82]);
        let locator = &bytes[576 + 6 * 24..576 + 7 * 24];
        assert_eq!(&locator[0..4], b"W2ku");
        assert_eq!(locator[4..8], 4096_u32.to_be_bytes());
        assert_eq!(locator[8..12], 90_u32.to_be_bytes());
        assert_eq!(locator[12..16], [0; 4]);
        assert_eq!(locator[16..24], 0x1000_u64.to_be_bytes());
        assert_eq!(bytes[576 + 7 * 24..], [0; 1024 - 576 - 7 * 24]);
    }

    #[test]
    fn new_headers_survive() {
        let layout = BlockLayout::new(512).unwrap();
        let header = DynamicHeader::new_dynamic(2040 << 30, layout, 0x600);
        assert_eq!(header.max_table_entries, 0xFF00_0000);
        assert_eq!(DynamicHeader::decode(&header.encode()), Ok(header));
        assert_eq!(DynamicHeader::decode(&sample().encode()), Ok(sample()));
    }

    /// Bytes that have no meaning do not keep an image from being read.
    #[test]
    fn reserved_bytes_are_ignored() {
        let odd = resummed(sample().encode(), |bytes| {
            bytes[8..12].fill(0);
            bytes[60] = 1;
            bytes[576 + 6 * 24 + 12] = 1;
            bytes[1000] = 1;
        });
        assert_eq!(DynamicHeader::decode(&odd), Ok(sample()));
    }

    #[test]
    fn each_broken_rule_has_its_kind() {
        let good = sample().encode();
        let mut cookie = good;
        cookie[0] = b'X';
        assert_eq!(kind(&cookie), ErrorKind::HeaderMissing);
        let mut sum = good;
        sum[39] ^= 1;
        assert_eq!(kind(&sum), ErrorKind::HeaderChecksum);
        assert_eq!(kind(&resummed(good, |b| b[27] = 1)), ErrorKind::HeaderVersion);
        assert_eq!(kind(&resummed(good, |b| b[25] = 2)), ErrorKind::HeaderVersion);
        let block_size = |size: u32| resummed(good, |b| b[32..36].copy_from_slice(&size.to_be_bytes()));
        for size in [0, 256, 3 << 20, 512 << 20, u32::MAX] {
            assert_eq!(kind(&block_size(size)), ErrorKind::BlockSize, "{size}");
        }
        let table = |offset: u64| resummed(good, |b| b[16..24].copy_from_slice(&offset.to_be_bytes()));
        for offset in [0, 0x601, u64::MAX, u64::MAX - 511] {
            assert_eq!(kind(&table(offset)), ErrorKind::TableLocation, "{offset:#x}");
        }
        assert!(DynamicHeader::decode(&table(512)).is_ok());
        assert!(DynamicHeader::decode(&table(u64::MAX - 1023)).is_ok());
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let good = sample().encode();
        for bit in 0..HEADER_SIZE * 8 {
            let mut bytes = good;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(DynamicHeader::decode(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn tables_cover_their_disks() {
        let mut header = sample();
        let footer = |size| Footer::new(DiskType::Dynamic, size, UniqueId::NIL, Timestamp::UNSET);
        assert_eq!(check_table_covers(&header, &footer((10 << 20) + 512)), Ok(6));
        assert_eq!(check_table_covers(&header, &footer(12 << 20)), Ok(6));
        assert_eq!(check_table_covers(&header, &footer(1 << 20)), Ok(1));
        let error = check_table_covers(&header, &footer((12 << 20) + 512)).unwrap_err();
        assert_eq!(error, FormatError::TableTooShort { entries: 6, blocks: 7 });
        header.max_table_entries = 0;
        assert_eq!(
            check_table_covers(&header, &footer(512)).unwrap_err().kind(),
            ErrorKind::TableTooShort
        );
    }

    fn any_locator() -> impl Strategy<Value = Option<LocatorEntry>> {
        let known = [PlatformCode::W2ru, PlatformCode::W2ku, PlatformCode::MacX];
        let code = prop_oneof![
            proptest::sample::select(known.to_vec()),
            (1_u32..).prop_map(PlatformCode::from_u32)
        ];
        let entry = (code, any::<u32>(), any::<u32>(), any::<u64>());
        proptest::option::of(entry.prop_map(|(code, space, length, offset)| LocatorEntry {
            code,
            space,
            length,
            offset,
        }))
    }

    fn any_header() -> impl Strategy<Value = DynamicHeader> {
        let parent = (
            any::<[u8; 16]>(),
            any::<u32>(),
            proptest::collection::vec(any::<u16>(), PARENT_NAME_UNITS),
        );
        let locators = proptest::collection::vec(any_locator(), LOCATOR_COUNT);
        (1_u64..1 << 50, any::<u32>(), 9_u32..=28, parent, locators).prop_map(
            |(table_sector, max_table_entries, shift, (id, timestamp, name), locators)| DynamicHeader {
                table_offset: table_sector * 512,
                header_version: VERSION,
                max_table_entries,
                layout: BlockLayout::new(1 << shift).unwrap(),
                parent_id: UniqueId(id),
                parent_timestamp: Timestamp(timestamp),
                parent_name: ParentName::from_units(name.try_into().unwrap()),
                locators: locators.try_into().unwrap(),
            },
        )
    }

    proptest! {
        #[test]
        fn headers_survive(header in any_header()) {
            let bytes = header.encode();
            prop_assert_eq!(DynamicHeader::decode(&bytes), Ok(header));
        }

        /// Whatever decodes is a fixed point: written back and read again it is the same.
        #[test]
        fn hostile_bytes_do_no_harm(header in any_header(), at in 8_usize..1024, noise: Vec<u8>) {
            let bytes = resummed(header.encode(), |bytes| {
                for (byte, noise) in bytes[at..].iter_mut().zip(noise) {
                    *byte = noise;
                }
            });
            if let Ok(decoded) = DynamicHeader::decode(&bytes) {
                prop_assert_eq!(DynamicHeader::decode(&decoded.encode()), Ok(decoded));
            }
        }
    }
}
