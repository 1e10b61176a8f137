//! A record against the layer as it is now.

use super::content::{Content, DIGEST_BLOCK, SectorSet};
use super::scan::{Run, is_differencing, scan};
use super::sidecar::{Record, RecordedRuns};
use super::{VerifyError, VerifyOptions};
use crate::chain::ChainLayer;
use crate::device::{ByteRange, DeviceError, Layer};
use crate::image::{IoContext as _, ReadSpan};
use crate::ops::Progress;
use crate::storage::reads_zero;
use crate::units::{SECTOR_SIZE, VirtualOffset, u64_from};

/// Ranges that changed, joined on their way to the one who asked.
pub(super) struct Changes<'a> {
    visitor: &'a mut dyn FnMut(ByteRange),
    last: Option<ByteRange>,
    bytes: u64,
}

impl<'a> Changes<'a> {
    pub(super) fn new(visitor: &'a mut dyn FnMut(ByteRange)) -> Self {
        Self {
            visitor,
            last: None,
            bytes: 0,
        }
    }

    fn add(&mut self, range: ByteRange) {
        self.bytes += range.len;
        match &mut self.last {
            Some(last) if last.end() == range.start => last.len += range.len,
            last => {
                if let Some(complete) = last.replace(range) {
                    (self.visitor)(complete);
                }
            }
        }
    }

    /// Hands the last range on; the bytes of all.
    pub(super) fn finish(self) -> u64 {
        if let Some(last) = self.last {
            (self.visitor)(last);
        }
        self.bytes
    }
}

/// Compares the layer, which has `parents` below it, nearest first, with its record.
pub(super) fn compare(
    layer: ChainLayer<'_>,
    parents: &[Layer],
    record: &Record,
    options: &VerifyOptions<'_>,
    progress: &dyn Progress,
    changes: &mut Changes<'_>,
) -> Result<(), VerifyError> {
    let (recorded_size, size) = (record.header().disk_size, layer.layer.disk_size());
    if record.header().has_parent != is_differencing(layer.layer) {
        // What the layer lacks reads otherwise, and every sector of it that is zero means something else.
        changes.add(ByteRange::new(0, recorded_size.max(size)));
        return Ok(());
    }
    let mut comparison = Comparison {
        layer,
        parents,
        recorded: Recorded::new(record.runs()),
        // What only one of the disks has is changed, whatever it holds.
        common: recorded_size.min(size),
        block: 0,
        buffer: Vec::new(),
        changes,
    };
    scan(layer, options, progress, &mut |run| comparison.take(run))?;
    // To the end: a record that is wrong behind the end of the disk is no proof for what is before.
    while comparison.recorded.peek()?.is_some() {
        comparison.recorded.drop_run();
    }
    let common = recorded_size.min(size);
    if recorded_size != size {
        changes.add(ByteRange::new(common, recorded_size.max(size) - common));
    }
    Ok(())
}

/// The recorded runs, of which the first one may be used up in part.
struct Recorded<'a> {
    runs: RecordedRuns<'a>,
    first: Option<Run>,
}

impl<'a> Recorded<'a> {
    fn new(runs: RecordedRuns<'a>) -> Self {
        Self { runs, first: None }
    }

    fn peek(&mut self) -> Result<Option<&Run>, VerifyError> {
        if self.first.is_none() {
            self.first = self.runs.next()?;
        }
        Ok(self.first.as_ref())
    }

    fn drop_run(&mut self) {
        self.first = None;
    }

    /// Up to `most` blocks of one content; `None` behind the end.
    fn take(&mut self, most: u64) -> Result<Option<Run>, VerifyError> {
        let Some(first) = self.peek()? else { return Ok(None) };
        let taken = Run {
            blocks: first.blocks.min(most),
            content: first.content.clone(),
        };
        if let Some(first) = &mut self.first {
            first.blocks -= taken.blocks;
        }
        self.first = self.first.take().filter(|first| first.blocks > 0);
        Ok(Some(taken))
    }
}

struct Comparison<'a, 'c, 'v> {
    layer: ChainLayer<'a>,
    parents: &'a [Layer],
    recorded: Recorded<'a>,
    /// Bytes that the recorded disk and the present one have in common.
    common: u64,
    /// The next block.
    block: u64,
    buffer: Vec<u8>,
    changes: &'c mut Changes<'v>,
}

impl Comparison<'_, '_, '_> {
    fn take(&mut self, now: Run) -> Result<(), VerifyError> {
        let mut left = now.blocks;
        while left > 0 {
            let Some(recorded) = self.recorded.take(left)? else {
                self.block += left;
                return Ok(());
            };
            if recorded.content != now.content {
                self.look_at(&recorded, &now.content)?;
            }
            self.block += recorded.blocks;
            left -= recorded.blocks;
        }
        Ok(())
    }

    /// Looks at blocks that are not as recorded.
    fn look_at(&mut self, recorded: &Run, now: &Content) -> Result<(), VerifyError> {
        for block in self.block..self.block + recorded.blocks {
            let start = block * DIGEST_BLOCK;
            if start >= self.common {
                return Ok(());
            }
            let range = ByteRange::new(start, DIGEST_BLOCK.min(self.common - start));
            let harmless = match recorded.content.dropped(now) {
                None => false,
                Some(dropped) => self.parents_read_zero(range, &dropped)?,
            };
            if !harmless {
                self.changes.add(range);
            }
        }
        Ok(())
    }

    /// Compaction drops zeroes that hide nothing (INV-12): the disk reads the same without them.
    fn parents_read_zero(&mut self, range: ByteRange, dropped: &SectorSet) -> Result<bool, VerifyError> {
        for (first, count) in dropped.runs() {
            let start = range.start + u64_from(first) * SECTOR_SIZE;
            let end = range.end().min(start + u64_from(count) * SECTOR_SIZE);
            let part = ByteRange::new(start, end.saturating_sub(start));
            let zero = read_zero(self.parents, part, &mut self.buffer).map_err(|source| VerifyError::Device {
                path: self.layer.path.to_owned(),
                source,
            })?;
            if !zero {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether a disk of these layers reads zero in the range.
fn read_zero(layers: &[Layer], range: ByteRange, buffer: &mut Vec<u8>) -> Result<bool, DeviceError> {
    let (layer, below) = layers.split_first().ok_or(DeviceError::NoParent)?;
    // A parent that is smaller than its child reads zero behind its end.
    let end = range.end().min(layer.disk_size());
    let mut at = range.start;
    while at < end {
        let span = layer.resolve_read(VirtualOffset(at), end - at)?;
        let zero = match span {
            ReadSpan::Zero { .. } => true,
            ReadSpan::Parent { len } => read_zero(below, ByteRange::new(at, len), buffer)?,
            ReadSpan::Data { file_offset, len } => {
                reads_zero(layer.file(), file_offset.0, len, buffer).io_context("look for zeroes", file_offset.0)?
            }
        };
        if !zero {
            return Ok(false);
        }
        at += span.len();
    }
    Ok(true)
}
