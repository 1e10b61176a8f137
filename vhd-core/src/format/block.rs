//! The arithmetic of blocks: which one an offset is in, and how many bytes it takes in the file.

use super::FormatError;
use crate::units::{BlockIndex, SECTOR_SIZE, VirtualOffset, checked_align_up};

/// Bytes of data in a block unless the creator asks for another size (specification, "Dynamic Disk
/// Header Format", "Block Size").
pub const DEFAULT_BLOCK_SIZE: u32 = 2 << 20;
/// Bytes: the smallest block size that can be read, one sector.
pub const MIN_BLOCK_SIZE: u32 = 512;
/// Bytes: the smallest block size that images are created with, also the smallest that its makers tested.
pub const MIN_CREATE_BLOCK_SIZE: u32 = 512 << 10;
/// Bytes: the largest block size that can be read. The format has no limit; this one keeps the bitmap of
/// a block within 64 KiB and the space that a single written sector costs within reason.
pub const MAX_BLOCK_SIZE: u32 = 256 << 20;

/// The page size that the data of blocks is aligned to, so that no host page holds bytes of two blocks
/// and no guest page lies in two host pages.
const DATA_ALIGNMENT: u64 = 4096;
const SECTORS_PER_BITMAP_BYTE: u64 = 8;

/// The shape of an image's blocks. In the file a block is its bitmap, then its data (specification, "Data
/// Blocks"); on the disk it is the data alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockLayout {
    block_size: u32,
    bitmap_bytes: u64,
}

impl BlockLayout {
    /// The layout of blocks with `block_size` bytes of data: a power of two from [`MIN_BLOCK_SIZE`] to
    /// [`MAX_BLOCK_SIZE`].
    pub fn new(block_size: u32) -> Result<Self, FormatError> {
        if !(MIN_BLOCK_SIZE..=MAX_BLOCK_SIZE).contains(&block_size) {
            return Err(FormatError::BlockSizeOutOfRange {
                block_size,
                min: MIN_BLOCK_SIZE,
                max: MAX_BLOCK_SIZE,
            });
        }
        if !block_size.is_power_of_two() {
            return Err(FormatError::BlockSizeNotPowerOfTwo { block_size });
        }
        let bitmap_sectors = u64::from(block_size).div_ceil(SECTOR_SIZE * SECTORS_PER_BITMAP_BYTE * SECTOR_SIZE);
        Ok(Self {
            block_size,
            bitmap_bytes: bitmap_sectors * SECTOR_SIZE,
        })
    }

    /// Bytes of data in a block.
    #[must_use]
    pub fn block_size(self) -> u64 {
        u64::from(self.block_size)
    }

    /// Bytes of data in a block, as the header has them.
    pub(super) fn block_size_field(self) -> u32 {
        self.block_size
    }

    /// Sectors of data in a block.
    #[must_use]
    pub fn sectors_per_block(self) -> u64 {
        self.block_size() / SECTOR_SIZE
    }

    /// Bytes of a block's bitmap in the file: whole sectors, so up to 2 MiB blocks just one.
    #[must_use]
    pub fn bitmap_bytes(self) -> u64 {
        self.bitmap_bytes
    }

    /// Bytes of a block in the file: bitmap and data.
    #[must_use]
    pub fn stored_bytes(self) -> u64 {
        self.bitmap_bytes + self.block_size()
    }

    /// The block that holds `offset`. Offsets past all that a table can count give the largest index.
    #[must_use]
    pub fn block_of(self, offset: VirtualOffset) -> BlockIndex {
        BlockIndex(u32::try_from(offset.0 >> self.block_size.trailing_zeros()).unwrap_or(u32::MAX))
    }

    /// Bytes from the start of its block to `offset`.
    #[must_use]
    pub fn offset_in_block(self, offset: VirtualOffset) -> u64 {
        offset.0 & (self.block_size() - 1)
    }

    /// Where the data of `block` begins on the disk.
    #[must_use]
    pub fn block_start(self, block: BlockIndex) -> VirtualOffset {
        VirtualOffset(u64::from(block.0) * self.block_size())
    }

    /// How many bytes of `block` lie on a disk of `disk_size` bytes: all but in the last block. `block` is one of
    /// the disk's.
    #[must_use]
    pub fn bytes_on_disk(self, block: BlockIndex, disk_size: u64) -> u64 {
        (disk_size - self.block_start(block).0).min(self.block_size())
    }

    /// The number of blocks of a disk of `size` bytes, the last perhaps only partly used.
    #[must_use]
    pub fn blocks_for(self, size: u64) -> u64 {
        size.div_ceil(self.block_size())
    }

    /// The lowest file offset, in bytes and at a sector, that is `at_least` or more and puts the data of a
    /// block whose bitmap begins there on a 4 KiB boundary. Data smaller than that is put on a multiple of
    /// its own size, which also keeps it within one page and packs small blocks.
    ///
    /// A result past every offset that a table entry can address is possible, and within the last page
    /// of 64 bits it saturates; `TableEntry::at` refuses both.
    #[must_use]
    pub fn aligned_start(&self, at_least: u64) -> u64 {
        let alignment = self.block_size().min(DATA_ALIGNMENT);
        let last_page = u64::MAX - (DATA_ALIGNMENT - 1);
        let data = at_least
            .checked_add(self.bitmap_bytes)
            .and_then(|data| checked_align_up(data, alignment));
        data.unwrap_or(last_page) - self.bitmap_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use proptest::prelude::*;

    fn sizes() -> impl Iterator<Item = u32> {
        (9..=28).map(|shift| 1 << shift)
    }

    fn any_layout() -> impl Strategy<Value = BlockLayout> {
        (9_u32..=28).prop_map(|shift| BlockLayout::new(1 << shift).unwrap())
    }

    #[test]
    fn sizes_of_bitmaps() {
        let cases = [
            (512, 1, 512),
            (4096, 8, 512),
            (512 << 10, 1024, 512),
            (2 << 20, 4096, 512),
            (4 << 20, 8192, 1024),
            (32 << 20, 65536, 8192),
            (256 << 20, 524_288, 65536),
        ];
        for (block_size, sectors, bitmap) in cases {
            let layout = BlockLayout::new(block_size).unwrap();
            assert_eq!(layout.sectors_per_block(), sectors, "{block_size}");
            assert_eq!(layout.bitmap_bytes(), bitmap, "{block_size}");
            assert_eq!(layout.stored_bytes(), bitmap + u64::from(block_size), "{block_size}");
        }
    }

    #[test]
    fn other_block_sizes_are_refused() {
        for block_size in [
            0,
            1,
            256,
            511,
            513,
            3 << 20,
            (2 << 20) + 512,
            (256 << 20) + 1,
            512 << 20,
            u32::MAX,
        ] {
            assert_eq!(
                BlockLayout::new(block_size).unwrap_err().kind(),
                ErrorKind::BlockSize,
                "{block_size}"
            );
        }
        for block_size in sizes() {
            assert_eq!(
                BlockLayout::new(block_size).unwrap().block_size(),
                u64::from(block_size)
            );
        }
    }

    #[test]
    fn offsets_and_blocks() {
        let layout = BlockLayout::new(DEFAULT_BLOCK_SIZE).unwrap();
        assert_eq!(layout.block_of(VirtualOffset(0)), BlockIndex(0));
        assert_eq!(layout.block_of(VirtualOffset((2 << 20) - 1)), BlockIndex(0));
        assert_eq!(layout.block_of(VirtualOffset(2 << 20)), BlockIndex(1));
        assert_eq!(layout.offset_in_block(VirtualOffset((2 << 20) + 7)), 7);
        assert_eq!(layout.block_start(BlockIndex(3)), VirtualOffset(6 << 20));
        assert_eq!(layout.blocks_for(0), 0);
        assert_eq!(layout.blocks_for(1), 1);
        assert_eq!(layout.blocks_for(2 << 20), 1);
        assert_eq!(layout.blocks_for((2 << 20) + 512), 2);
        assert_eq!(layout.blocks_for(2040 << 30), 1_044_480);
        assert_eq!(
            BlockLayout::new(512).unwrap().block_of(VirtualOffset(u64::MAX)),
            BlockIndex(u32::MAX)
        );
    }

    /// Where the aligning writers put their first block behind a table of one sector, and the next.
    #[test]
    fn known_starts() {
        let layout = BlockLayout::new(DEFAULT_BLOCK_SIZE).unwrap();
        assert_eq!(layout.aligned_start(0), 7 * 512);
        assert_eq!(layout.aligned_start(0x800), 7 * 512);
        assert_eq!(layout.aligned_start(7 * 512), 7 * 512);
        assert_eq!(layout.aligned_start(7 * 512 + 1), 15 * 512);
        assert_eq!(
            layout.aligned_start(15 * 512 + layout.stored_bytes()),
            (15 + 4104) * 512
        );
        assert_eq!(layout.aligned_start(0x3000 + 65536), 159 * 512);
    }

    #[test]
    fn small_blocks_pack() {
        let layout = BlockLayout::new(512).unwrap();
        assert_eq!(layout.aligned_start(0x800), 0x800);
        assert_eq!(layout.aligned_start(0x801), 0xA00);
        let layout = BlockLayout::new(2048).unwrap();
        assert_eq!(layout.aligned_start(0x800), 0xE00);
    }

    #[test]
    fn the_last_offsets_saturate() {
        for block_size in sizes() {
            let layout = BlockLayout::new(block_size).unwrap();
            let start = layout.aligned_start(u64::MAX);
            assert_eq!(start % SECTOR_SIZE, 0);
            assert!(start > u64::MAX / 2);
        }
    }

    proptest! {
        #[test]
        fn every_start_is_aligned_and_lowest(layout in any_layout(), at_least in 0_u64..1 << 42) {
            let start = layout.aligned_start(at_least);
            let data = start + layout.bitmap_bytes();
            let alignment = layout.block_size().min(4096);
            prop_assert!(start >= at_least);
            prop_assert_eq!(start % SECTOR_SIZE, 0);
            prop_assert_eq!(data % alignment, 0);
            // A lower one would also do if the distance reached the alignment.
            prop_assert!(start - at_least < alignment);
            // No smaller data straddles a page.
            prop_assert_eq!(data / 4096 == (data + layout.block_size() - 1) / 4096, layout.block_size() <= 4096);
        }

        #[test]
        fn an_offset_is_its_block_and_the_rest(layout in any_layout(), offset in 0_u64..2040 << 30) {
            let offset = VirtualOffset(offset);
            let start = layout.block_start(layout.block_of(offset));
            prop_assert_eq!(start.0 + layout.offset_in_block(offset), offset.0);
            prop_assert!(u64::from(layout.block_of(offset).0) < layout.blocks_for(offset.0 + 1));
        }

        #[test]
        fn bitmaps_have_room_for_every_sector(layout in any_layout()) {
            prop_assert!(layout.bitmap_bytes() * 8 >= layout.sectors_per_block());
            prop_assert_eq!(layout.bitmap_bytes() % SECTOR_SIZE, 0);
            prop_assert!((layout.bitmap_bytes() - SECTOR_SIZE) * 8 < layout.sectors_per_block());
        }
    }
}
