//! The region tables: where the metadata and the block table are.

use uuid::{Uuid, uuid};
use vhd_block::units::usize_from;

use super::header::Header;
use super::{MIB, crc32c};
use crate::bytes::{array, le32, le64};
use crate::error::ReadContext as _;
use crate::{BrokenRule, ImageError, ImageFile, Rule};

const OFFSETS: [u64; 2] = [192 << 10, 256 << 10];
const SIZE: usize = 64 << 10;
const MAX_ENTRIES: u32 = 2047;
const ENTRY: usize = 32;

const TABLE: Uuid = uuid!("2dc27766-f623-4200-9d64-115e9bfd4a08");
const METADATA: Uuid = uuid!("8b7ca206-4790-4b9a-b8fe-575f050f886e");

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// What the region table says.
pub(super) struct Regions {
    pub(super) table: Region,
    pub(super) metadata: Region,
    /// All parts of the file that no block may lie in, by offset: header section, log and regions.
    pub(super) reserved: Vec<Region>,
    /// What is wrong with the other region table, if it is not usable.
    pub(super) other: Option<BrokenRule>,
    /// Regions that this reader does not know, and that need not be known.
    pub(super) unknown: Vec<Uuid>,
}

/// Reads the region tables: the first that is valid counts.
pub(super) fn read(file: &dyn ImageFile, header: &Header, file_len: u64) -> Result<Regions, ImageError> {
    let first = read_one(file, OFFSETS[0])?;
    let second = read_one(file, OFFSETS[1])?;
    let (bytes, at, other) = match (first, second) {
        (Ok(bytes), second) => (bytes, OFFSETS[0], second.err()),
        (Err(error), Ok(bytes)) => (bytes, OFFSETS[1], Some(error)),
        (Err(error), Err(_)) => return Err(error.into()),
    };
    let mut found = Found::default();
    let log = Region {
        offset: header.log_offset,
        len: u64::from(header.log_len),
    };
    found.reserved.push(Region { offset: 0, len: MIB });
    if log.len > 0 {
        found.reserved.push(log);
    }
    for index in 0..usize_from(u64::from(le32(&bytes, 8))) {
        let start = 16 + index * ENTRY;
        found.add(
            &bytes[start..start + ENTRY],
            at + vhd_block::units::u64_from(start),
            file_len,
        )?;
    }
    found.finish(at, other)
}

/// One table; the inner failure is what is wrong with it.
fn read_one(file: &dyn ImageFile, offset: u64) -> Result<Result<Vec<u8>, BrokenRule>, ImageError> {
    let mut bytes = vec![0; SIZE];
    file.read_exact_at(&mut bytes, offset).at(offset, SIZE)?;
    let broken = |at: u64, found: String, expected: String| {
        Ok(Err(BrokenRule::new(Rule::RegionTable, offset + at, found, expected)))
    };
    if !bytes.starts_with(b"regi") {
        return broken(
            0,
            format!("{:#x}", le32(&bytes, 0)),
            "the signature \"regi\"".to_owned(),
        );
    }
    let (found, expected) = (le32(&bytes, 4), crc32c::without_field(&bytes, 4));
    if found != expected {
        return broken(4, format!("checksum {found:#x}"), format!("{expected:#x}"));
    }
    let entries = le32(&bytes, 8);
    if entries > MAX_ENTRIES {
        return broken(8, format!("{entries} entries"), format!("at most {MAX_ENTRIES}"));
    }
    Ok(Ok(bytes))
}

/// The regions as they are found.
#[derive(Default)]
struct Found {
    table: Option<Region>,
    metadata: Option<Region>,
    reserved: Vec<Region>,
    unknown: Vec<Uuid>,
}

impl Found {
    fn add(&mut self, entry: &[u8], at: u64, file_len: u64) -> Result<(), ImageError> {
        let id = Uuid::from_bytes_le(array(entry, 0));
        let region = Region {
            offset: le64(entry, 16),
            len: u64::from(le32(entry, 24)),
        };
        let is_required = le32(entry, 28) & 1 == 1;
        let broken = |found: String, expected: &str| Err(BrokenRule::new(Rule::Region, at, found, expected).into());
        let shown = format!("{:#x} bytes at {:#x}", region.len, region.offset);
        if region.len == 0 || region.offset < MIB || !(region.offset | region.len).is_multiple_of(MIB) {
            return broken(shown, "multiples of 1 MiB, behind the first");
        }
        if region.offset.checked_add(region.len).is_none_or(|end| end > file_len) {
            return broken(
                format!("{shown} in a file of {file_len:#x}"),
                "a region inside the file",
            );
        }
        let known = match id {
            TABLE => Some(&mut self.table),
            METADATA => Some(&mut self.metadata),
            _ => None,
        };
        match known {
            Some(Some(_)) => return broken(format!("a second region {id}"), "each region once"),
            Some(slot) => *slot = Some(region),
            None if is_required => {
                return Err(ImageError::Unsupported {
                    feature: format!("the required region {id}"),
                    offset: at,
                });
            }
            None => self.unknown.push(id),
        }
        self.reserved.push(region);
        Ok(())
    }

    fn finish(mut self, at: u64, other: Option<BrokenRule>) -> Result<Regions, ImageError> {
        let missing = |what: &str| BrokenRule::new(Rule::Region, at, "no entry for it", format!("the {what} region"));
        let table = self.table.ok_or_else(|| missing("block table"))?;
        let metadata = self.metadata.ok_or_else(|| missing("metadata"))?;
        self.reserved.sort_unstable_by_key(|region| region.offset);
        for pair in self.reserved.windows(2) {
            if pair[0].offset + pair[0].len > pair[1].offset {
                let found = format!("a region at {:#x} that reaches into another", pair[0].offset);
                return Err(BrokenRule::new(Rule::Region, pair[1].offset, found, "regions that do not overlap").into());
            }
        }
        Ok(Regions {
            table,
            metadata,
            reserved: self.reserved,
            other,
            unknown: self.unknown,
        })
    }
}
