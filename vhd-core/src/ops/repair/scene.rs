//! What a repair of the table goes by: where block space is, and what lies in it.

use super::basis::Basis;
use super::draft::Draft;
use super::error::{Doing as _, RepairError};
use super::header::Located;
use super::tail::Tail;
use crate::device::ByteRange;
use crate::format::{BlockLayout, DiskType, TABLE_ENTRY_SIZE, TableEntry, table_bytes};
use crate::image::{BATMAP_COOKIE, Region, Space, looks_like_block, metadata_regions};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from};

/// What an entry of the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) block: BlockIndex,
    /// Where its bitmap is said to be.
    pub(super) offset: u64,
}

/// What a repair of the table goes by.
pub(super) struct Scene<'a> {
    pub(super) basis: &'a Basis,
    pub(super) located: &'a Located,
    pub(super) regions: Vec<Region>,
    /// Where block space ends.
    pub(super) end: u64,
    /// The file ends in a footer, so nothing was cut off.
    pub(super) whole: bool,
}

impl<'a> Scene<'a> {
    pub(super) fn of(draft: &Draft, basis: &'a Basis, located: &'a Located) -> Result<Self, RepairError> {
        let tail = Tail::of(draft)?;
        let mut regions = metadata_regions(&located.header, located.offset);
        regions.extend(batmap(draft, located)?);
        Ok(Self {
            basis,
            located,
            regions,
            end: tail.space_end(draft.len()?),
            whole: matches!(tail, Tail::Valid(_) | Tail::Damaged(_)),
        })
    }

    pub(super) fn space(&self) -> Space<'_> {
        Space {
            layout: self.layout(),
            disk_size: self.basis.footer.current_size,
            regions: &self.regions,
            end: self.end,
        }
    }

    pub(super) fn layout(&self) -> BlockLayout {
        self.located.header.layout
    }

    pub(super) fn stored(&self) -> u64 {
        self.layout().stored_bytes()
    }

    pub(super) fn is_differencing(&self) -> bool {
        self.basis.footer.disk_type == DiskType::Differencing
    }

    /// Whether a block with a bitmap of its own may begin at an offset.
    pub(super) fn looks_like_block(&self, draft: &Draft, offset: u64) -> Result<bool, RepairError> {
        looks_like_block(&*draft.overlay, self.layout(), offset, self.end).doing("look for a block", offset)
    }

    /// Where the bytes of a block that lie on the disk end in the file.
    pub(super) fn end_of(&self, claim: &Claim) -> u64 {
        self.space().end_of(claim.block, FileOffset(claim.offset))
    }

    /// The part of the disk that a block is, from `skip` bytes into it.
    pub(super) fn range(&self, block: BlockIndex, skip: u64) -> ByteRange {
        let layout = self.layout();
        let len = layout.bytes_on_disk(block, self.basis.footer.current_size);
        ByteRange::new(layout.block_start(block).0 + skip, len.saturating_sub(skip))
    }

    /// Where the table says that a block is, by now.
    pub(super) fn place_of(&self, draft: &Draft, block: BlockIndex) -> Result<Option<u64>, RepairError> {
        let at = self.located.header.table_offset + u64::from(block.0) * u64_from(TABLE_ENTRY_SIZE);
        let bytes = draft.structure::<TABLE_ENTRY_SIZE>(at)?.map(TableEntry::from_be_bytes);
        Ok(bytes.and_then(TableEntry::bitmap_offset).map(|offset| offset.0))
    }
}

/// The map of complete blocks that Xen's programs keep behind the table: it looks like a bitmap.
fn batmap(draft: &Draft, located: &Located) -> Result<Option<Region>, RepairError> {
    let start = located.header.table_offset + table_bytes(u64::from(located.header.max_table_entries));
    let Some(bytes) = draft.structure::<512>(start)? else {
        return Ok(None);
    };
    let (cookie, rest) = bytes.split_at(BATMAP_COOKIE.len());
    if cookie != BATMAP_COOKIE {
        return Ok(None);
    }
    let (offset, rest) = rest.split_at(size_of::<u64>());
    let offset = offset.try_into().map_or(u64::MAX, u64::from_be_bytes);
    let sectors = rest[..4].try_into().map_or(0, u32::from_be_bytes);
    let end = offset.saturating_add(u64::from(sectors) * SECTOR_SIZE);
    let believable =
        offset >= start && end - start <= table_bytes(u64::from(located.header.max_table_entries)) + 2 * SECTOR_SIZE;
    Ok(Some(Region {
        structure: "batmap",
        start,
        end: if believable { end } else { start + SECTOR_SIZE },
    }))
}
