//! What each block holds: whether the disk reads the same without it, and if not, why.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::{CompactError, CompactOptions, FreeSpace};
use crate::device::{ByteRange, DeviceError, LayeredDevice};
use crate::image::{Arrangement, IoContext, PlacedBlock, ReadSpan};
use crate::ops::Progress;
use crate::ops::workers::{in_parallel, useful_threads};
use crate::storage::reads_zero;
use crate::units::{BlockIndex, FileOffset, VirtualOffset, u64_from};

/// Blocks that a thread takes on at once.
const UNIT: usize = 8;

/// Bytes: smaller free ranges inside a block that stays are not worth a hole in the file each.
const MIN_TRIM: u64 = 64 << 10;

/// Why a block can go, or why it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlockCause {
    /// No sector of it is present.
    Absent,
    /// It reads zero, and so does the disk without it.
    Zero,
    /// What is not zero in it is free in its file system.
    Free,
    /// It is zero or free, but the parents are not zero there: without it the disk would read otherwise.
    ParentNotZero,
    /// A part of it is free in its file system, another is in use.
    PartlyUsed,
    /// It is in use, as far as is known.
    Used,
}

impl BlockCause {
    /// Every cause.
    pub const ALL: &[Self] = &[
        Self::Absent,
        Self::Zero,
        Self::Free,
        Self::ParentNotZero,
        Self::PartlyUsed,
        Self::Used,
    ];

    /// The block can go.
    #[must_use]
    pub fn can_go(self) -> bool {
        matches!(self, Self::Absent | Self::Zero | Self::Free)
    }

    /// The stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Zero => "zero",
            Self::Free => "free",
            Self::ParentNotZero => "parent-not-zero",
            Self::PartlyUsed => "partly-used",
            Self::Used => "used",
        }
    }
}

/// What was found in a block that has space in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockFinding {
    /// The block.
    pub block: BlockIndex,
    /// Why it can go or stays.
    pub cause: BlockCause,
    /// Bytes of it, if it stays, that are free and can become a hole in the file.
    pub trimmable_bytes: u64,
}

/// Looks at every block, in the order of the file.
pub(super) fn survey(
    device: &LayeredDevice,
    arrangement: &Arrangement,
    options: &CompactOptions<'_>,
    progress: &dyn Progress,
) -> Result<Vec<BlockFinding>, CompactError> {
    let blocks = &arrangement.blocks;
    progress.begin(u64_from(blocks.len()) * arrangement.layout.block_size());
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, BlockFinding)>, DeviceError> {
        let mut surveyor = Surveyor::new(device, options.free);
        let mut found = Vec::new();
        loop {
            let first = next.fetch_add(UNIT, Ordering::Relaxed);
            if first >= blocks.len() || options.is_cancelled() {
                return Ok(found);
            }
            for (index, placed) in blocks.iter().enumerate().skip(first).take(UNIT) {
                let looked_at = surveyor.look_at(placed);
                if looked_at.is_err() {
                    next.store(blocks.len(), Ordering::Relaxed);
                }
                found.push((index, looked_at?));
                progress.advance(arrangement.layout.block_size());
            }
        }
    };
    let found = in_parallel(useful_threads(options.threads), work)?;
    let mut findings: Vec<_> = found.into_iter().flatten().collect();
    if findings.len() < blocks.len() {
        return Err(CompactError::Cancelled);
    }
    findings.sort_unstable_by_key(|(index, _)| *index);
    Ok(findings.into_iter().map(|(_, finding)| finding).collect())
}

/// A part of a block that the image holds itself.
#[derive(Clone, Copy, Debug)]
struct Part {
    range: ByteRange,
    file_offset: u64,
    free: bool,
}

struct Surveyor<'a> {
    device: &'a LayeredDevice,
    free: &'a dyn FreeSpace,
    buffer: Vec<u8>,
}

impl<'a> Surveyor<'a> {
    fn new(device: &'a LayeredDevice, free: &'a dyn FreeSpace) -> Self {
        Self {
            device,
            free,
            buffer: Vec::new(),
        }
    }

    fn look_at(&mut self, placed: &PlacedBlock) -> Result<BlockFinding, DeviceError> {
        let parts = parts_of(self.device, self.free, placed.block)?;
        let cause = self.cause_of(&parts)?;
        let trimmable = if cause.can_go() { 0 } else { self.trimmable(&parts)? };
        Ok(BlockFinding {
            block: placed.block,
            cause,
            trimmable_bytes: trimmable,
        })
    }

    fn cause_of(&mut self, parts: &[Part]) -> Result<BlockCause, DeviceError> {
        if parts.is_empty() {
            return Ok(BlockCause::Absent);
        }
        if !self.all_zero(parts.iter().filter(|part| !part.free))? {
            let partly = parts.iter().any(|part| part.free);
            return Ok(if partly {
                BlockCause::PartlyUsed
            } else {
                BlockCause::Used
            });
        }
        // INV-12: what is present hides the parents. It may go only where they read zero too.
        for part in parts {
            if !self.device.parents_read_zero(part.range, &mut self.buffer)? {
                return Ok(BlockCause::ParentNotZero);
            }
        }
        let zero = self.all_zero(parts.iter().filter(|part| part.free))?;
        Ok(if zero { BlockCause::Zero } else { BlockCause::Free })
    }

    fn all_zero<'p>(&mut self, parts: impl Iterator<Item = &'p Part>) -> Result<bool, DeviceError> {
        let file = &**self.device.leaf().file();
        for part in parts {
            let zero = reads_zero(file, part.file_offset, part.range.len, &mut self.buffer);
            if !zero.io_context("look for zeroes", part.file_offset)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn trimmable(&mut self, parts: &[Part]) -> Result<u64, DeviceError> {
        let file = &**self.device.leaf().file();
        let mut bytes = 0;
        for part in parts.iter().filter(|part| worth_trimming(part)) {
            let zero = reads_zero(file, part.file_offset, part.range.len, &mut self.buffer);
            if !zero.io_context("look for zeroes", part.file_offset)? {
                bytes += part.range.len;
            }
        }
        Ok(bytes)
    }
}

fn worth_trimming(part: &Part) -> bool {
    part.free && part.range.len >= MIN_TRIM
}

/// The free ranges inside a block that stays, which are worth a hole: where in the file, and how long.
pub(super) fn trimmable_ranges(
    device: &LayeredDevice,
    free: &dyn FreeSpace,
    block: BlockIndex,
) -> Result<Vec<(u64, u64)>, DeviceError> {
    let parts = parts_of(device, free, block)?;
    let worth = parts.iter().filter(|part| worth_trimming(part));
    Ok(worth.map(|part| (part.file_offset, part.range.len)).collect())
}

/// The parts of a block that the image holds itself, cut where free space begins and ends.
fn parts_of(device: &LayeredDevice, free: &dyn FreeSpace, block: BlockIndex) -> Result<Vec<Part>, DeviceError> {
    let leaf = device.leaf();
    let Some(header) = leaf.header() else {
        return Ok(Vec::new());
    };
    let VirtualOffset(mut at) = header.layout.block_start(block);
    let end = leaf.disk_size().min(at + header.layout.block_size());
    let mut parts = Vec::new();
    while at < end {
        let span = leaf.resolve_read(VirtualOffset(at), end - at)?;
        if let ReadSpan::Data {
            file_offset: FileOffset(file_offset),
            len,
        } = span
        {
            push_parts(&mut parts, free, ByteRange::new(at, len), file_offset);
        }
        at += span.len();
    }
    Ok(parts)
}

fn push_parts(parts: &mut Vec<Part>, free: &dyn FreeSpace, range: ByteRange, file_offset: u64) {
    let mut at = range.start;
    while at < range.end() {
        let (is_free, run) = free.run(at);
        let len = run.clamp(1, range.end() - at);
        parts.push(Part {
            range: ByteRange::new(at, len),
            file_offset: file_offset + (at - range.start),
            free: is_free,
        });
        at += len;
    }
}
