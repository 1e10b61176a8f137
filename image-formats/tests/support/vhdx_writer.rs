//! Writes VHDX files in memory.
#![allow(dead_code, unreachable_pub, reason = "each test uses a part")]

use std::collections::BTreeMap;

pub const MIB: usize = 1 << 20;
pub const LOG: usize = MIB;
pub const METADATA: usize = 2 * MIB;
pub const TABLE: usize = 3 * MIB;
pub const HEADERS: [usize; 2] = [64 << 10, 128 << 10];
pub const REGIONS: [usize; 2] = [192 << 10, 256 << 10];
const SECTOR: usize = 4096;

/// What a block of an image holds.
#[derive(Clone)]
pub enum Block {
    Zero,
    Undefined,
    Unmapped,
    Full(Vec<u8>),
    /// For each logical sector whether it is present, and the block.
    Partial(Vec<bool>, Vec<u8>),
}

/// The parent that a differencing image names.
#[derive(Clone)]
pub struct Parent {
    pub linkage: [u8; 16],
    pub keys: Vec<(String, String)>,
}

/// An image to be written.
#[derive(Clone)]
pub struct Image {
    pub block_size: usize,
    pub logical_sector: usize,
    pub disk_size: usize,
    pub fixed: bool,
    pub data_write_guid: [u8; 16],
    pub parent: Option<Parent>,
    pub blocks: BTreeMap<usize, Block>,
}

/// A change in a log entry.
#[derive(Clone)]
pub enum Change {
    Sector(u64, Vec<u8>),
    Zero(u64, u64),
}

impl Image {
    pub fn new(block_size: usize, logical_sector: usize, disk_size: usize) -> Self {
        Self {
            block_size,
            logical_sector,
            disk_size,
            fixed: false,
            data_write_guid: [7; 16],
            parent: None,
            blocks: BTreeMap::new(),
        }
    }

    fn chunk(&self) -> usize {
        (1 << 23) * self.logical_sector / self.block_size
    }

    /// Where in the file the entry of a block is.
    pub fn entry(&self, block: usize) -> usize {
        TABLE + 8 * (block + block / self.chunk())
    }

    /// Where in the file the entry of the sector bitmap of a chunk is.
    pub fn bitmap_entry(&self, chunk: usize) -> usize {
        TABLE + 8 * (chunk * (self.chunk() + 1) + self.chunk())
    }

    fn table_len(&self) -> usize {
        let blocks = self.disk_size.div_ceil(self.block_size);
        let entries = match self.parent {
            Some(_) => blocks.div_ceil(self.chunk()) * (self.chunk() + 1),
            None => blocks + (blocks - 1) / self.chunk(),
        };
        (entries * 8).next_multiple_of(MIB)
    }

    /// The file.
    pub fn build(&self) -> Vec<u8> {
        let mut bytes = vec![0; TABLE + self.table_len()];
        bytes[..8].copy_from_slice(b"vhdxfile");
        for (index, unit) in "vhd test".encode_utf16().enumerate() {
            bytes[8 + index * 2..][..2].copy_from_slice(&unit.to_le_bytes());
        }
        for (at, sequence) in HEADERS.into_iter().zip([5, 4]) {
            self.header(&mut bytes[at..at + SECTOR], sequence);
        }
        for at in REGIONS {
            self.regions(&mut bytes[at..at + (64 << 10)]);
        }
        self.metadata(&mut bytes[METADATA..TABLE]);
        let mut bitmaps: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
        // From the last to the first: blocks lie in any order.
        for (&block, content) in self.blocks.iter().rev() {
            let mut put = |state: u64, data: &[u8]| {
                let offset = bytes.len() as u64;
                bytes.extend_from_slice(data);
                bytes.resize(bytes.len().next_multiple_of(MIB), 0);
                bytes[self.entry(block)..][..8].copy_from_slice(&(offset | state).to_le_bytes());
            };
            match content {
                Block::Full(data) => put(6, data),
                Block::Partial(present, data) => {
                    put(7, data);
                    let bitmap = bitmaps.entry(block / self.chunk()).or_insert_with(|| vec![0; MIB]);
                    let first = block % self.chunk() * (self.block_size / self.logical_sector);
                    for (index, _) in present.iter().enumerate().filter(|(_, present)| **present) {
                        bitmap[(first + index) / 8] |= 1 << ((first + index) % 8);
                    }
                }
                Block::Undefined => set_state(&mut bytes, self.entry(block), 1),
                Block::Zero => set_state(&mut bytes, self.entry(block), 2),
                Block::Unmapped => set_state(&mut bytes, self.entry(block), 3),
            }
        }
        for (chunk, bitmap) in bitmaps {
            let offset = bytes.len() as u64;
            bytes.extend_from_slice(&bitmap);
            bytes[self.bitmap_entry(chunk)..][..8].copy_from_slice(&(offset | 6).to_le_bytes());
        }
        fix_checksums(&mut bytes);
        bytes
    }

    fn header(&self, bytes: &mut [u8], sequence: u64) {
        bytes[..4].copy_from_slice(b"head");
        bytes[8..16].copy_from_slice(&sequence.to_le_bytes());
        bytes[16..32].fill(0x33);
        bytes[32..48].copy_from_slice(&self.data_write_guid);
        bytes[66] = 1;
        put32(bytes, 68, MIB);
        put64(bytes, 72, LOG);
    }

    fn regions(&self, bytes: &mut [u8]) {
        bytes[..4].copy_from_slice(b"regi");
        bytes[8] = 2;
        let table = guid("2DC27766-F623-4200-9D64-115E9BFD4A08");
        let metadata = guid("8B7CA206-4790-4B9A-B8FE-575F050F886E");
        for (index, (id, offset, len)) in [(table, TABLE, self.table_len()), (metadata, METADATA, MIB)]
            .into_iter()
            .enumerate()
        {
            let entry = &mut bytes[16 + index * 32..][..32];
            entry[..16].copy_from_slice(&id);
            put64(entry, 16, offset);
            put32(entry, 24, len);
            entry[28] = 1;
        }
    }

    fn metadata(&self, bytes: &mut [u8]) {
        let flags = u32::from(self.fixed) | if self.parent.is_some() { 2 } else { 0 };
        let parameters = [(self.block_size as u32).to_le_bytes(), flags.to_le_bytes()].concat();
        let mut items = vec![
            ("CAA16737-FA36-4D43-B3B6-33F0AA44E76B", parameters),
            (
                "2FA54224-CD1B-4876-B211-5DBED83BF4B8",
                (self.disk_size as u64).to_le_bytes().to_vec(),
            ),
            ("BECA12AB-B2E6-4523-93EF-C309E000C746", vec![9; 16]),
            (
                "8141BF1D-A96F-4709-BA47-F233A8FAAB5F",
                (self.logical_sector as u32).to_le_bytes().to_vec(),
            ),
            ("CDA348C7-445D-4471-9CC9-E9885251C556", 4096_u32.to_le_bytes().to_vec()),
        ];
        if let Some(parent) = &self.parent {
            items.push(("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C", locator(parent)));
        }
        bytes[..8].copy_from_slice(b"metadata");
        bytes[10] = items.len() as u8;
        let mut at = 64 << 10;
        for (index, (id, value)) in items.into_iter().enumerate() {
            let entry = &mut bytes[32 + index * 32..][..32];
            entry[..16].copy_from_slice(&guid(id));
            put32(entry, 16, at);
            put32(entry, 20, value.len());
            entry[24] = 6;
            bytes[at..at + value.len()].copy_from_slice(&value);
            at += value.len();
        }
    }
}

fn locator(parent: &Parent) -> Vec<u8> {
    let mut pairs = vec![("parent_linkage".to_owned(), guid_text(&parent.linkage))];
    pairs.extend(parent.keys.iter().cloned());
    let mut bytes = guid("B04AEFB7-D19E-4A81-B789-25B8E9445913").to_vec();
    bytes.extend([0, 0, pairs.len() as u8, 0]);
    bytes.resize(20 + pairs.len() * 12, 0);
    for (index, (key, value)) in pairs.into_iter().enumerate() {
        for (text, slot, len_slot) in [(key, 0, 8), (value, 4, 10)] {
            let start = bytes.len();
            text.encode_utf16().for_each(|unit| bytes.extend(unit.to_le_bytes()));
            let len = bytes.len() - start;
            put32(&mut bytes, 20 + index * 12 + slot, start);
            bytes[20 + index * 12 + len_slot..][..2].copy_from_slice(&(len as u16).to_le_bytes());
        }
    }
    bytes
}

/// Puts entries into the log, from a place in it on and around its end, and says in the headers that it is in use.
pub fn write_log(bytes: &mut [u8], start: usize, first_sequence: u64, entries: &[Vec<Change>]) {
    let log_guid = [0x55; 16];
    for at in HEADERS {
        bytes[at + 48..at + 64].copy_from_slice(&log_guid);
    }
    let file_len = bytes.len();
    let mut at = start;
    for (changes, sequence) in entries.iter().zip(first_sequence..) {
        let entry = log_entry(changes, sequence, start, file_len, &log_guid);
        for (index, byte) in entry.iter().enumerate() {
            bytes[LOG + (at + index) % MIB] = *byte;
        }
        at = (at + entry.len()) % MIB;
    }
    fix_checksums(bytes);
}

/// One entry, whole.
pub fn log_entry(changes: &[Change], sequence: u64, tail: usize, file_len: usize, log_guid: &[u8; 16]) -> Vec<u8> {
    let mut entry = vec![0; (64 + changes.len() * 32).next_multiple_of(SECTOR)];
    entry[..4].copy_from_slice(b"loge");
    put32(&mut entry, 12, tail);
    entry[16..24].copy_from_slice(&sequence.to_le_bytes());
    put32(&mut entry, 24, changes.len());
    entry[32..48].copy_from_slice(log_guid);
    put64(&mut entry, 48, file_len);
    put64(&mut entry, 56, file_len);
    for (index, change) in changes.iter().enumerate() {
        let mut descriptor = [0; 32];
        descriptor[24..].copy_from_slice(&sequence.to_le_bytes());
        match change {
            Change::Zero(offset, len) => {
                descriptor[..4].copy_from_slice(b"zero");
                descriptor[8..16].copy_from_slice(&len.to_le_bytes());
                descriptor[16..24].copy_from_slice(&offset.to_le_bytes());
            }
            Change::Sector(offset, data) => {
                descriptor[..4].copy_from_slice(b"desc");
                descriptor[4..8].copy_from_slice(&data[SECTOR - 4..]);
                descriptor[8..16].copy_from_slice(&data[..8]);
                descriptor[16..24].copy_from_slice(&offset.to_le_bytes());
                let mut sector = data.clone();
                sector[..4].copy_from_slice(b"data");
                sector[4..8].copy_from_slice(&((sequence >> 32) as u32).to_le_bytes());
                sector[SECTOR - 4..].copy_from_slice(&(sequence as u32).to_le_bytes());
                entry.extend(sector);
            }
        }
        entry[64 + index * 32..][..32].copy_from_slice(&descriptor);
    }
    let len = entry.len();
    put32(&mut entry, 8, len);
    let crc = crc32c(&entry);
    entry[4..8].copy_from_slice(&crc.to_le_bytes());
    entry
}

/// Makes the checksums of headers and region tables right again.
pub fn fix_checksums(bytes: &mut [u8]) {
    for (at, len) in HEADERS
        .map(|at| (at, SECTOR))
        .into_iter()
        .chain(REGIONS.map(|at| (at, 64 << 10)))
    {
        if let Some(part) = bytes.get_mut(at..at + len) {
            part[4..8].fill(0);
            let crc = crc32c(part);
            part[4..8].copy_from_slice(&crc.to_le_bytes());
        }
    }
}

pub fn checksum(bytes: &[u8]) -> u32 {
    crc32c(bytes)
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |crc: u32| (0..8).fold(crc, |crc, _| (crc >> 1) ^ (0x82F6_3B78 & (crc & 1).wrapping_neg()));
    let table: Vec<u32> = (0..256).map(step).collect();
    !bytes
        .iter()
        .fold(!0, |crc, byte| (crc >> 8) ^ table[(crc as u8 ^ byte) as usize])
}

pub fn put32(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 4].copy_from_slice(&(value as u32).to_le_bytes());
}

pub fn put64(bytes: &mut [u8], at: usize, value: usize) {
    bytes[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
}

fn set_state(bytes: &mut [u8], at: usize, state: u8) {
    bytes[at] = state;
}

/// The bytes of a GUID as files have them: the first three groups are little-endian.
pub fn guid(text: &str) -> [u8; 16] {
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let mut bytes = [0; 16];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&digits[index * 2..][..2], 16).expect("hexadecimal digits");
    }
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// A GUID as a locator has it.
pub fn guid_text(bytes: &[u8; 16]) -> String {
    let b = bytes;
    let hex = |part: &[u8]| part.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (one, two, three) = ([b[3], b[2], b[1], b[0]], [b[5], b[4]], [b[7], b[6]]);
    format!(
        "{{{}-{}-{}-{}-{}}}",
        hex(&one),
        hex(&two),
        hex(&three),
        hex(&b[8..10]),
        hex(&b[10..])
    )
}
