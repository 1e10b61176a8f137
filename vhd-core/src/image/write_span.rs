//! Writing: a span says where bytes go, and its completion makes them visible.

use vhd_block::{DeviceError, ZeroOptions};

use super::Image;
use super::allocator::Reservation;
use super::commit::Writer;
use super::error::IoContext;
use super::sector_map::SectorMap;
use super::sparse::{Piece, Sparse};
use super::table::Slot;
use super::zero_file_range;
use crate::format::TableEntry;
use crate::storage::StorageFile;
use crate::sync::{MutexGuard, lock};
use crate::units::{BlockIndex, FileOffset, VirtualOffset, u64_from};

/// A place in the file for the next bytes of a write. Put them there, then call
/// [`complete`](WriteSpan::complete); a span that is dropped instead leaves the disk as it was, except that
/// sectors which were in this file already may have been overwritten.
#[must_use = "bytes written to a span are part of the disk after complete() only"]
pub struct WriteSpan<'a> {
    image: &'a Image,
    file_offset: FileOffset,
    len: u64,
    completion: Completion<'a>,
}

enum Completion<'a> {
    /// Every sector is in this file already.
    InPlace,
    /// Sectors of a block that has space; some may be absent until now.
    Bits {
        sparse: &'a Sparse,
        writer: &'a Writer,
        map: &'a SectorMap,
        piece: Piece,
    },
    /// The first sectors of a block: it gets its space with them.
    NewBlock(Box<NewBlock<'a>>),
}

struct NewBlock<'a> {
    sparse: &'a Sparse,
    writer: &'a Writer,
    reservation: Reservation<'a>,
    piece: Piece,
    /// Keeps other writers of the block waiting until it is in the table.
    _stripe: MutexGuard<'a, ()>,
}

impl<'a> WriteSpan<'a> {
    pub(super) fn in_place(image: &'a Image, file_offset: FileOffset, len: u64) -> Self {
        Self {
            image,
            file_offset,
            len,
            completion: Completion::InPlace,
        }
    }

    /// Where the first bytes of the range go.
    pub(super) fn in_block(
        image: &'a Image,
        sparse: &'a Sparse,
        writer: &'a Writer,
        offset: VirtualOffset,
        len: u64,
    ) -> Result<Self, DeviceError> {
        let piece = sparse.first_piece(offset, len);
        let mut slot = sparse.table.get(piece.block);
        if !slot.is_allocated() {
            let stripe = lock(stripe_of(writer, piece.block));
            slot = sparse.table.get(piece.block);
            if let (Some(granted), false) = (&writer.granted, slot.is_allocated()) {
                slot = granted.slot(sparse, &writer.poison, &*image.file, piece.block)?;
            }
            if !slot.is_allocated() {
                secure(image, sparse, writer)?;
                let reservation = writer.allocator.reserve(|| writer.check_fence())?;
                let file_offset = sparse.data_offset(reservation.bitmap(), piece.within);
                let block = NewBlock {
                    sparse,
                    writer,
                    reservation,
                    piece,
                    _stripe: stripe,
                };
                return Ok(Self {
                    image,
                    file_offset,
                    len: piece.len,
                    completion: Completion::NewBlock(Box::new(block)),
                });
            }
        }
        Self::in_allocated_block(image, sparse, writer, slot, piece)
    }

    fn in_allocated_block(
        image: &'a Image,
        sparse: &'a Sparse,
        writer: &'a Writer,
        slot: Slot,
        piece: Piece,
    ) -> Result<Self, DeviceError> {
        let bitmap = slot.bitmap_offset().expect("the block is allocated");
        let file_offset = sparse.data_offset(bitmap, piece.within);
        if slot.is_full() || sparse.partial_map(&*image.file, piece.block, bitmap)?.is_none() {
            return Ok(Self::in_place(image, file_offset, piece.len));
        }
        let map = sparse
            .maps
            .resident_map(piece.block)
            .expect("a writable image keeps the maps it loads");
        secure(image, sparse, writer)?;
        if !map.is_writable() {
            let len = sparse.layout.bitmap_bytes();
            let kept = image.file.keep_writable(bitmap.0, len);
            kept.io_context("take space for a sector bitmap", bitmap.0)?;
            map.mark_writable();
        }
        let completion = Completion::Bits {
            sparse,
            writer,
            map,
            piece,
        };
        Ok(Self {
            image,
            file_offset,
            len: piece.len,
            completion,
        })
    }

    /// Where in the file the bytes go.
    #[must_use]
    pub fn file_offset(&self) -> FileOffset {
        self.file_offset
    }

    /// How many bytes of the range go there.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A span has at least one sector.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The file that the bytes go to.
    #[must_use]
    pub fn file(&self) -> &dyn StorageFile {
        &*self.image.file
    }

    /// Makes the span's bytes in the file zero.
    ///
    /// # Errors
    /// [`DeviceError::NotFast`] if they would have to be written out and `fast_only` is set.
    pub fn zero(&self, options: ZeroOptions) -> Result<(), DeviceError> {
        if options.may_unmap && matches!(self.completion, Completion::NewBlock(_)) {
            return Ok(()); // INV-04: new space reads zero.
        }
        zero_file_range(self.file(), self.file_offset.0, self.len, options)
    }

    /// Makes the bytes that were put in the span's place part of the disk: readers see them from now on,
    /// and the next flush makes them durable.
    pub fn complete(self) -> Result<(), DeviceError> {
        match self.completion {
            Completion::InPlace => Ok(()),
            Completion::Bits {
                sparse,
                writer,
                map,
                piece,
            } => {
                if map.run(piece.first, piece.count) == (true, piece.count) {
                    return Ok(());
                }
                bound(self.image, writer, set_bits(sparse, writer, map, piece))
            }
            Completion::NewBlock(block) => {
                let writer = block.writer;
                let pending = block.publish_in_memory(&*self.image.file)?;
                bound(self.image, writer, pending)
            }
        }
    }
}

impl Image {
    /// A place for the bytes at the start of the range, for one who holds it without a lock and for as long as he likes: where
    /// in the file, and how many bytes. The block has its space, and is in the table, from here on (INV-80); what it lacks
    /// reads as before. Conditions as for [`resolve_write`](Self::resolve_write).
    pub(crate) fn hold_place(&self, offset: VirtualOffset, len: u64) -> Result<(FileOffset, u64), DeviceError> {
        let span = self.resolve_write(offset, len)?;
        let place = (span.file_offset, span.len);
        if let Completion::NewBlock(block) = span.completion {
            let writer = block.writer;
            let pending = block.without_data().publish_in_memory(&*self.file)?;
            bound(self, writer, pending)?;
        }
        Ok(place)
    }

    /// Makes bytes part of the disk that were put in a place that is [held](Self::hold_place).
    pub(crate) fn complete_place(&self, offset: VirtualOffset, len: u64) -> Result<(), DeviceError> {
        let Some((sparse, writer)) = self.writer() else {
            return Ok(());
        };
        let piece = sparse.first_piece(offset, len);
        debug_assert_eq!(piece.len, len, "a place is in one block");
        let slot = sparse.table.get(piece.block);
        debug_assert!(slot.is_allocated(), "a place has space");
        // What the next flush needs may have been used by one since the place was given out.
        WriteSpan::in_allocated_block(self, sparse, writer, slot, piece)?.complete()
    }
}

/// INV-40: what this write adds to the next flush has room.
fn secure(image: &Image, sparse: &Sparse, writer: &Writer) -> Result<(), DeviceError> {
    let (offset, len) = (sparse.table_offset, sparse.table.file_bytes());
    let secured = writer.room.secure(&*image.file, offset, len);
    secured.io_context("set space aside for metadata", offset)
}

/// INV-07: a writer that never flushes leaves a bounded number of blocks to a crash.
fn bound(image: &Image, writer: &Writer, pending: usize) -> Result<(), DeviceError> {
    if u64_from(pending) < writer.room.most_pending() {
        Ok(())
    } else {
        image.flush()
    }
}

/// Marks the sectors of `piece` as present; returns how many maps the next flush has to write.
fn set_bits(sparse: &Sparse, writer: &Writer, map: &SectorMap, piece: Piece) -> usize {
    // One critical section: whoever finds a bit set, or the map dirty, and then flushes must find it pending too.
    let mut pending = lock(&writer.pending);
    if map.set(piece.first, piece.count) {
        if map.is_full() {
            sparse.table.mark_full(piece.block);
        }
        if map.mark_dirty() {
            pending.dirty_maps.push(piece.block);
        }
    }
    pending.dirty_maps.len()
}

impl NewBlock<'_> {
    /// The same block, with nothing in it.
    fn without_data(mut self) -> Self {
        (self.piece.first, self.piece.count) = (0, 0);
        self
    }

    /// Writes the block's bitmap and puts the block into the table in memory; returns how many blocks are unpublished now.
    fn publish_in_memory(self, file: &dyn StorageFile) -> Result<usize, DeviceError> {
        let Self {
            sparse,
            writer,
            reservation,
            piece,
            ..
        } = self;
        let on_disk = sparse.sectors_on_disk(piece.block);
        // A new block of a dynamic image gets a full bitmap: its space reads zero, and readers that ignore
        // the bitmap are right then too.
        let full = !sparse.differencing || piece.count == on_disk;
        let map = (!full).then(|| {
            let map = SectorMap::empty(sparse.layout.bitmap_bytes(), on_disk);
            map.set(piece.first, piece.count);
            map.mark_writable();
            map
        });
        // INV-40: the bitmap has its space with the block, or is written with it. No entry refers to it yet.
        let FileOffset(at) = reservation.bitmap();
        let waits = writer.room.defer_bitmap();
        if !waits {
            let written = match &map {
                Some(map) => file.write_all_at(&map.snapshot(), at),
                None => file.write_all_at(&writer.full_bitmap, at),
            };
            written.io_context("write a sector bitmap", at)?;
        }
        if let Some(map) = map {
            sparse.maps.insert_new(piece.block, map);
        }
        let entry = TableEntry::at(reservation.bitmap()).expect("the allocator hands out addressable space");
        // One critical section: a flush that starts after another writer saw the block must find it pending.
        let mut pending = lock(&writer.pending);
        sparse.table.allocate(piece.block, Slot::unpublished(entry, full));
        pending.new_blocks.push(piece.block);
        if waits {
            pending.bare_blocks.push(piece.block);
        }
        reservation.keep();
        Ok(pending.new_blocks.len())
    }
}

fn stripe_of(writer: &Writer, block: BlockIndex) -> &crate::sync::Mutex<()> {
    &writer.stripes[block.as_usize() % writer.stripes.len()]
}
