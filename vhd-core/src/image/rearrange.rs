//! Changing where blocks are, by a holder who has the image to himself: nothing is written through it and
//! nothing read by others meanwhile, so table entries change without the allocator and without a gate.
//!
//! docs/compact.md has the order that makes it safe (INV-09 to INV-12).

use std::sync::Arc;
use std::thread;

use vhd_block::DeviceError;

use super::commit::Writer;
use super::error::IoContext;
use super::open::space_end;
use super::sparse::Sparse;
use super::table::{Slot, table_sector_of};
use super::validate::{Region, metadata_regions};
use super::{FooterSource, Image};
use crate::format::{BlockLayout, DynamicHeader, FOOTER_SIZE, TableEntry, table_bytes};
use crate::storage::StorageFile;
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from};

/// The cookie of the map of complete blocks that Xen's programs keep behind the table.
pub(crate) const BATMAP_COOKIE: &[u8; 8] = b"tdbatmap";
const TAP_APPLICATION: [u8; 4] = *b"tap\0";
/// Bytes: no program reserves more for a parent locator; larger claims are damage.
const MAX_LOCATOR_SPACE: u64 = 1 << 20;

/// A block that has space in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlacedBlock {
    pub(crate) block: BlockIndex,
    /// Where its bitmap is.
    pub(crate) offset: u64,
    /// Where its space ends. The last block of a disk may be cut short behind the end of the disk.
    pub(crate) end: u64,
}

/// Where everything in the file is.
#[derive(Clone, Debug)]
pub(crate) struct Arrangement {
    pub(crate) layout: BlockLayout,
    /// The blocks in the order of the file.
    pub(crate) blocks: Vec<PlacedBlock>,
    /// What is no block and stays: start and end.
    pub(crate) fixed: Vec<(u64, u64)>,
    /// Where the tail footer is, or the end of a file that has none.
    pub(crate) space_end: u64,
}

impl Arrangement {
    /// Where the last thing that is needed ends.
    pub(crate) fn needed_end(&self) -> u64 {
        let blocks = self.blocks.iter().map(|placed| placed.end).max().unwrap_or(0);
        blocks.max(self.fixed_end())
    }

    /// Where the last thing ends that can't be moved.
    pub(crate) fn fixed_end(&self) -> u64 {
        let inside = self.fixed.iter().filter(|(start, _)| *start < self.space_end);
        let end = inside.map(|(_, end)| (*end).min(self.space_end)).max().unwrap_or(0);
        end.next_multiple_of(SECTOR_SIZE)
    }
}

impl Image {
    /// Where everything is; `None` for a fixed image.
    pub(crate) fn arrangement(&self) -> Result<Option<Arrangement>, DeviceError> {
        let Some(sparse) = self.sparse() else { return Ok(None) };
        let space_end = self.tail_offset(self.file_len()?);
        let header_offset = self.footer().data_offset.unwrap_or(0);
        let mut fixed: Vec<(u64, u64)> = metadata_regions(&sparse.header, header_offset)
            .into_iter()
            .map(|Region { start, end, .. }| (start, end))
            .collect();
        fixed.extend(locator_space(&sparse.header));
        Ok(Some(Arrangement {
            layout: sparse.layout,
            blocks: placed_blocks(sparse, space_end),
            fixed,
            space_end,
        }))
    }

    /// Where the tail footer is, or the end of a file of `file_len` bytes that has none.
    pub(super) fn tail_offset(&self, file_len: u64) -> u64 {
        match self.footers.source {
            // A file whose footer was restored when it was opened has it behind what was its end.
            FooterSource::Copy if self.writable => file_len - u64_from(FOOTER_SIZE),
            _ => space_end(&self.footers, file_len),
        }
    }

    /// Where the first block in the file is; `None` for a fixed image or one without blocks.
    pub(super) fn first_block_offset(&self) -> Option<u64> {
        let sparse = self.sparse()?;
        placed_blocks(sparse, u64::MAX).first().map(|placed| placed.offset)
    }

    /// Whether Xen's map of complete blocks stands behind the table. It must follow each change of a block,
    /// and it can't in one atomic write.
    pub(crate) fn has_batmap(&self) -> Result<bool, DeviceError> {
        let Some(sparse) = self.sparse() else { return Ok(false) };
        if self.footer().creator_application != TAP_APPLICATION {
            return Ok(false);
        }
        let table_len = table_bytes(u64::from(sparse.header.max_table_entries));
        let Some(at) = sparse.table_offset.checked_add(table_len) else {
            return Ok(false);
        };
        let mut cookie = [0; BATMAP_COOKIE.len()];
        match self.file.read_exact_at(&mut cookie, at) {
            Ok(()) => Ok(&cookie == BATMAP_COOKIE),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error).io_context("look for a batmap", at),
        }
    }

    /// Points the table entries of blocks at other places, or at none. Not durable before the next
    /// [`barrier`](Image::barrier).
    ///
    /// INV-10: what stands at the new places is durable already. Each table sector is one atomic write.
    pub(crate) fn point_blocks(&mut self, changes: &[(BlockIndex, Option<FileOffset>)]) -> Result<(), DeviceError> {
        if changes.is_empty() {
            return Ok(());
        }
        let Some((sparse, writer)) = self.writer() else {
            return Err(DeviceError::ReadOnly);
        };
        let result = check_fence(writer).and_then(|()| write_entries(self, sparse, changes));
        self.poison_on_error(result)
    }

    /// Everything written so far is durable.
    pub(crate) fn barrier(&mut self) -> Result<(), DeviceError> {
        let result = match self.writer() {
            Some((_, writer)) => writer.poison.check(),
            None => Err(DeviceError::ReadOnly),
        };
        let result = result.and_then(|()| self.file.sync().io_context("sync", 0));
        self.poison_on_error(result)
    }

    /// A [`barrier`](Image::barrier), and `work` on the file at the same time. What `work` writes is not durable.
    pub(crate) fn barrier_beside<T: Send>(
        &mut self,
        work: impl FnOnce(&dyn StorageFile) -> Result<T, DeviceError> + Send,
    ) -> Result<T, DeviceError> {
        let file = Arc::clone(&self.file);
        thread::scope(|scope| {
            let worker = scope.spawn(|| work(&*file));
            let durable = self.barrier();
            let done = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            durable.and(done)
        })
    }

    /// Ends the file at `end`, behind which nothing is needed; `false` if it is that short already.
    pub(crate) fn cut(&mut self, end: u64) -> Result<bool, DeviceError> {
        let Some((_, writer)) = self.writer() else {
            return Err(DeviceError::ReadOnly);
        };
        let result = check_fence(writer).and_then(|()| cut_file(self, end));
        self.least_len.forget();
        self.poison_on_error(result)
    }

    /// INV-05: after a failure nothing more is written, not even when the image is closed.
    pub(super) fn poison_on_error<T>(&mut self, result: Result<T, DeviceError>) -> Result<T, DeviceError> {
        if result.is_err() {
            self.abandon();
        }
        result
    }
}

fn check_fence(writer: &Writer) -> Result<(), DeviceError> {
    writer.poison.check()?;
    writer.check_fence()
}

fn write_entries(
    image: &Image,
    sparse: &Sparse,
    changes: &[(BlockIndex, Option<FileOffset>)],
) -> Result<(), DeviceError> {
    let mut sectors = Vec::with_capacity(changes.len());
    for &(block, place) in changes {
        let entry = match place {
            Some(offset) => TableEntry::at(offset).ok_or(DeviceError::ImageFull { offset: offset.0 })?,
            None => TableEntry::unused(),
        };
        sparse.table.allocate(block, Slot::published(entry));
        sectors.push(table_sector_of(block));
    }
    sectors.sort_unstable();
    sectors.dedup();
    for run in sectors.chunk_by(|a, b| a + 1 == *b) {
        let (offset, bytes) = sparse.table_sectors(run);
        let written = image.file.write_all_at(&bytes, offset);
        written.io_context("write the block table", offset)?;
    }
    Ok(())
}

fn cut_file(image: &Image, end: u64) -> Result<bool, DeviceError> {
    let footer_len = u64_from(FOOTER_SIZE);
    let file_len = image.file_len()?;
    let tail = image.tail_offset(file_len);
    // INV-03: the new footer must not touch the old one.
    if end + footer_len > tail {
        return Ok(false);
    }
    image
        .file
        .write_all_at(&image.footers.raw, end)
        .io_context("write the footer", end)?;
    // INV-11: the footer is durable before the file ends behind it.
    image.file.sync().io_context("sync", end)?;
    image.file.set_len(end + footer_len).io_context("truncate", end)?;
    image.file.sync().io_context("sync", end)?;
    Ok(true)
}

fn placed_blocks(sparse: &Sparse, space_end: u64) -> Vec<PlacedBlock> {
    let blocks = sparse.layout.blocks_for(sparse.disk_size);
    let placed = (0..u32::try_from(blocks).unwrap_or(u32::MAX)).filter_map(|index| {
        let block = BlockIndex(index);
        let FileOffset(offset) = sparse.table.get(block).bitmap_offset()?;
        let end = offset + sparse.layout.bitmap_bytes() + sparse.bytes_on_disk(block);
        Some(PlacedBlock { block, offset, end })
    });
    let mut blocks: Vec<_> = placed.collect();
    blocks.sort_unstable_by_key(|placed| placed.offset);
    let mut next = space_end;
    for placed in blocks.iter_mut().rev() {
        placed.end = (placed.offset + sparse.layout.stored_bytes()).min(placed.end.max(next));
        next = placed.offset;
    }
    blocks
}

/// The space that is reserved for parent locators, of which their text may take a part only.
fn locator_space(header: &DynamicHeader) -> impl Iterator<Item = (u64, u64)> {
    header.locators.iter().flatten().map(|locator| {
        let largest = locator.offset.saturating_add(MAX_LOCATOR_SPACE);
        (locator.offset, locator.end().map_or(largest, |end| end.min(largest)))
    })
}
