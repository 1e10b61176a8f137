//! Images byte by byte, as other programs write them. Nothing here uses the library's own encoders, so an
//! error in those can't hide itself.

use super::rng::{Rng, chance, random_bytes};
use vhd_core::units::{u64_from, usize_from};

pub(crate) const SECTOR: usize = 512;
pub(crate) const FOOTER: usize = 512;
pub(crate) const HEADER: usize = 1024;
/// Where the checksum is in a footer.
pub(crate) const FOOTER_SUM: usize = 64;
/// Where the checksum is in a dynamic header.
pub(crate) const HEADER_SUM: usize = 36;

pub(crate) const FIXED: u32 = 2;
pub(crate) const DYNAMIC: u32 = 3;
pub(crate) const DIFFERENCING: u32 = 4;

/// The identity with this number.
pub(crate) fn id(number: usize) -> [u8; 16] {
    let mut id = [0xA5; 16];
    id[8..].copy_from_slice(&u64_from(number).to_be_bytes());
    id
}

pub(crate) fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// Renews the checksum at index `field` of a structure.
pub(crate) fn seal(structure: &mut [u8], field: usize) {
    put(structure, field, &[0; 4]);
    let sum: u32 = structure.iter().map(|&byte| u32::from(byte)).sum();
    put(structure, field, &(!sum).to_be_bytes());
}

/// A footer as most programs write it. The geometry is a constant: no reader of sizes may go by it.
pub(crate) fn footer(disk_type: u32, size: u64, id: [u8; 16]) -> Vec<u8> {
    let mut bytes = vec![0; FOOTER];
    let data_offset = if disk_type == FIXED { u64::MAX } else { u64_from(FOOTER) };
    put(&mut bytes, 0, b"conectix");
    put(&mut bytes, 8, &2_u32.to_be_bytes());
    put(&mut bytes, 12, &0x0001_0000_u32.to_be_bytes());
    put(&mut bytes, 16, &data_offset.to_be_bytes());
    put(&mut bytes, 24, &0x1234_5678_u32.to_be_bytes());
    put(&mut bytes, 28, b"test");
    put(&mut bytes, 32, &0x0001_0000_u32.to_be_bytes());
    put(&mut bytes, 36, b"Wi2k");
    put(&mut bytes, 40, &size.to_be_bytes());
    put(&mut bytes, 48, &size.to_be_bytes());
    put(&mut bytes, 56, &[0xFF, 0xFF, 16, 255]);
    put(&mut bytes, 60, &disk_type.to_be_bytes());
    put(&mut bytes, 68, &id);
    seal(&mut bytes, FOOTER_SUM);
    bytes
}

/// A fixed image of this content.
pub(crate) fn fixed(content: &[u8], id: [u8; 16]) -> Vec<u8> {
    [content, &footer(FIXED, u64_from(content.len()), id)].concat()
}

/// How a locator's space is counted.
#[derive(Clone, Copy)]
pub(crate) enum Space {
    /// As Windows does.
    Bytes,
    /// As the specification has it, and vhd-lib does.
    Sectors,
}

#[derive(Clone)]
pub(crate) struct Locator {
    pub(crate) slot: usize,
    pub(crate) code: [u8; 4],
    pub(crate) space: Space,
    pub(crate) data: Vec<u8>,
}

impl Locator {
    pub(crate) fn new(slot: usize, code: &[u8; 4], data: Vec<u8>) -> Self {
        Self {
            slot,
            code: *code,
            space: Space::Bytes,
            data,
        }
    }
}

pub(crate) fn utf16le(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// What a child says of its parent.
#[derive(Clone)]
pub(crate) struct Parent {
    pub(crate) id: [u8; 16],
    pub(crate) timestamp: u32,
    pub(crate) name: String,
    pub(crate) locators: Vec<Locator>,
}

impl Parent {
    /// As most programs write it: the name, and one relative path.
    pub(crate) fn named(id: [u8; 16], name: &str) -> Self {
        let locator = Locator::new(0, b"W2ru", utf16le(&format!(".\\{name}")));
        Self {
            locators: vec![locator],
            ..Self::name_only(id, name)
        }
    }

    pub(crate) fn name_only(id: [u8; 16], name: &str) -> Self {
        Self {
            id,
            timestamp: 0,
            name: name.to_owned(),
            locators: Vec::new(),
        }
    }
}

/// A block that the image holds.
#[derive(Clone)]
pub(crate) struct Stored {
    pub(crate) index: usize,
    /// For each sector of the block, whether its bit is set.
    pub(crate) present: Vec<bool>,
    pub(crate) data: Vec<u8>,
}

impl Stored {
    fn bitmap(&self) -> Vec<u8> {
        let mut bitmap = vec![0; self.present.len().div_ceil(8).next_multiple_of(SECTOR)];
        for (sector, _) in self.present.iter().enumerate().filter(|(_, present)| **present) {
            bitmap[sector / 8] |= 0x80 >> (sector % 8);
        }
        bitmap
    }
}

/// Where the block table is.
#[derive(Clone, Copy)]
pub(crate) enum TablePlace {
    BehindHeader,
    /// Behind the blocks, where libvhd moves it.
    AtEnd,
    /// So many bytes behind everything else.
    FarAway(usize),
}

/// An image of blocks, to be varied and then laid out.
#[derive(Clone)]
pub(crate) struct Sparse {
    pub(crate) size: u64,
    pub(crate) block_size: usize,
    pub(crate) id: [u8; 16],
    pub(crate) parent: Option<Parent>,
    /// In the order of the file.
    pub(crate) stored: Vec<Stored>,
    /// Entries of the table; `None` for one per block.
    pub(crate) entries: Option<usize>,
    /// What fills the table's last sector.
    pub(crate) padding: u8,
    pub(crate) table: TablePlace,
    /// Sectors of junk before each block.
    pub(crate) gap: usize,
}

/// An image in bytes, and where everything is in it.
#[derive(Clone)]
pub(crate) struct Laid {
    pub(crate) bytes: Vec<u8>,
    pub(crate) table: usize,
    pub(crate) entries: usize,
    /// The block and where its bitmap is, in the order of the file.
    pub(crate) blocks: Vec<(usize, usize)>,
    /// Where the data of each locator is, and its length.
    pub(crate) locators: Vec<(usize, usize)>,
    pub(crate) tail: usize,
}

impl Sparse {
    pub(crate) fn new(size: u64, block_size: usize) -> Self {
        Self {
            size,
            block_size,
            id: id(1),
            parent: None,
            stored: Vec::new(),
            entries: None,
            padding: 0xFF,
            table: TablePlace::BehindHeader,
            gap: 0,
        }
    }

    pub(crate) fn child(size: u64, block_size: usize, own: [u8; 16], parent: Parent) -> Self {
        Self {
            id: own,
            parent: Some(parent),
            ..Self::new(size, block_size)
        }
    }

    pub(crate) fn blocks(&self) -> usize {
        usize_from(self.size).div_ceil(self.block_size)
    }

    /// Stores `share` percent of the blocks with random sectors, in random order. Where a bit is clear, the data
    /// is garbage.
    pub(crate) fn fill_randomly(mut self, rng: &mut Rng, share: u8) -> Self {
        for index in 0..self.blocks() {
            if chance(rng, share) {
                let stored = self.random_block(rng, index);
                let place = rng.usize(..self.stored.len() + 1);
                self.stored.insert(place, stored);
            }
        }
        self
    }

    fn random_block(&self, rng: &mut Rng, index: usize) -> Stored {
        let sectors = self.block_size / SECTOR;
        let mut present = Vec::with_capacity(sectors);
        let mut bit = chance(rng, 50);
        while present.len() < sectors {
            let run = 1 + rng.usize(..sectors.min(24));
            present.extend(std::iter::repeat_n(bit, run.min(sectors - present.len())));
            bit = !bit;
        }
        // Every writer sets a bit with the block: a blank bitmap over data is one that was lost.
        present[0] |= !present.contains(&true);
        Stored {
            index,
            present,
            data: random_bytes(rng, self.block_size),
        }
    }

    /// Stores a whole block of random bytes.
    pub(crate) fn store_whole(mut self, rng: &mut Rng, index: usize) -> Self {
        self.stored.push(Stored {
            index,
            present: vec![true; self.block_size / SECTOR],
            data: random_bytes(rng, self.block_size),
        });
        self
    }

    /// Stores one sector of a block.
    pub(crate) fn store_sector(mut self, sector: usize, content: &[u8]) -> Self {
        let (index, within) = (sector * SECTOR / self.block_size, sector % (self.block_size / SECTOR));
        let mut stored = Stored {
            index,
            present: vec![false; self.block_size / SECTOR],
            data: vec![0; self.block_size],
        };
        stored.present[within] = true;
        put(&mut stored.data, within * SECTOR, content);
        self.stored.push(stored);
        self
    }

    /// What the disk reads over a parent of this content: the rules of the format, sector by sector.
    pub(crate) fn flat(&self, parent: &[u8]) -> Vec<u8> {
        let size = usize_from(self.size);
        let mut flat = parent.to_vec();
        flat.resize(size, 0);
        for stored in &self.stored {
            let sectors = stored.data.chunks(SECTOR).zip(&stored.present).enumerate();
            for (sector, (data, _)) in sectors.filter(|(_, (_, present))| **present) {
                let at = stored.index * self.block_size + sector * SECTOR;
                if at < size {
                    put(&mut flat, at, data);
                }
            }
        }
        flat
    }

    /// The footer at both ends.
    pub(crate) fn footer(&self) -> Vec<u8> {
        let disk_type = if self.parent.is_some() { DIFFERENCING } else { DYNAMIC };
        footer(disk_type, self.size, self.id)
    }

    pub(crate) fn lay(&self) -> Laid {
        let mut bytes = self.footer();
        bytes.extend_from_slice(&[0; HEADER]);
        let entries = self.entries.unwrap_or(self.blocks());
        let table_len = (entries * 4).next_multiple_of(SECTOR);
        let mut table = bytes.len();
        if matches!(self.table, TablePlace::BehindHeader) {
            bytes.resize(table + table_len, self.padding);
        }
        let locators = self.lay_locators(&mut bytes);
        let blocks = self.lay_blocks(&mut bytes);
        if let TablePlace::FarAway(distance) = self.table {
            bytes.resize(bytes.len() + distance, 0);
        }
        if !matches!(self.table, TablePlace::BehindHeader) {
            table = bytes.len();
            bytes.resize(table + table_len, self.padding);
        }
        bytes[table..table + entries * 4].fill(0xFF);
        for (index, offset) in &blocks {
            set_entry(&mut bytes, table, *index, offset / SECTOR);
        }
        let header = self.header(table, entries, &locators);
        put(&mut bytes, FOOTER, &header);
        let tail = bytes.len();
        bytes.extend_from_slice(&self.footer());
        Laid {
            bytes,
            table,
            entries,
            blocks,
            locators,
            tail,
        }
    }

    fn lay_locators(&self, bytes: &mut Vec<u8>) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        for locator in self.parent.iter().flat_map(|parent| &parent.locators) {
            places.push((bytes.len(), locator.data.len()));
            bytes.extend_from_slice(&locator.data);
            bytes.resize(bytes.len().next_multiple_of(SECTOR), 0);
        }
        places
    }

    fn lay_blocks(&self, bytes: &mut Vec<u8>) -> Vec<(usize, usize)> {
        let mut places = Vec::new();
        for stored in &self.stored {
            bytes.resize(bytes.len() + self.gap * SECTOR, 0x6A);
            places.push((stored.index, bytes.len()));
            bytes.extend_from_slice(&stored.bitmap());
            bytes.extend_from_slice(&stored.data);
        }
        places
    }

    fn header(&self, table: usize, entries: usize, places: &[(usize, usize)]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        put(&mut bytes, 0, b"cxsparse");
        put(&mut bytes, 8, &[0xFF; 8]);
        put(&mut bytes, 16, &u64_from(table).to_be_bytes());
        put(&mut bytes, 24, &0x0001_0000_u32.to_be_bytes());
        put(&mut bytes, 28, &number(entries));
        put(&mut bytes, 32, &number(self.block_size));
        if let Some(parent) = &self.parent {
            put(&mut bytes, 40, &parent.id);
            put(&mut bytes, 56, &parent.timestamp.to_be_bytes());
            let name: Vec<u8> = parent.name.encode_utf16().flat_map(u16::to_be_bytes).collect();
            put(&mut bytes, 64, &name);
            for (locator, (offset, length)) in parent.locators.iter().zip(places) {
                let sectors = length.div_ceil(SECTOR);
                let space = match locator.space {
                    Space::Bytes => sectors * SECTOR,
                    Space::Sectors => sectors,
                };
                let at = 576 + locator.slot * 24;
                put(&mut bytes, at, &locator.code);
                put(&mut bytes, at + 4, &number(space));
                put(&mut bytes, at + 8, &number(*length));
                put(&mut bytes, at + 16, &u64_from(*offset).to_be_bytes());
            }
        }
        seal(&mut bytes, HEADER_SUM);
        bytes
    }
}

impl Laid {
    /// Changes the header and renews its checksum.
    pub(crate) fn change_header(&mut self, change: impl FnOnce(&mut [u8])) {
        let header = &mut self.bytes[FOOTER..FOOTER + HEADER];
        change(header);
        seal(header, HEADER_SUM);
    }

    /// Changes both footers in the same way and renews their checksums.
    pub(crate) fn change_footers(&mut self, change: impl Fn(&mut [u8])) {
        for at in [0, self.tail] {
            let footer = &mut self.bytes[at..at + FOOTER];
            change(footer);
            seal(footer, FOOTER_SUM);
        }
    }

    /// Says in the table that a block is at another sector.
    pub(crate) fn point(&mut self, block: usize, sector: usize) {
        set_entry(&mut self.bytes, self.table, block, sector);
    }

    /// Where the bitmap of a stored block is.
    pub(crate) fn bitmap_of(&self, block: usize) -> usize {
        let found = self.blocks.iter().find(|(index, _)| *index == block);
        found.expect("the block is stored").1
    }
}

fn set_entry(bytes: &mut [u8], table: usize, block: usize, sector: usize) {
    put(bytes, table + block * 4, &number(sector));
}

/// A field of four bytes.
pub(crate) fn number(value: usize) -> [u8; 4] {
    u32::try_from(value).expect("a field has 32 bits").to_be_bytes()
}

/// Whether a structure has the checksum of its bytes.
pub(crate) fn is_sealed(structure: &[u8], field: usize) -> bool {
    let mut sealed = structure.to_vec();
    seal(&mut sealed, field);
    sealed == structure
}

/// Every file that was written to ends like this.
pub(crate) fn ends_in_footer(bytes: &[u8]) -> bool {
    let tail = &bytes[bytes.len() - FOOTER..];
    tail.starts_with(b"conectix") && is_sealed(tail, FOOTER_SUM)
}
