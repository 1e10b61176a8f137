//! The rules a block table must obey before anything is read through it.

use super::error::OpenError;
use crate::format::{BlockLayout, DynamicHeader, FOOTER_SIZE, HEADER_SIZE, TableEntry, table_bytes};
use crate::units::{BlockIndex, FileOffset, u64_from};

/// A part of the file that is not block space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Region {
    pub(crate) structure: &'static str,
    pub(crate) start: u64,
    pub(crate) end: u64,
}

/// The metadata of an image of blocks: where no block may lie.
pub(crate) fn metadata_regions(header: &DynamicHeader, header_offset: u64) -> Vec<Region> {
    let region = |structure, start: u64, len: u64| Region {
        structure,
        start,
        end: start.saturating_add(len),
    };
    let mut regions = vec![
        region("footer copy", 0, u64_from(FOOTER_SIZE)),
        region("dynamic header", header_offset, u64_from(HEADER_SIZE)),
        region(
            "block table",
            header.table_offset,
            table_bytes(u64::from(header.max_table_entries)),
        ),
    ];
    let locators = header.locators.iter().flatten().filter(|locator| locator.length > 0);
    regions.extend(locators.map(|locator| region("parent locator", locator.offset, u64::from(locator.length))));
    regions
}

/// What block space there is.
pub(crate) struct Space<'a> {
    pub(crate) layout: BlockLayout,
    pub(crate) disk_size: u64,
    pub(crate) regions: &'a [Region],
    /// Where it ends: at the tail footer, or at the end of a file that has none.
    pub(crate) end: u64,
}

impl Space<'_> {
    /// Checks every entry in use: inside the space, outside the metadata, no two over one another.
    pub(crate) fn check(&self, used: &[(BlockIndex, TableEntry)]) -> Result<(), OpenError> {
        self.violations_among(used.iter().copied(), &mut Err)
    }

    /// Hands every violation in a table to `report`, until it returns an error.
    pub(crate) fn violations(
        &self,
        entries: &[TableEntry],
        report: &mut dyn FnMut(OpenError) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        self.violations_among((0..).map(BlockIndex).zip(entries.iter().copied()), report)
    }

    fn violations_among(
        &self,
        entries: impl Iterator<Item = (BlockIndex, TableEntry)>,
        report: &mut dyn FnMut(OpenError) -> Result<(), OpenError>,
    ) -> Result<(), OpenError> {
        let mut placed: Vec<(FileOffset, BlockIndex)> = Vec::new();
        for (index, entry) in entries {
            let Some(offset) = entry.bitmap_offset() else { continue };
            if let Some(error) = self.misplaced(index, offset) {
                report(error)?;
            }
            placed.push((offset, index));
        }
        placed.sort_unstable();
        for pair in placed.windows(2) {
            let [(other_offset, other), (offset, block)] = pair else {
                continue;
            };
            if offset.0 < self.end_of(*other, *other_offset) {
                report(OpenError::BlockOverlap {
                    block: *block,
                    offset: *offset,
                    other: *other,
                    other_offset: *other_offset,
                })?;
            }
        }
        Ok(())
    }

    fn misplaced(&self, block: BlockIndex, offset: FileOffset) -> Option<OpenError> {
        let end = self.end_of(block, offset);
        if let Some(region) = self
            .regions
            .iter()
            .find(|region| offset.0 < region.end && region.start < end)
        {
            return Some(OpenError::BlockInMetadata {
                block,
                offset,
                structure: region.structure,
            });
        }
        (end > self.end).then_some(OpenError::BlockPastEnd {
            block,
            offset,
            end,
            space_end: self.end,
        })
    }

    /// Where the bytes of the block that lie on the disk end: the last block may be cut there.
    pub(crate) fn end_of(&self, block: BlockIndex, offset: FileOffset) -> u64 {
        offset.0 + self.layout.bitmap_bytes() + self.layout.bytes_on_disk(block, self.disk_size)
    }
}
