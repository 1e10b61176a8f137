//! Images that our creator does not make: tiny blocks, foreign bitmaps, damaged and old footers.

use vhd_core::format::{
    BlockLayout, DiskType, DynamicHeader, FOOTER_SIZE, Footer, HEADER_SIZE, LEGACY_FOOTER_SIZE, TableEntry, Timestamp,
    UniqueId, table_bytes,
};
use vhd_core::units::{BlockIndex, FileOffset, u64_from, usize_from};

const TABLE_OFFSET: u64 = u64_from(FOOTER_SIZE + HEADER_SIZE);
const SECTOR: usize = 512;

/// Puts an image together; small blocks make many blocks, table sectors and bits cheap.
#[derive(Clone, Debug)]
pub(crate) struct Forge {
    footer: Footer,
    header: DynamicHeader,
    /// Footer copy, header, table and blocks, without the footer at the end.
    bytes: Vec<u8>,
}

impl Forge {
    pub(crate) fn dynamic(size: u64, block_size: u32) -> Self {
        Self::new(DiskType::Dynamic, size, block_size)
    }

    pub(crate) fn differencing(size: u64, block_size: u32) -> Self {
        Self::new(DiskType::Differencing, size, block_size)
    }

    /// A fixed image of zeroes.
    pub(crate) fn fixed(size: u64) -> Self {
        let mut forge = Self::new(DiskType::Fixed, size, 512);
        forge.bytes = vec![0; usize_from(size)];
        forge
    }

    fn new(disk_type: DiskType, size: u64, block_size: u32) -> Self {
        let footer = Footer::new(disk_type, size, UniqueId([0x5A; 16]), Timestamp::UNSET);
        let layout = BlockLayout::new(block_size).expect("a block size of the format");
        let mut header = DynamicHeader::new_dynamic(size, layout, TABLE_OFFSET);
        if disk_type == DiskType::Differencing {
            header.parent_name = "parent.raw".parse().expect("a short name");
        }
        let mut bytes = footer.encode().to_vec();
        bytes.extend(header.encode());
        let table = usize_from(table_bytes(u64::from(header.max_table_entries)));
        bytes.resize(bytes.len() + table, 0xFF);
        Self { footer, header, bytes }
    }

    pub(crate) fn footer(&self) -> &Footer {
        &self.footer
    }

    pub(crate) fn block_size(&self) -> u64 {
        self.header.layout.block_size()
    }

    /// Gives `block` space right behind what is there, the way old programs do: `sectors` says which of its
    /// sectors are present, `data` is what the file holds in all of them.
    pub(crate) fn with_block(mut self, block: BlockIndex, sectors: impl Fn(usize) -> bool, data: &[u8]) -> Self {
        let layout = self.header.layout;
        let entry = TableEntry::at(FileOffset(u64_from(self.bytes.len()))).expect("a small file");
        let slot = usize_from(TABLE_OFFSET) + 4 * block.as_usize();
        self.bytes[slot..slot + 4].copy_from_slice(&entry.to_be_bytes());
        let mut bitmap = vec![0; usize_from(layout.bitmap_bytes())];
        for sector in (0..usize_from(layout.sectors_per_block())).filter(|&sector| sectors(sector)) {
            bitmap[sector / 8] |= 0x80 >> (sector % 8);
        }
        self.bytes.extend(bitmap);
        self.bytes.extend(data);
        let missing = usize_from(layout.block_size()) - data.len();
        self.bytes.resize(self.bytes.len() + missing, 0);
        self
    }

    /// The file.
    pub(crate) fn build(&self) -> Vec<u8> {
        [&self.bytes[..], &self.footer.encode()].concat()
    }

    /// The file without the footer at its end.
    pub(crate) fn build_truncated(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// The file with a footer of 511 bytes, as Virtual PC wrote them before 2004.
    pub(crate) fn build_legacy(&self) -> Vec<u8> {
        let mut bytes = self.build();
        bytes.truncate(self.bytes.len() + LEGACY_FOOTER_SIZE);
        bytes
    }

    /// The file with a copy of the footer that `change` made.
    pub(crate) fn build_with_copy(&self, change: impl FnOnce(&mut Footer)) -> Vec<u8> {
        let mut copy = self.footer.clone();
        change(&mut copy);
        let mut bytes = self.build();
        bytes[..FOOTER_SIZE].copy_from_slice(&copy.encode());
        bytes
    }
}

/// Damages the first sector of a file: the copy of the footer.
pub(crate) fn damage_copy(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes[100] ^= 0xFF;
    bytes
}

/// Damages the footer at the end of a file.
pub(crate) fn damage_tail(mut bytes: Vec<u8>) -> Vec<u8> {
    let at = bytes.len() - SECTOR + 100;
    bytes[at] ^= 0xFF;
    bytes
}
