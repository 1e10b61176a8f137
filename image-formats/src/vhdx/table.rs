//! The block allocation table: where the blocks of the disk are.
//!
//! Behind the entries of a chunk of blocks stands that of their sector bitmap.

use uuid::Uuid;
use vhd_block::units::{u64_from, usize_from};

use super::MIB;
use super::metadata::{DiskType, Metadata};
use super::region::{Region, Regions};
use crate::error::ReadContext as _;
use crate::limits::MAX_TABLE;
use crate::{BrokenRule, ImageError, ImageFile, Rule};

/// Sectors whose bits are in one sector bitmap.
pub(super) const BITMAP_SECTORS: u64 = 1 << 23;
/// Bytes read at once.
const PIECE: usize = 1 << 20;
/// Broken entries that are listed.
pub(super) const MAX_LISTED: usize = 100;

const NOT_PRESENT: u64 = 0;
const UNDEFINED: u64 = 1;
const ZERO: u64 = 2;
const UNMAPPED: u64 = 3;
const FULLY_PRESENT: u64 = 6;
const PARTIALLY_PRESENT: u64 = 7;
const STATE: u64 = 7;
/// Bits between state and offset, which are zero.
const RESERVED: u64 = 0xF_FFF8;

/// What a table says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    /// Nothing: the parent has it, or it is zero.
    Absent,
    /// It is zero.
    Zero,
    /// It is in the file.
    Present(u64),
    /// The sectors are in the file whose bits are set.
    Partial(u64),
}

/// How the space of a file is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Blocks on the disk.
    pub blocks: u64,
    /// Blocks that have space in the file.
    pub allocated_blocks: u64,
    /// Bytes of the file that nothing refers to.
    pub unused_bytes: u64,
}

/// The block table in memory.
pub(super) struct Table {
    entries: Vec<u64>,
    block_size: u64,
    /// Blocks whose bits are in one sector bitmap.
    chunk: u64,
    pub(super) usage: Usage,
}

impl Table {
    /// Reads the table and checks all of it; what is broken goes to `broken`, up to [`MAX_LISTED`].
    pub(super) fn read(
        file: &dyn ImageFile,
        regions: &Regions,
        metadata: &Metadata,
        file_len: u64,
        broken: &mut Vec<BrokenRule>,
    ) -> Result<Self, ImageError> {
        let block_size = u64::from(metadata.block_size);
        let chunk = BITMAP_SECTORS * u64::from(metadata.logical_sector) / block_size;
        let blocks = metadata.disk_size.div_ceil(block_size);
        let count = match metadata.disk_type {
            DiskType::Differencing => blocks.div_ceil(chunk) * (chunk + 1),
            DiskType::Fixed | DiskType::Dynamic => blocks + (blocks - 1) / chunk,
        };
        let region = regions.table;
        if count * 8 > region.len {
            let found = format!("a region of {:#x} bytes", region.len);
            let expected = format!("{:#x} for {blocks} blocks", count * 8);
            return Err(BrokenRule::new(Rule::TableTooShort, region.offset, found, expected).into());
        }
        if count * 8 > MAX_TABLE {
            return Err(ImageError::Unsupported {
                feature: format!("a block table of {:#x} bytes", count * 8),
                offset: region.offset,
            });
        }
        let mut table = Self {
            entries: read_entries(file, region, usize_from(count))?,
            block_size,
            chunk,
            usage: Usage {
                blocks,
                ..Usage::default()
            },
        };
        let used = Check {
            table: &table,
            region,
            is_child: metadata.disk_type == DiskType::Differencing,
            disk_size: metadata.disk_size,
            file_len,
            broken,
        }
        .run(&regions.reserved);
        if let Some((allocated_blocks, unused_bytes)) = used {
            table.usage.allocated_blocks = allocated_blocks;
            table.usage.unused_bytes = unused_bytes;
        }
        Ok(table)
    }

    /// Bytes of memory that it takes.
    pub(super) fn memory(&self) -> u64 {
        u64_from(self.entries.len() * 8)
    }

    fn index(&self, block: u64) -> usize {
        usize_from(block + block / self.chunk)
    }

    /// What the table says of a block of the disk. The table was checked.
    pub(super) fn block(&self, block: u64) -> Block {
        let entry = self.entries[self.index(block)];
        let offset = entry & !(MIB - 1);
        match entry & STATE {
            FULLY_PRESENT => Block::Present(offset),
            PARTIALLY_PRESENT => Block::Partial(offset),
            NOT_PRESENT => Block::Absent,
            // What was unmapped or never defined has no content: neither the parent's, nor what stands in the file.
            _ => Block::Zero,
        }
    }

    /// Where in the file the bits of a partly present block begin. The table was checked.
    pub(super) fn bitmap_offset(&self, block: u64, logical_sector: u32) -> u64 {
        let chunk = block / self.chunk;
        let entry = self.entries[usize_from(chunk * (self.chunk + 1) + self.chunk)];
        let bytes_per_block = self.block_size / u64::from(logical_sector) / 8;
        (entry & !(MIB - 1)) + block % self.chunk * bytes_per_block
    }
}

fn read_entries(file: &dyn ImageFile, region: Region, count: usize) -> Result<Vec<u64>, ImageError> {
    let mut entries = Vec::with_capacity(count);
    let mut buffer = vec![0; PIECE.min(count * 8)];
    while entries.len() < count {
        let offset = region.offset + u64_from(entries.len() * 8);
        let len = buffer.len().min((count - entries.len()) * 8);
        let piece = &mut buffer[..len];
        file.read_exact_at(piece, offset).at(offset, len)?;
        let (words, _) = piece.as_chunks::<8>();
        entries.extend(words.iter().map(|word| u64::from_le_bytes(*word)));
    }
    Ok(entries)
}

/// The rules that a table must obey.
struct Check<'a> {
    table: &'a Table,
    region: Region,
    is_child: bool,
    disk_size: u64,
    file_len: u64,
    broken: &'a mut Vec<BrokenRule>,
}

impl Check<'_> {
    /// Checks every entry and returns the number of allocated blocks, and the unused bytes; `None` if something is broken.
    fn run(mut self, reserved: &[Region]) -> Option<(u64, u64)> {
        let mut blocks: Vec<Region> = Vec::new();
        let mut allocated = 0;
        for block in 0..self.table.usage.blocks {
            if self.is_full() {
                return None;
            }
            if let Some(region) = self.payload(block) {
                allocated += 1;
                blocks.push(region);
            }
        }
        if self.is_child {
            let chunks = self.table.usage.blocks.div_ceil(self.table.chunk);
            for chunk in 0..chunks {
                blocks.extend(self.bitmap(chunk));
            }
        }
        blocks.sort_unstable_by_key(|region| region.offset);
        self.overlaps(&blocks);
        self.in_metadata(&blocks, reserved);
        let used: u64 = blocks.iter().chain(reserved).map(|region| region.len).sum();
        self.broken
            .is_empty()
            .then(|| (allocated, (self.file_len - self.file_len % MIB).saturating_sub(used)))
    }

    fn is_full(&self) -> bool {
        self.broken.len() >= MAX_LISTED
    }

    fn break_rule(&mut self, rule: Rule, index: usize, found: String, expected: &str) {
        if !self.is_full() {
            let offset = self.region.offset + u64_from(index * 8);
            self.broken.push(BrokenRule::new(rule, offset, found, expected));
        }
    }

    /// Checks the entry of a block, and returns the space that it has.
    fn payload(&mut self, block: u64) -> Option<Region> {
        let index = self.table.index(block);
        let entry = self.table.entries[index];
        let offset = entry & !(MIB - 1);
        if entry & RESERVED != 0 {
            self.break_rule(
                Rule::EntryState,
                index,
                format!("{entry:#x} for block {block}"),
                "zero in bits 3 to 19",
            );
            return None;
        }
        match entry & STATE {
            NOT_PRESENT | UNDEFINED | ZERO | UNMAPPED => return None,
            FULLY_PRESENT => {}
            PARTIALLY_PRESENT if self.is_child => {
                let chunk = block / self.table.chunk;
                let bitmap = self.table.entries[usize_from(chunk * (self.table.chunk + 1) + self.table.chunk)];
                if bitmap & STATE != FULLY_PRESENT {
                    let found = format!("block {block} partly present without a sector bitmap");
                    self.break_rule(Rule::SectorBitmap, index, found, "a sector bitmap");
                    return None;
                }
            }
            state => {
                let expected = if self.is_child { "0 to 3, 6 or 7" } else { "0 to 3 or 6" };
                self.break_rule(
                    Rule::EntryState,
                    index,
                    format!("state {state} of block {block}"),
                    expected,
                );
                return None;
            }
        }
        // The last block of a disk may end with the disk.
        let on_disk = self
            .table
            .block_size
            .min(self.disk_size - block * self.table.block_size);
        self.space(index, offset, on_disk).then_some(Region {
            offset,
            len: self.table.block_size,
        })
    }

    /// Checks the entry of the sector bitmap of a chunk, and returns the space that it has.
    fn bitmap(&mut self, chunk: u64) -> Option<Region> {
        let index = usize_from(chunk * (self.table.chunk + 1) + self.table.chunk);
        let entry = self.table.entries[index];
        match entry & STATE {
            _ if entry & RESERVED != 0 => {
                self.break_rule(Rule::EntryState, index, format!("{entry:#x}"), "zero in bits 3 to 19");
                None
            }
            NOT_PRESENT => None,
            FULLY_PRESENT => {
                let offset = entry & !(MIB - 1);
                self.space(index, offset, MIB).then_some(Region { offset, len: MIB })
            }
            state => {
                self.break_rule(
                    Rule::EntryState,
                    index,
                    format!("state {state} of a sector bitmap"),
                    "0 or 6",
                );
                None
            }
        }
    }

    /// Whether so many bytes are in the file at an offset.
    fn space(&mut self, index: usize, offset: u64, len: u64) -> bool {
        if offset.checked_add(len).is_some_and(|end| end <= self.file_len) {
            return true;
        }
        let found = format!("{len:#x} bytes at {offset:#x} of a file of {:#x}", self.file_len);
        self.break_rule(Rule::BlockPastEnd, index, found, "a block inside the file");
        false
    }

    fn overlaps(&mut self, blocks: &[Region]) {
        for pair in blocks.windows(2) {
            if pair[0].offset + pair[0].len > pair[1].offset && !self.is_full() {
                let found = format!("a block at {:#x} that reaches into it", pair[0].offset);
                self.broken.push(BrokenRule::new(
                    Rule::BlockOverlap,
                    pair[1].offset,
                    found,
                    "space of its own",
                ));
            }
        }
    }

    fn in_metadata(&mut self, blocks: &[Region], reserved: &[Region]) {
        for region in reserved {
            let next = blocks.partition_point(|block| block.offset + block.len <= region.offset);
            if let Some(block) = blocks.get(next)
                && block.offset < region.offset + region.len
                && !self.is_full()
            {
                let found = format!("a block at {:#x}", block.offset);
                let expected = "the header section, the log or a region alone";
                self.broken
                    .push(BrokenRule::new(Rule::BlockInMetadata, region.offset, found, expected));
            }
        }
    }
}

/// Regions that need not be known, as text.
pub(super) fn unknown_regions(unknown: &[Uuid]) -> String {
    let ids: Vec<String> = unknown.iter().map(ToString::to_string).collect();
    ids.join(", ")
}
