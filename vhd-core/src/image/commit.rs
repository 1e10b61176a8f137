//! The two-phase flush: what is pending, and the order in which it reaches the file.
//!
//! Payload and the bitmap of a new block are in the file when a write returns; table entries and sector bits are pending.
//! A flush is
//!
//! 1. *stage*: the bitmaps of unpublished blocks that changed since (the tail footer and the length went with the chunk
//!    that holds them);
//! 2. *sync*: payload, bitmaps and length are durable;
//! 3. *publish*: the table entries of those blocks, and the new bits of published blocks as they were
//!    when staged (INV-01, INV-02, INV-06);
//! 4. *sync*.
//!
//! Each step is a method of the value that the step before returned, so a missing barrier does not
//! compile. With nothing staged a flush is one sync.
//!
//! A write that the host refuses for lack of space changed nothing that anybody relies on: everything is pending again,
//! and a later flush tries once more. A sync that fails, for whatever reason, may have lost data (INV-05).

use std::sync::Arc;

use vhd_block::{DeviceError, ErrorKind};

use super::Poison;
use super::allocator::Allocator;
use super::error::IoContext;
use super::granted::Granted;
use super::room::Room;
use super::sparse::Sparse;
use super::table::table_sector_of;
use crate::format::FOOTER_SIZE;
use crate::storage::StorageFile;
use crate::sync::{Mutex, lock};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, u64_from};

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
    /// Who gives out space for blocks, if that is not the allocator.
    pub(super) granted: Option<Granted>,
    /// Space for what a flush writes.
    pub(super) room: Room,
    /// The bitmap of a block that is complete.
    pub(super) full_bitmap: Box<[u8]>,
}

/// What the next flush has to publish.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Blocks whose table entry is not in the file.
    pub(super) new_blocks: Vec<BlockIndex>,
    /// Those of them whose bitmap is not in the file, which has space set aside.
    pub(super) bare_blocks: Vec<BlockIndex>,
    /// Blocks whose table entry may be in the file or not: there was no space for it.
    pub(super) refused: Vec<BlockIndex>,
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
    bare_blocks: Vec<BlockIndex>,
    refused: Vec<BlockIndex>,
    /// Bitmaps of unpublished blocks that changed since the block was written.
    new_bits: Vec<BitmapWrite>,
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
        let Pending {
            new_blocks,
            bare_blocks,
            refused,
            dirty_maps,
        } = std::mem::take(&mut *lock(&writer.pending));
        let mut staged = Self {
            sparse,
            writer,
            file,
            batch: Batch {
                new_blocks,
                bare_blocks,
                refused,
                ..Batch::default()
            },
        };
        staged.snapshot_bits(dirty_maps);
        staged.batch.retired_footers = writer.allocator.take_retired();
        let written = staged.write_bitmaps(&staged.batch.new_bits);
        match written.and_then(|()| staged.write_bare_bitmaps()) {
            Ok(()) => {
                let bare = std::mem::take(&mut staged.batch.bare_blocks);
                writer.room.settle(bare.len());
                Ok(staged)
            }
            Err(error) => {
                staged.put_back();
                Err(error)
            }
        }
    }

    fn snapshot_bits(&mut self, dirty_maps: Vec<BlockIndex>) {
        for block in dirty_maps {
            let slot = self.sparse.table.get(block);
            let map = self.sparse.maps.resident_map(block);
            if let (Some(map), Some(offset)) = (map, slot.bitmap_offset()) {
                // An unpublished block's bitmap goes out in this phase; only published ones must wait.
                let writes = if slot.is_unpublished() {
                    &mut self.batch.new_bits
                } else {
                    &mut self.batch.bits
                };
                writes.push(BitmapWrite {
                    block,
                    offset,
                    bytes: map.snapshot(),
                });
            }
        }
    }

    fn write_bare_bitmaps(&self) -> Result<(), DeviceError> {
        for &block in &self.batch.bare_blocks {
            let Some(FileOffset(offset)) = self.sparse.table.get(block).bitmap_offset() else {
                continue;
            };
            match self.sparse.maps.resident_map(block) {
                Some(map) => self.write(&map.snapshot(), offset, "write a sector bitmap")?,
                None => self.write(&self.writer.full_bitmap, offset, "write a sector bitmap")?,
            }
        }
        Ok(())
    }

    fn put_back(self) {
        let mut pending = lock(&self.writer.pending);
        pending.new_blocks.extend(&self.batch.new_blocks);
        pending.bare_blocks.extend(&self.batch.bare_blocks);
        pending.refused.extend(&self.batch.refused);
        for write in self.batch.new_bits.iter().chain(&self.batch.bits) {
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
        batch.new_blocks.is_empty()
            && batch.refused.is_empty()
            && batch.bits.is_empty()
            && batch.retired_footers.is_empty()
    }

    /// Writes what refers to durable data. If the host has no space for that, everything is pending again: entries and bits
    /// that did reach the file are right there, and are written once more by a later flush.
    fn publish(self) -> Result<Published<'a>, DeviceError> {
        let Self(mut staged) = self;
        staged.writer.check_fence()?;
        match staged
            .write_table()
            .and_then(|()| staged.write_bitmaps(&staged.batch.bits))
        {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NoSpace => {
                // Never among the new blocks again: INV-02 holds for their bitmaps from now on.
                let blocks = std::mem::take(&mut staged.batch.new_blocks);
                staged.batch.refused.extend(blocks);
                staged.batch.new_bits.clear();
                staged.put_back();
                return Err(error);
            }
            Err(error) => return staged.writer.poison.on_error(Err(error)),
        }
        staged.clear_retired()?;
        Ok(Published(staged))
    }
}

impl Staged<'_> {
    fn write_table(&self) -> Result<(), DeviceError> {
        let Batch {
            new_blocks, refused, ..
        } = &self.batch;
        for &block in new_blocks {
            self.sparse.table.mark_published(block);
        }
        let mut sectors: Vec<u64> = new_blocks
            .iter()
            .chain(refused)
            .map(|&block| table_sector_of(block))
            .collect();
        sectors.sort_unstable();
        sectors.dedup();
        for run in sectors.chunk_by(|a, b| a + 1 == *b) {
            let (offset, bytes) = self.sparse.table_sectors(run);
            self.write(&bytes, offset, "write the block table")?;
        }
        Ok(())
    }

    fn write_bitmaps(&self, writes: &[BitmapWrite]) -> Result<(), DeviceError> {
        for BitmapWrite { offset, bytes, .. } in writes {
            self.write(bytes, offset.0, "write a sector bitmap")?;
        }
        Ok(())
    }

    /// INV-03: the footer at the end of the present chunk is durable, the former ones may go. One that finds no space to be
    /// overwritten stays until a later flush: it is in nobody's way.
    fn clear_retired(&mut self) -> Result<(), DeviceError> {
        for footer in std::mem::take(&mut self.batch.retired_footers) {
            match self.write(&[0; FOOTER_SIZE], footer.0, "clear a former footer") {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::NoSpace => {
                    self.writer.allocator.restore_retired(vec![footer]);
                }
                Err(error) => return self.writer.poison.on_error(Err(error)),
            }
        }
        Ok(())
    }

    /// Overwrites metadata, for which there is room (INV-40).
    fn write(&self, bytes: &[u8], offset: u64, operation: &'static str) -> Result<(), DeviceError> {
        let written = self.writer.room.use_for(|| self.file.write_all_at(bytes, offset));
        written.io_context(operation, offset)
    }
}

impl Published<'_> {
    fn sync(self) -> Result<(), DeviceError> {
        let Self(staged) = self;
        staged.writer.poison.on_error(staged.file.sync().io_context("sync", 0))
    }
}

const _: () = assert!(u64_from(FOOTER_SIZE) == SECTOR_SIZE);
