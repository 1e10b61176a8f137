//! The metadata: what the disk is.

use std::fmt;

use uuid::{Uuid, uuid};
use vhd_block::units::{u64_from, usize_from};

use super::locator::ParentLocator;
use super::region::Region;
use crate::bytes::{array, le16, le32, le64};
use crate::error::ReadContext as _;
use crate::{BrokenRule, ImageError, ImageFile, Rule};

const TABLE: usize = 64 << 10;
const ENTRY: usize = 32;
const MAX_ENTRIES: u16 = 2047;
/// Bytes; no item is longer.
const MAX_ITEM: u32 = 1 << 20;
/// Bytes on the largest disk.
const MAX_DISK: u64 = 64 << 40;
const BLOCK_SIZES: std::ops::RangeInclusive<u32> = 1 << 20..=256 << 20;

const FILE_PARAMETERS: Uuid = uuid!("caa16737-fa36-4d43-b3b6-33f0aa44e76b");
const DISK_SIZE: Uuid = uuid!("2fa54224-cd1b-4876-b211-5dbed83bf4b8");
const DISK_ID: Uuid = uuid!("beca12ab-b2e6-4523-93ef-c309e000c746");
const LOGICAL_SECTOR: Uuid = uuid!("8141bf1d-a96f-4709-ba47-f233a8faab5f");
const PHYSICAL_SECTOR: Uuid = uuid!("cda348c7-445d-4471-9cc9-e9885251c556");
const PARENT_LOCATOR: Uuid = uuid!("a8d35f2d-b30b-454d-abf7-d3d84834ab0c");

const KNOWN: [Uuid; 6] = [
    FILE_PARAMETERS,
    DISK_SIZE,
    DISK_ID,
    LOGICAL_SECTOR,
    PHYSICAL_SECTOR,
    PARENT_LOCATOR,
];

/// What a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Bytes in a block, a power of two from 1 MiB to 256 MiB.
    pub block_size: u32,
    /// How its blocks are allocated, and whether it has a parent.
    pub disk_type: DiskType,
    /// Bytes on the disk, a multiple of a logical sector.
    pub disk_size: u64,
    /// The identity that the guest sees: that of a child is its parent's.
    pub disk_id: Uuid,
    /// Bytes in a logical sector: 512 or 4096.
    pub logical_sector: u32,
    /// Bytes in a physical sector: 512 or 4096.
    pub physical_sector: u32,
    /// Where the parent is, for a differencing image.
    pub parent: Option<ParentLocator>,
}

/// The type of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskType {
    /// All blocks have space.
    Fixed,
    /// Blocks get space when they are written.
    Dynamic,
    /// It holds what differs from a parent.
    Differencing,
}

impl fmt::Display for DiskType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fixed => "fixed",
            Self::Dynamic => "dynamic",
            Self::Differencing => "differencing",
        })
    }
}

/// An item of the table.
struct Item {
    id: Uuid,
    /// Where in the region.
    offset: u64,
    len: usize,
}

/// Reads the metadata region.
pub(super) fn read(file: &dyn ImageFile, region: Region) -> Result<Metadata, ImageError> {
    let items = Items {
        file,
        region,
        items: read_table(file, region)?,
    };
    let (parameters, at) = items.exact::<8>(FILE_PARAMETERS, "file parameters")?;
    let block_size = le32(&parameters, 0);
    if !BLOCK_SIZES.contains(&block_size) || !block_size.is_power_of_two() {
        let expected = "a power of two from 1 MiB to 256 MiB";
        return Err(BrokenRule::new(
            Rule::MetadataItem,
            at,
            format!("blocks of {block_size:#x} bytes"),
            expected,
        )
        .into());
    }
    let flags = le32(&parameters, 4);
    let (disk_size, size_at) = items.exact::<8>(DISK_SIZE, "virtual disk size")?;
    let (disk_id, _) = items.exact::<16>(DISK_ID, "virtual disk id")?;
    let logical_sector = items.sector_size(LOGICAL_SECTOR, "logical sector size")?;
    let physical_sector = items.sector_size(PHYSICAL_SECTOR, "physical sector size")?;
    let disk_size = le64(&disk_size, 0);
    if disk_size == 0 || disk_size > MAX_DISK || !disk_size.is_multiple_of(u64::from(logical_sector)) {
        let expected = format!("a multiple of {logical_sector} up to {MAX_DISK:#x}");
        return Err(BrokenRule::new(Rule::MetadataItem, size_at, format!("{disk_size:#x} bytes"), expected).into());
    }
    let has_parent = flags & 2 != 0;
    Ok(Metadata {
        block_size,
        disk_type: match (has_parent, flags & 1 != 0) {
            (true, _) => DiskType::Differencing,
            (false, true) => DiskType::Fixed,
            (false, false) => DiskType::Dynamic,
        },
        disk_size,
        disk_id: Uuid::from_bytes_le(disk_id),
        logical_sector,
        physical_sector,
        parent: has_parent.then(|| items.parent()).transpose()?,
    })
}

fn read_table(file: &dyn ImageFile, region: Region) -> Result<Vec<Item>, ImageError> {
    let mut bytes = vec![0; TABLE];
    file.read_exact_at(&mut bytes, region.offset).at(region.offset, TABLE)?;
    let broken = |at: usize, found: String, expected: String| {
        let offset = region.offset + u64_from(at);
        ImageError::from(BrokenRule::new(Rule::MetadataTable, offset, found, expected))
    };
    if !bytes.starts_with(b"metadata") {
        let found = format!("{:#x}", le64(&bytes, 0));
        return Err(broken(0, found, "the signature \"metadata\"".to_owned()));
    }
    let count = le16(&bytes, 10);
    if count > MAX_ENTRIES {
        return Err(broken(10, format!("{count} entries"), format!("at most {MAX_ENTRIES}")));
    }
    let mut items: Vec<Item> = Vec::new();
    for index in 0..usize::from(count) {
        let at = 32 + index * ENTRY;
        let entry = &bytes[at..at + ENTRY];
        let id = Uuid::from_bytes_le(array(entry, 0));
        let (offset, len, flags) = (u64::from(le32(entry, 16)), le32(entry, 20), le32(entry, 24));
        let (is_user, is_required) = (flags & 1 != 0, flags & 4 != 0);
        if is_user || !KNOWN.contains(&id) {
            if is_required {
                return Err(ImageError::Unsupported {
                    feature: format!("the required metadata item {id}"),
                    offset: region.offset + u64_from(at),
                });
            }
            continue;
        }
        if len > MAX_ITEM || offset < u64_from(TABLE) || offset + u64::from(len) > region.len {
            let found = format!("{len:#x} bytes at {offset:#x} of the region");
            return Err(broken(
                at,
                found,
                "an item behind the table, inside the region".to_owned(),
            ));
        }
        if items.iter().any(|item| item.id == id) {
            return Err(broken(at, format!("a second item {id}"), "each item once".to_owned()));
        }
        items.push(Item {
            id,
            offset,
            len: usize_from(u64::from(len)),
        });
    }
    Ok(items)
}

struct Items<'a> {
    file: &'a dyn ImageFile,
    region: Region,
    items: Vec<Item>,
}

impl Items<'_> {
    /// The bytes of an item, and where in the file they are.
    fn bytes(&self, id: Uuid, name: &str) -> Result<(Vec<u8>, u64), ImageError> {
        let Some(item) = self.items.iter().find(|item| item.id == id) else {
            let found = "no entry for it";
            return Err(BrokenRule::new(Rule::MetadataTable, self.region.offset, found, format!("the {name}")).into());
        };
        let offset = self.region.offset + item.offset;
        let mut bytes = vec![0; item.len];
        self.file.read_exact_at(&mut bytes, offset).at(offset, item.len)?;
        Ok((bytes, offset))
    }

    fn exact<const N: usize>(&self, id: Uuid, name: &str) -> Result<([u8; N], u64), ImageError> {
        let (bytes, offset) = self.bytes(id, name)?;
        match <[u8; N]>::try_from(bytes.as_slice()) {
            Ok(bytes) => Ok((bytes, offset)),
            Err(_) => {
                let found = format!("a {name} of {} bytes", bytes.len());
                Err(BrokenRule::new(Rule::MetadataItem, offset, found, format!("{N} bytes")).into())
            }
        }
    }

    fn sector_size(&self, id: Uuid, name: &str) -> Result<u32, ImageError> {
        let (bytes, offset) = self.exact::<4>(id, name)?;
        match u32::from_le_bytes(bytes) {
            size @ (512 | 4096) => Ok(size),
            size => {
                Err(BrokenRule::new(Rule::MetadataItem, offset, format!("a {name} of {size}"), "512 or 4096").into())
            }
        }
    }

    fn parent(&self) -> Result<ParentLocator, ImageError> {
        let (bytes, offset) = self.bytes(PARENT_LOCATOR, "parent locator")?;
        ParentLocator::decode(&bytes, offset)
    }
}
