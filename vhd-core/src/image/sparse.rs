//! Images of blocks, dynamic and differencing: where the bytes of a range are.

use std::io;

use vhd_block::DeviceError;

use super::ReadSpan;
use super::commit::Writer;
use super::error::IoContext;
use super::sector_map::SectorMap;
use super::sector_maps::{MapRef, SectorMaps};
use super::table::BlockTable;
use crate::format::{BlockLayout, DynamicHeader};
use crate::storage::StorageFile;
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE, VirtualOffset, usize_from};

/// The part of an image that dynamic and differencing images have and fixed ones lack. The two differ in
/// one thing: what the file does not hold reads zero in the one and from the parent in the other.
pub(super) struct Sparse {
    pub(super) header: DynamicHeader,
    pub(super) differencing: bool,
    pub(super) layout: BlockLayout,
    pub(super) disk_size: u64,
    pub(super) table_offset: u64,
    pub(super) table: BlockTable,
    pub(super) maps: SectorMaps,
    pub(super) writer: Option<Writer>,
}

/// A range inside one block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub(super) block: BlockIndex,
    /// The first sector of the block.
    pub(super) first: u32,
    /// How many sectors.
    pub(super) count: u32,
    /// Bytes from the start of the block's data.
    pub(super) within: u64,
    pub(super) len: u64,
}

impl Sparse {
    /// The part of `len` bytes from `offset` that lies in the first block.
    pub(super) fn first_piece(&self, offset: VirtualOffset, len: u64) -> Piece {
        let within = self.layout.offset_in_block(offset);
        let len = len.min(self.layout.block_size() - within);
        Piece {
            block: self.layout.block_of(offset),
            first: sectors(within),
            count: sectors(len),
            within,
            len,
        }
    }

    /// Where the first bytes of the range are, and how many are in that place.
    pub(super) fn resolve_read(
        &self,
        file: &dyn StorageFile,
        offset: VirtualOffset,
        len: u64,
    ) -> Result<ReadSpan, DeviceError> {
        let piece = self.first_piece(offset, len);
        let slot = self.table.get(piece.block);
        let Some(bitmap) = slot.bitmap_offset() else {
            return Ok(self.absent(piece.len));
        };
        let data = |len| ReadSpan::Data {
            file_offset: self.data_offset(bitmap, piece.within),
            len,
        };
        if slot.is_full() {
            return Ok(data(piece.len));
        }
        let Some(map) = self.partial_map(file, piece.block, bitmap)? else {
            return Ok(data(piece.len));
        };
        let (present, count) = map.run(piece.first, piece.count);
        let len = u64::from(count) * SECTOR_SIZE;
        Ok(if present { data(len) } else { self.absent(len) })
    }

    /// How many bytes from the start of the range are in blocks without space.
    pub(super) fn unallocated(&self, offset: VirtualOffset, len: u64) -> u64 {
        match self.table.next_allocated(self.layout.block_of(offset)) {
            Some(block) => (u64::from(block.0) * self.layout.block_size())
                .saturating_sub(offset.0)
                .min(len),
            None => len,
        }
    }

    fn absent(&self, len: u64) -> ReadSpan {
        if self.differencing {
            ReadSpan::Parent { len }
        } else {
            ReadSpan::Zero { len }
        }
    }

    /// Where byte `within` of the data of the block at `bitmap` is.
    pub(super) fn data_offset(&self, bitmap: FileOffset, within: u64) -> FileOffset {
        FileOffset(bitmap.0 + self.layout.bitmap_bytes() + within)
    }

    /// The sector map of an allocated block; `None` if the block turns out to be complete.
    pub(super) fn partial_map(
        &self,
        file: &dyn StorageFile,
        block: BlockIndex,
        bitmap: FileOffset,
    ) -> Result<Option<MapRef<'_>>, DeviceError> {
        if let Some(map) = self.maps.get(block) {
            return Ok(Some(map));
        }
        let map = self
            .load_map(file, block, bitmap)
            .io_context("read a sector bitmap", bitmap.0)?;
        if map.is_full() {
            // Complete blocks keep no map: the flag answers for them from now on.
            self.table.mark_full(block);
            return Ok(None);
        }
        Ok(Some(self.maps.insert_loaded(block, map)))
    }

    /// Neighbouring sectors of the table as the file may hold them now, and where they go. There is at least one.
    pub(super) fn table_sectors(&self, sectors: &[u64]) -> (u64, Vec<u8>) {
        let mut bytes = Vec::with_capacity(sectors.len() * usize_from(SECTOR_SIZE));
        for &sector in sectors {
            self.table.encode_sector(sector, &mut bytes);
        }
        (self.table_offset + sectors[0] * SECTOR_SIZE, bytes)
    }

    fn load_map(&self, file: &dyn StorageFile, block: BlockIndex, bitmap: FileOffset) -> io::Result<SectorMap> {
        let mut bytes = vec![0; usize_from(self.layout.bitmap_bytes())];
        file.read_exact_at(&mut bytes, bitmap.0)?;
        Ok(SectorMap::from_bytes(&bytes, self.sectors_on_disk(block)))
    }

    /// How many blocks the disk has.
    pub(super) fn blocks(&self) -> u64 {
        self.disk_size.div_ceil(self.layout.block_size())
    }

    /// How many sectors of `block` lie on the disk: all but in the last block.
    pub(super) fn sectors_on_disk(&self, block: BlockIndex) -> u32 {
        sectors(self.bytes_on_disk(block))
    }

    /// How many bytes of `block` lie on the disk.
    pub(super) fn bytes_on_disk(&self, block: BlockIndex) -> u64 {
        self.layout.bytes_on_disk(block, self.disk_size)
    }
}

/// Bytes within a block as sectors; a block has at most 2^19 of them.
fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR_SIZE).expect("a block has at most 2^19 sectors")
}
