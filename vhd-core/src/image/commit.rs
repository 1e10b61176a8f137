//! The two-phase flush: what is pending, and the order in which it reaches the file.
//!
//! Payload is in the file when a write returns; table entries and sector bits are pending. A flush is
//!
//! 1. *stage*: the bitmaps of the unpublished blocks (the tail footer and the length went with the
//!    chunk that holds them);
//! 2. *sync*: payload, bitmaps and length are durable;
//! 3. *publish*: the table entries of those blocks, and the new bits of published blocks as they were
//!    when staged (INV-01, INV-02, INV-06);
//! 4. *sync*.
//!
//! Each step is a method of the value that the step before returned, so a missing barrier does not
//! compile. With nothing staged a flush is one sync.

use std::sync::Arc;

use vhd_block::DeviceError;

use super::Poison;
use super::allocator::Allocator;
use super::error::IoContext;
use super::sparse::Sparse;
use super::table::table_sector_of;
use crate::format::FOOTER_SIZE;
use crate::storage::StorageFile;
use crate::sync::{Mutex, lock};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from, usize_from};

/// Blocks that may be unpublished, or have unpublished sectors, at once (INV-07): a crash loses at most these, and a flush handles no more.
pub(super) const MAX_UNPUBLISHED: usize = 1 << 16;

/// Asked before metadata is published: a lease says here whether this process still owns the image (INV-06).
pub trait PublishFence: Send + Sync {
    /// `Err` with the reason if metadata must not be changed any more.
    fn check(&self) -> Result<(), String>;
}

/// What a writable image of blocks needs beyond what a reader does.
pub(super) struct Writer {
    pub(super) allocator: Allocator,
    pub(super) stripes: Box<[Mutex<()>]>,
    pub(super) pending: Mutex<Pending>,
    pub(super) poison: Poison,
    pub(super) fence: Option<Arc<dyn PublishFence>>,
}

/// What the next flush has to publish.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Blocks whose table entry is not in the file.
    pub(super) new_blocks: Vec<BlockIndex>,
    /// Blocks whose map has bits that the file may not have.
    pub(super) dirty_maps: Vec<BlockIndex>,
}

struct BitmapWrite {
    block: BlockIndex,
    offset: FileOffset,
    bytes: Vec<u8>,
}

#[derive(Default)]
struct Batch {
    new_blocks: Vec<BlockIndex>,
    /// Bitmaps of published blocks.
    bits: Vec<BitmapWrite>,
    retired_footers: Vec<FileOffset>,
}

/// Everything of the batch that must be durable before the rest has been written.
pub(super) struct Staged<'a> {
    sparse: &'a Sparse,
    writer: &'a Writer,
    file: &'a dyn StorageFile,
    batch: Batch,
}

/// The staged part is durable.
pub(super) struct Durable<'a>(Staged<'a>);

/// The table entries and bits have been written.
pub(super) struct Published<'a>(Staged<'a>);

impl Writer {
    /// INV-06: whoever lost the lease changes no metadata.
    pub(super) fn check_fence(&self) -> Result<(), DeviceError> {
        let held = self.fence.as_ref().map_or(Ok(()), |fence| fence.check());
        self.poison
            .on_error(held.map_err(|reason| DeviceError::FenceLost { reason }))
    }
}

/// One whole flush of an image of blocks.
pub(super) fn commit(sparse: &Sparse, writer: &Writer, file: &dyn StorageFile) -> Result<(), DeviceError> {
    writer.poison.check()?;
    let durable = Staged::stage(sparse, writer, file)?.sync()?;
    if durable.has_nothing_to_publish() {
        return Ok(());
    }
    durable.publish()?.sync()
}

impl<'a> Staged<'a> {
    /// Takes what is pending and writes the bitmaps of the unpublished blocks. If that fails (a full file
    /// system), everything is pending again and a later flush tries once more.
    fn stage(sparse: &'a Sparse, writer: &'a Writer, file: &'a dyn StorageFile) -> Result<Self, DeviceError> {
        let Pending { new_blocks, dirty_maps } = std::mem::take(&mut *lock(&writer.pending));
        let mut staged = Self {
            sparse,
            writer,
            file,
            batch: Batch {
                new_blocks,
                ..Batch::default()
            },
        };
        staged.snapshot_bits(dirty_maps);
        staged.batch.retired_footers = writer.allocator.take_retired();
        match staged.write_new_bitmaps() {
            Ok(()) => Ok(staged),
            Err(error) => {
                staged.put_back();
                Err(error)
            }
        }
    }

    fn snapshot_bits(&mut self, dirty_maps: Vec<BlockIndex>) {
        for block in dirty_maps {
            // An unpublished block's bitmap goes out whole in this phase; only published ones must wait.
            if self.sparse.table.get(block).is_unpublished() {
                continue;
            }
            let map = self.sparse.maps.resident_map(block);
            if let (Some(map), Some(offset)) = (map, self.sparse.table.get(block).bitmap_offset()) {
                self.batch.bits.push(BitmapWrite {
                    block,
                    offset,
                    bytes: map.snapshot(),
                });
            }
        }
    }

    fn write_new_bitmaps(&self) -> Result<(), DeviceError> {
        let full = vec![0xFF; usize_from(self.sparse.layout.bitmap_bytes())];
        for &block in &self.batch.new_blocks {
            let Some(FileOffset(offset)) = self.sparse.table.get(block).bitmap_offset() else {
                continue;
            };
            let result = match self.sparse.maps.resident_map(block) {
                Some(map) => self.file.write_all_at(&map.snapshot(), offset),
                None => self.file.write_all_at(&full, offset),
            };
            result.io_context("write a sector bitmap", offset)?;
        }
        Ok(())
    }

    fn put_back(self) {
        let mut pending = lock(&self.writer.pending);
        pending.new_blocks.extend(&self.batch.new_blocks);
        for write in &self.batch.bits {
            if self
                .sparse
                .maps
                .resident_map(write.block)
                .is_some_and(|map| map.mark_dirty())
            {
                pending.dirty_maps.push(write.block);
            }
        }
        self.writer.allocator.restore_retired(self.batch.retired_footers);
    }

    /// INV-01, INV-02: payload, new bitmaps, footer and length are durable before anything refers to them.
    fn sync(self) -> Result<Durable<'a>, DeviceError> {
        self.writer.poison.on_error(self.file.sync().io_context("sync", 0))?;
        Ok(Durable(self))
    }
}

impl<'a> Durable<'a> {
    fn has_nothing_to_publish(&self) -> bool {
        let batch = &self.0.batch;
        batch.new_blocks.is_empty() && batch.bits.is_empty() && batch.retired_footers.is_empty()
    }

    /// Writes what refers to durable data.
    fn publish(self) -> Result<Published<'a>, DeviceError> {
        let Self(staged) = self;
        staged.writer.check_fence()?;
        let written = staged
            .write_table()
            .and_then(|()| staged.write_bits())
            .and_then(|()| staged.clear_retired());
        staged.writer.poison.on_error(written)?;
        Ok(Published(staged))
    }
}

impl Staged<'_> {
    fn write_table(&self) -> Result<(), DeviceError> {
        for &block in &self.batch.new_blocks {
            self.sparse.table.mark_published(block);
        }
        let mut sectors: Vec<u64> = self
            .batch
            .new_blocks
            .iter()
            .map(|&block| table_sector_of(block))
            .collect();
        sectors.sort_unstable();
        sectors.dedup();
        for run in sectors.chunk_by(|a, b| a + 1 == *b) {
            self.sparse.write_table_sectors(run, self.file)?;
        }
        Ok(())
    }

    fn write_bits(&self) -> Result<(), DeviceError> {
        for BitmapWrite { offset, bytes, .. } in &self.batch.bits {
            self.file
                .write_all_at(bytes, offset.0)
                .io_context("write a sector bitmap", offset.0)?;
        }
        Ok(())
    }

    fn clear_retired(&self) -> Result<(), DeviceError> {
        // INV-03: the footer at the end of the present chunk is durable, the former ones may go.
        for footer in &self.batch.retired_footers {
            self.file
                .write_all_at(&[0; FOOTER_SIZE], footer.0)
                .io_context("clear a former footer", footer.0)?;
        }
        Ok(())
    }
}

impl Published<'_> {
    fn sync(self) -> Result<(), DeviceError> {
        let Self(staged) = self;
        staged.writer.poison.on_error(staged.file.sync().io_context("sync", 0))
    }
}

const _: () = assert!(u64_from(FOOTER_SIZE) == SECTOR_SIZE);
