//! Doing what a plan says, in an order that needs no journal.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::layout::Move;
use super::survey::trimmable_ranges;
use super::{CompactError, CompactOptions, CompactPlan, CompactReport};
use crate::device::{DeviceError, LayeredDevice};
use crate::image::{Image, IoContext};
use crate::ops::Progress;
use crate::ops::workers::{in_parallel, useful_threads};
use crate::storage::{Segment, StorageFile, clear_range};
use crate::units::{BlockIndex, u64_from, usize_from};

/// Bytes read and written at once.
const COPY_STEP: u64 = 512 << 10;

/// The grid on which file systems share extents.
const SHARE_ALIGNMENT: u64 = 4096;

pub(super) fn execute(
    device: &mut LayeredDevice,
    plan: &CompactPlan,
    options: &CompactOptions<'_>,
    progress: &dyn Progress,
) -> Result<CompactReport, CompactError> {
    let mut report = CompactReport {
        planned: plan.summary,
        ..CompactReport::default()
    };
    report.trimmed_bytes = trim_blocks(device, plan, options)?;
    let leaf = device.leaf_mut();
    drop_blocks(leaf, &plan.drops)?;
    report.dropped_blocks = u64_from(plan.drops.len());
    // INV-09: nothing is written to the space of dropped blocks before their entries are gone for good.
    leaf.barrier()?;
    let copier = Copier::new(options, progress);
    move_blocks(leaf, plan, &copier, &mut report)?;
    (report.copied_bytes, report.shared_bytes) = (copier.copied.into_inner(), copier.shared.into_inner());
    cut(leaf)?;
    report.file_bytes = leaf.file_len()?;
    report.cancelled = options.is_cancelled() && report.moved_blocks < plan.summary.moved_blocks;
    Ok(report)
}

/// Makes free ranges of blocks that stay holes in the file. Each sector of them may read as before or zero.
fn trim_blocks(device: &LayeredDevice, plan: &CompactPlan, options: &CompactOptions<'_>) -> Result<u64, CompactError> {
    let file = &**device.leaf().file();
    let mut trimmed = 0;
    for &block in &plan.trims {
        if options.is_cancelled() {
            break;
        }
        for (offset, len) in trimmable_ranges(device, options.free, block)? {
            match file.punch_hole(offset, len) {
                // Zeroes that take space would be no gain.
                Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(trimmed),
                result => result.io_context("free a range", offset)?,
            }
            trimmed += len;
        }
    }
    Ok(trimmed)
}

fn drop_blocks(leaf: &mut Image, drops: &[BlockIndex]) -> Result<(), DeviceError> {
    let changes: Vec<_> = drops.iter().map(|&block| (block, None)).collect();
    leaf.point_blocks(&changes)
}

/// Copies a batch of blocks, syncs, points the table to them; while one batch is being synced, the next one is
/// copied. That is safe because moves are independent: all go into space that was unused before the first of
/// them, and nothing is written to the space that a move leaves. The sync of one batch also makes the table of
/// the batch before durable.
fn move_blocks(
    leaf: &mut Image,
    plan: &CompactPlan,
    copier: &Copier<'_>,
    report: &mut CompactReport,
) -> Result<(), CompactError> {
    let mut rest = &plan.moves[..];
    let mut copied: &[Move] = &[];
    loop {
        let len = match copier.options.is_cancelled() {
            true => 0,
            false => batch_len(rest, copier.options.batch_bytes),
        };
        let (batch, behind) = rest.split_at(len);
        if copied.is_empty() && batch.is_empty() {
            return Ok(());
        }
        let done = match copied.is_empty() {
            true => copier.copy_batch(&**leaf.file(), batch)?,
            // INV-10: bitmap and data are durable at the new place before the table leads there.
            false => leaf.barrier_beside(|file| copier.copy_batch(file, batch))?,
        };
        let changes: Vec<_> = copied.iter().map(|step| step.target()).collect();
        leaf.point_blocks(&changes)?;
        report.moved_blocks += u64_from(copied.len());
        (copied, rest) = (&batch[..done], behind);
    }
}

/// How many moves of the front go between two syncs: none if there is none.
fn batch_len(moves: &[Move], bytes: u64) -> usize {
    let mut sum = 0_u64;
    let fits = moves.iter().take_while(|step| {
        sum = sum.saturating_add(step.len);
        sum <= bytes
    });
    fits.count().max(1).min(moves.len())
}

/// Ends the file behind the last thing that is needed.
fn cut(leaf: &mut Image) -> Result<(), CompactError> {
    let Some(arrangement) = leaf.arrangement()? else {
        return Ok(());
    };
    // INV-11: the table that refers to nothing behind the new end is durable before the end is cut off.
    leaf.barrier()?;
    leaf.cut(arrangement.needed_end())?;
    Ok(())
}

/// Copies blocks within a file, by several threads.
struct Copier<'a> {
    options: &'a CompactOptions<'a>,
    progress: &'a dyn Progress,
    can_share: AtomicBool,
    copied: AtomicU64,
    shared: AtomicU64,
}

impl<'a> Copier<'a> {
    fn new(options: &'a CompactOptions<'a>, progress: &'a dyn Progress) -> Self {
        Self {
            options,
            progress,
            can_share: AtomicBool::new(true),
            copied: AtomicU64::new(0),
            shared: AtomicU64::new(0),
        }
    }

    /// Copies blocks to their new places until it is told to stop; answers how many of the first ones are there.
    fn copy_batch(&self, file: &dyn StorageFile, batch: &[Move]) -> Result<usize, DeviceError> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<(), DeviceError> {
            let mut buffer = vec![0; usize_from(COPY_STEP)];
            while !self.options.is_cancelled() {
                let Some(step) = batch.get(next.fetch_add(1, Ordering::Relaxed)) else {
                    break;
                };
                if let Err(error) = self.copy_block(file, step, &mut buffer) {
                    next.store(batch.len(), Ordering::Relaxed);
                    return Err(error);
                }
                self.progress.advance(step.len);
            }
            Ok(())
        };
        in_parallel(useful_threads(self.options.threads).min(batch.len()), work)?;
        // Each one that was taken is finished.
        Ok(next.into_inner().min(batch.len()))
    }

    fn copy_block(&self, file: &dyn StorageFile, step: &Move, buffer: &mut [u8]) -> Result<(), DeviceError> {
        let mut done = 0;
        while done < step.len {
            let at = step.from + done;
            let (segment, segment_end) = file.segment_at(at).io_context("look for holes", at)?;
            let len = segment_end.saturating_sub(at).clamp(1, step.len - done);
            // File systems tell holes by their own blocks; what is copied are sectors.
            let len = len.next_multiple_of(crate::units::SECTOR_SIZE).min(step.len - done);
            let to = step.to + done;
            match segment {
                Segment::Hole => clear_range(file, to, len).io_context("clear a block", to)?,
                Segment::Data => self.copy_data(file, at, to, len, buffer)?,
            }
            done += len;
        }
        if step.len < step.stored {
            let to = step.to + step.len;
            clear_range(file, to, step.stored - step.len).io_context("clear a block", to)?;
        }
        Ok(())
    }

    fn copy_data(
        &self,
        file: &dyn StorageFile,
        from: u64,
        to: u64,
        len: u64,
        buffer: &mut [u8],
    ) -> Result<(), DeviceError> {
        let mut done = 0;
        while done < len {
            let (at, target) = (from + done, to + done);
            // Up to the next border of the grid by copying, whole pages by sharing, and the rest by copying.
            let head = at.next_multiple_of(SHARE_ALIGNMENT) - at;
            let pages = len.saturating_sub(done + head) / SHARE_ALIGNMENT * SHARE_ALIGNMENT;
            let shareable = (at ^ target) % SHARE_ALIGNMENT == 0 && pages > 0;
            if shareable && head == 0 && self.share(file, at, target, pages)? {
                done += pages;
                continue;
            }
            let limit = if shareable && head > 0 && self.can_share.load(Ordering::Relaxed) {
                head
            } else {
                len - done
            };
            let take = limit.min(u64_from(buffer.len()));
            let bytes = &mut buffer[..usize_from(take)];
            file.read_exact_at(bytes, at).io_context("read a block", at)?;
            file.write_all_at(bytes, target).io_context("move a block", target)?;
            self.copied.fetch_add(take, Ordering::Relaxed);
            done += take;
        }
        Ok(())
    }

    /// Shares whole pages within the file; `false` if it can't.
    fn share(&self, file: &dyn StorageFile, from: u64, to: u64, len: u64) -> Result<bool, DeviceError> {
        if !self.can_share.load(Ordering::Relaxed) {
            return Ok(false);
        }
        match file.share_range_from(file, from, to, len) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                self.can_share.store(false, Ordering::Relaxed);
                Ok(false)
            }
            result => {
                result.io_context("share an extent", to)?;
                self.shared.fetch_add(len, Ordering::Relaxed);
                Ok(true)
            }
        }
    }
}
