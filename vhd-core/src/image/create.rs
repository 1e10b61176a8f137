//! Writing new images: footer, header, table and locators, as all real software accepts them.

use std::io;

use super::error::CreateError;
use crate::format::{
    BlockLayout, DiskType, DynamicHeader, FOOTER_SIZE, Footer, HEADER_SIZE, LocatorEntry, MAX_BLOCK_SIZE,
    MAX_DISK_SIZE, MAX_LOCATOR_LENGTH, MIN_CREATE_BLOCK_SIZE, PlatformCode, Timestamp, UniqueId,
    encode_locator_utf16le, table_bytes,
};
use crate::storage::StorageFile;
use crate::units::{SECTOR_SIZE, u64_from, usize_from};

/// Where the block table of a new image is: directly behind the header, where every writer puts it.
pub(crate) const TABLE_OFFSET: u64 = u64_from(FOOTER_SIZE) + u64_from(HEADER_SIZE);

/// Bytes written at once where a range is filled.
const FILL_CHUNK: usize = 64 << 10;

/// How the space of zeroes in a new image is allocated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocate {
    /// It is not: the file is sparse.
    #[default]
    Off,
    /// The file system reserves it.
    Falloc,
    /// Zeroes are written.
    Full,
}

/// What a new child has to know of its parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// The parent's identity; [`UniqueId::NIL`] for a raw parent.
    pub id: UniqueId,
    /// The modification time of the parent's file.
    pub modified: Timestamp,
    /// The parent's file name.
    pub name: String,
    /// The way from the child's directory to the parent, with backslashes: `.\name`.
    pub relative_path: String,
    /// The parent's absolute path, with backslashes.
    pub absolute_path: String,
}

/// Writes a fixed image of `size` bytes into the empty `file`.
pub fn create_fixed(file: &dyn StorageFile, size: u64, preallocate: Preallocate) -> Result<UniqueId, CreateError> {
    check_size(size)?;
    let footer = Footer::new(DiskType::Fixed, size, UniqueId::random(), Timestamp::now());
    match preallocate {
        Preallocate::Off => {}
        Preallocate::Falloc => at("reserve space", 0, file.allocate(0, size + u64_from(FOOTER_SIZE)))?,
        Preallocate::Full => fill(file, 0, size, 0)?,
    }
    at("write the footer", size, file.write_all_at(&footer.encode(), size))?;
    Ok(footer.unique_id)
}

/// Writes a dynamic image of `size` bytes into the empty `file`.
pub fn create_dynamic(file: &dyn StorageFile, size: u64, block_size: u64) -> Result<UniqueId, CreateError> {
    check_size(size)?;
    let header = DynamicHeader::new_dynamic(size, check_block_size(block_size)?, TABLE_OFFSET);
    write_sparse(file, DiskType::Dynamic, size, &header, &[])
}

/// Writes a differencing image over the parent of `size` bytes into the empty `file`.
pub fn create_differencing(
    file: &dyn StorageFile,
    size: u64,
    block_size: u64,
    parent: &ParentLink,
) -> Result<UniqueId, CreateError> {
    let (header, locators) = differencing_header(size, block_size, parent)?;
    write_sparse(file, DiskType::Differencing, size, &header, &locators)
}

/// The data of parent locators, each with its place in the file.
pub(crate) type LocatorData = Vec<(u64, Vec<u8>)>;

/// The header of a differencing image over the parent of `size` bytes, and the data of its locators with their
/// places in the file.
pub(crate) fn differencing_header(
    size: u64,
    block_size: u64,
    parent: &ParentLink,
) -> Result<(DynamicHeader, LocatorData), CreateError> {
    check_size(size)?;
    let mut header = DynamicHeader::new_dynamic(size, check_block_size(block_size)?, TABLE_OFFSET);
    let start = TABLE_OFFSET + table_bytes(u64::from(header.max_table_entries));
    let texts = name_parent(&mut header, parent)?;
    let locators = place_locators(&mut header, texts, &[start]);
    Ok((header, locators))
}

/// The texts of a new image's locators, in the order of their slots.
pub(super) type LocatorTexts = [(PlatformCode, Vec<u8>); 2];

/// Names the parent in the header, and answers what its locators are to say. It has none before they are placed.
pub(super) fn name_parent(header: &mut DynamicHeader, parent: &ParentLink) -> Result<LocatorTexts, CreateError> {
    header.parent_id = parent.id;
    header.parent_timestamp = parent.modified;
    header.parent_name = parent.name.parse().map_err(|_| CreateError::ParentName {
        name: parent.name.clone(),
        reason: "it has more than 255 UTF-16 units, or a NUL",
    })?;
    header.locators = Default::default();
    let texts = [
        (PlatformCode::W2ru, encode_locator_utf16le(&parent.relative_path)),
        (PlatformCode::W2ku, encode_locator_utf16le(&parent.absolute_path)),
    ];
    let longest = usize_from(u64::from(MAX_LOCATOR_LENGTH));
    match texts.iter().all(|(_, text)| text.len() <= longest) {
        true => Ok(texts),
        false => Err(CreateError::ParentName {
            name: parent.absolute_path.clone(),
            reason: "its path is too long",
        }),
    }
}

/// Bytes of the file that a locator's text takes.
pub(super) fn locator_space(text: &[u8]) -> u64 {
    u64_from(text.len()).next_multiple_of(SECTOR_SIZE).max(SECTOR_SIZE)
}

/// Gives the locators their places: those in `places`, and from the last one on one behind the other.
pub(super) fn place_locators(header: &mut DynamicHeader, texts: LocatorTexts, places: &[u64]) -> LocatorData {
    let mut behind = 0;
    let placed = texts.into_iter().enumerate().map(|(slot, (code, text))| {
        let offset = places.get(slot).copied().unwrap_or(behind);
        let space = locator_space(&text);
        behind = offset + space;
        header.locators[slot] = Some(LocatorEntry {
            code,
            // Both fit: name_parent limits the length.
            space: u32::try_from(space).unwrap_or(u32::MAX),
            length: u32::try_from(text.len()).unwrap_or(u32::MAX),
            offset,
        });
        (offset, text)
    });
    placed.collect()
}

/// Whether a disk can have `size` bytes.
pub(crate) fn check_size(size: u64) -> Result<(), CreateError> {
    if size == 0 || size > MAX_DISK_SIZE || !size.is_multiple_of(SECTOR_SIZE) {
        return Err(CreateError::Size {
            size,
            maximum: MAX_DISK_SIZE,
        });
    }
    Ok(())
}

fn check_block_size(block_size: u64) -> Result<BlockLayout, CreateError> {
    let refused = || CreateError::BlockSize {
        block_size,
        minimum: MIN_CREATE_BLOCK_SIZE,
        maximum: MAX_BLOCK_SIZE,
    };
    let narrow = u32::try_from(block_size).map_err(|_| refused())?;
    if narrow < MIN_CREATE_BLOCK_SIZE {
        return Err(refused());
    }
    BlockLayout::new(narrow).map_err(|_| refused())
}

fn write_sparse(
    file: &dyn StorageFile,
    disk_type: DiskType,
    size: u64,
    header: &DynamicHeader,
    locators: &[(u64, Vec<u8>)],
) -> Result<UniqueId, CreateError> {
    let footer = Footer::new(disk_type, size, UniqueId::random(), Timestamp::now());
    let bytes = footer.encode();
    at("write the footer copy", 0, file.write_all_at(&bytes, 0))?;
    at(
        "write the header",
        u64_from(FOOTER_SIZE),
        file.write_all_at(&header.encode(), u64_from(FOOTER_SIZE)),
    )?;
    let table_len = table_bytes(u64::from(header.max_table_entries));
    fill(file, header.table_offset, table_len, 0xFF)?;
    let mut end = header.table_offset + table_len;
    for (offset, data) in locators {
        at("write a parent locator", *offset, file.write_all_at(data, *offset))?;
        end = (offset + u64_from(data.len()))
            .next_multiple_of(SECTOR_SIZE)
            .max(offset + SECTOR_SIZE);
    }
    at("write the footer", end, file.write_all_at(&bytes, end))?;
    Ok(footer.unique_id)
}

fn fill(file: &dyn StorageFile, offset: u64, len: u64, byte: u8) -> Result<(), CreateError> {
    let chunk = vec![byte; FILL_CHUNK.min(usize_from(len))];
    let mut done = 0;
    while done < len {
        let next = u64_from(chunk.len()).min(len - done);
        at(
            "write",
            offset + done,
            file.write_all_at(&chunk[..usize_from(next)], offset + done),
        )?;
        done += next;
    }
    Ok(())
}

fn at(operation: &'static str, offset: u64, result: io::Result<()>) -> Result<(), CreateError> {
    result.map_err(|source| CreateError::Io {
        operation,
        offset,
        source,
    })
}
