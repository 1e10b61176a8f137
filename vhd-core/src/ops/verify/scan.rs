//! The content of a whole layer, block after block. Space that holds nothing is not read.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::content::{Content, DIGEST_BLOCK, SECTORS, SectorSet};
use super::{VerifyError, VerifyOptions};
use crate::chain::ChainLayer;
use crate::device::{DeviceError, Layer};
use crate::image::{IoContext as _, ReadSpan};
use crate::ops::Progress;
use crate::ops::workers::{in_parallel, useful_threads};
use crate::storage::{Segment, is_zero};
use crate::units::{FileOffset, SECTOR_SIZE, VirtualOffset, usize_from};

/// Blocks that are digested between two moments at which all threads wait for one another: 128 MiB.
const WINDOW: usize = 64;

/// Bytes: in shorter pieces of a file nobody looks for holes, reading them is as fast.
const MIN_HOLE: u64 = 64 << 10;

/// Neighbouring blocks of one content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) blocks: u64,
    pub(super) content: Content,
}

/// Hands the content of every block of the layer's disk, in order, to `consume`.
pub(super) fn scan(
    layer: ChainLayer<'_>,
    options: &VerifyOptions<'_>,
    progress: &dyn Progress,
    consume: &mut dyn FnMut(Run) -> Result<(), VerifyError>,
) -> Result<(), VerifyError> {
    let unreadable = |source| VerifyError::Device {
        path: layer.path.to_owned(),
        source,
    };
    let size = layer.layer.disk_size();
    progress.begin(size);
    let mut block = 0;
    loop {
        options.check_cancelled()?;
        let stored = next_stored_blocks(layer.layer, block).map_err(unreadable)?;
        let contents = contents_of(layer.layer, &stored, options).map_err(unreadable)?;
        options.check_cancelled()?;
        let before = block;
        for (&at, content) in stored.iter().zip(contents) {
            push_empty(at - block, consume)?;
            consume(Run { blocks: 1, content })?;
            block = at + 1;
        }
        if stored.len() < WINDOW {
            push_empty(size.div_ceil(DIGEST_BLOCK) - block, consume)?;
            progress.advance(size.saturating_sub(before * DIGEST_BLOCK));
            return Ok(());
        }
        progress.advance(size.min(block * DIGEST_BLOCK) - before * DIGEST_BLOCK);
    }
}

fn push_empty(blocks: u64, consume: &mut dyn FnMut(Run) -> Result<(), VerifyError>) -> Result<(), VerifyError> {
    match blocks {
        0 => Ok(()),
        blocks => consume(Run {
            blocks,
            content: Content::Empty,
        }),
    }
}

/// What the layer lacks is in a parent; else it reads zero.
pub(super) fn is_differencing(layer: &Layer) -> bool {
    layer.image().is_some_and(|image| image.is_differencing())
}

/// The next blocks, from `block` on, in which the layer stores something: as many as make a window.
fn next_stored_blocks(layer: &Layer, mut block: u64) -> Result<Vec<u64>, DeviceError> {
    let mut blocks = Vec::with_capacity(WINDOW);
    while blocks.len() < WINDOW {
        let Some(stored) = next_stored(layer, block.saturating_mul(DIGEST_BLOCK))? else {
            break;
        };
        block = stored / DIGEST_BLOCK;
        blocks.push(block);
        block += 1;
    }
    Ok(blocks)
}

/// The first sector, from `at` on, that the layer stores, as far as can be told without reading it.
fn next_stored(layer: &Layer, mut at: u64) -> Result<Option<u64>, DeviceError> {
    let size = layer.disk_size();
    while at < size {
        match layer.resolve_read(VirtualOffset(at), size - at)? {
            ReadSpan::Zero { len } | ReadSpan::Parent { len } => at += len,
            ReadSpan::Data { .. } if is_differencing(layer) => return Ok(Some(at)),
            ReadSpan::Data { file_offset, len } => match hole_at(layer, file_offset, len)? {
                0 => return Ok(Some(at)),
                hole => at += hole,
            },
        }
    }
    Ok(None)
}

/// How many of the `len` bytes at `offset` of the layer's file are a hole, in whole sectors.
fn hole_at(layer: &Layer, offset: FileOffset, len: u64) -> Result<u64, DeviceError> {
    let (segment, end) = segment_at(layer, offset)?;
    Ok(match segment {
        Segment::Data => 0,
        // Behind the end of the file everything reads zero.
        Segment::Hole if end <= offset.0 => len,
        Segment::Hole => len.min(end - offset.0) / SECTOR_SIZE * SECTOR_SIZE,
    })
}

fn segment_at(layer: &Layer, offset: FileOffset) -> Result<(Segment, u64), DeviceError> {
    layer.file().segment_at(offset.0).io_context("look for holes", offset.0)
}

/// The contents of some blocks, in their order. Less of them if it was told to stop.
fn contents_of(layer: &Layer, blocks: &[u64], options: &VerifyOptions<'_>) -> Result<Vec<Content>, DeviceError> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Content)>, DeviceError> {
        let mut reader = BlockReader::new(layer);
        let mut found = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            if index >= blocks.len() || options.cancel.load(Ordering::Relaxed) {
                return Ok(found);
            }
            let content = reader.content(blocks[index]);
            if content.is_err() {
                next.store(blocks.len(), Ordering::Relaxed);
            }
            found.push((index, content?));
        }
    };
    let threads = useful_threads(options.threads).min(blocks.len());
    if threads < 2 {
        return Ok(work()?.into_iter().map(|(_, content)| content).collect());
    }
    let found = in_parallel(threads, work)?;
    let mut contents: Vec<_> = found.into_iter().flatten().collect();
    contents.sort_unstable_by_key(|(index, _)| *index);
    Ok(contents.into_iter().map(|(_, content)| content).collect())
}

/// Reads blocks of one layer.
struct BlockReader<'a> {
    layer: &'a Layer,
    buffer: Vec<u8>,
    /// Sectors that are not zero.
    data: SectorSet,
    /// Sectors that are present and zero.
    zero: SectorSet,
}

impl<'a> BlockReader<'a> {
    fn new(layer: &'a Layer) -> Self {
        Self {
            layer,
            buffer: vec![0; usize_from(DIGEST_BLOCK)],
            data: SectorSet::default(),
            zero: SectorSet::default(),
        }
    }

    fn content(&mut self, block: u64) -> Result<Content, DeviceError> {
        self.data = SectorSet::default();
        self.zero = SectorSet::default();
        let start = block * DIGEST_BLOCK;
        let end = self.layer.disk_size().min(start + DIGEST_BLOCK);
        let mut at = start;
        while at < end {
            let span = self.layer.resolve_read(VirtualOffset(at), end - at)?;
            if let ReadSpan::Data { file_offset, len } = span {
                self.take(usize_from(at - start), file_offset, len)?;
            }
            at += span.len();
        }
        let covered = if is_differencing(self.layer) {
            std::mem::take(&mut self.zero)
        } else {
            SectorSet::default()
        };
        let sectors = usize_from((end - start) / SECTOR_SIZE);
        debug_assert!(sectors <= SECTORS);
        Ok(Content::of(&self.buffer, &self.data, covered, sectors))
    }

    /// Takes `len` bytes that the layer stores at `offset` of its file, for the place `within` of the block.
    fn take(&mut self, within: usize, offset: FileOffset, len: u64) -> Result<(), DeviceError> {
        let mut done = 0;
        while done < len {
            let (from, left) = (FileOffset(offset.0 + done), len - done);
            let place = within + usize_from(done);
            let hole = if left < MIN_HOLE {
                0
            } else {
                hole_at(self.layer, from, left)?
            };
            if hole > 0 {
                self.zero.insert(sectors(place), sectors(usize_from(hole)));
                done += hole;
                continue;
            }
            let part = if left < MIN_HOLE {
                left
            } else {
                self.stored_part(from, left)?
            };
            self.read(place, from, part)?;
            done += part;
        }
        Ok(())
    }

    /// How many of `len` bytes to read at once: up to the next hole.
    fn stored_part(&self, from: FileOffset, len: u64) -> Result<u64, DeviceError> {
        let (segment, end) = segment_at(self.layer, from)?;
        let stored = match segment {
            Segment::Data => end.saturating_sub(from.0),
            // A hole that is shorter than a sector.
            Segment::Hole => SECTOR_SIZE,
        };
        Ok(stored.max(SECTOR_SIZE).next_multiple_of(SECTOR_SIZE).min(len))
    }

    fn read(&mut self, place: usize, from: FileOffset, len: u64) -> Result<(), DeviceError> {
        let bytes = &mut self.buffer[place..place + usize_from(len)];
        self.layer
            .file()
            .read_exact_at(bytes, from.0)
            .io_context("read", from.0)?;
        for (index, sector) in bytes.chunks(usize_from(SECTOR_SIZE)).enumerate() {
            let set = if is_zero(sector) {
                &mut self.zero
            } else {
                &mut self.data
            };
            set.insert(sectors(place) + index, 1);
        }
        Ok(())
    }
}

fn sectors(bytes: usize) -> usize {
    bytes / usize_from(SECTOR_SIZE)
}
