//! Compaction in place: blocks that the disk reads the same without are dropped, blocks from the end move into
//! the space that nothing uses, and the file ends behind the last one.
//!
//! ```text
//!   survey.rs   what each block holds: why it can go, or why it stays        reads only
//!   layout.rs   which blocks move where                                     pure
//!   execute.rs  drop, sync, copy, sync, point, sync, cut                    crash-safe without a journal
//! ```
//!
//! docs/compact.md has the order of the writes and its reasons (INV-09 to INV-13).

mod error;
mod execute;
mod layout;
mod survey;

use std::sync::atomic::{AtomicBool, Ordering};

pub use error::CompactError;
pub use survey::{BlockCause, BlockFinding};

use super::Progress;
use crate::device::LayeredDevice;
use crate::image::Arrangement;
use crate::units::{BlockIndex, FileOffset, u64_from};
use layout::Move;
pub(in crate::ops) use layout::plan_moves;

/// Which bytes of a disk its file systems do not use.
pub trait FreeSpace: Sync {
    /// Whether the byte at `offset` is free, and how many bytes from it on (at least one) agree with it.
    fn run(&self, offset: u64) -> (bool, u64);
}

/// No byte is free.
impl FreeSpace for () {
    fn run(&self, _offset: u64) -> (bool, u64) {
        (false, u64::MAX)
    }
}

/// How a compaction is done.
#[derive(Clone, Copy)]
pub struct CompactOptions<'a> {
    /// What need not be kept: it reads zero afterwards, or as before.
    pub free: &'a dyn FreeSpace,
    /// Set by another thread: the compaction ends at the next step, and what it did stays done.
    pub cancel: &'a AtomicBool,
    /// Threads that read and copy; 0 for as many as are useful.
    pub threads: usize,
    /// Bytes that are copied between two syncs.
    pub batch_bytes: u64,
}

impl CompactOptions<'_> {
    /// Bytes that are copied between two syncs unless asked otherwise: four syncs for a GiB.
    pub const DEFAULT_BATCH: u64 = 256 << 20;

    fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }
}

/// What a compaction is going to do, as data.
#[derive(Debug)]
pub struct CompactPlan {
    drops: Vec<BlockIndex>,
    /// Blocks of which a part is freed in place.
    trims: Vec<BlockIndex>,
    moves: Vec<Move>,
    summary: CompactSummary,
}

/// The figures of a plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactSummary {
    /// Bytes in the file now.
    pub file_bytes: u64,
    /// Bytes in the file afterwards.
    pub file_bytes_after: u64,
    /// Blocks that have space in the file now.
    pub blocks: u64,
    /// Blocks that go.
    pub dropped_blocks: u64,
    /// Blocks that move towards the start.
    pub moved_blocks: u64,
    /// Bytes that move, holes in them included.
    pub moved_bytes: u64,
    /// Bytes inside blocks that stay, which become holes in the file.
    pub trimmed_bytes: u64,
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactReport {
    /// What was planned.
    pub planned: CompactSummary,
    /// Blocks that went.
    pub dropped_blocks: u64,
    /// Blocks that moved.
    pub moved_blocks: u64,
    /// Bytes written at the new places of blocks.
    pub copied_bytes: u64,
    /// Bytes that the new places share with the old ones.
    pub shared_bytes: u64,
    /// Bytes inside blocks that became holes in the file.
    pub trimmed_bytes: u64,
    /// Bytes in the file now.
    pub file_bytes: u64,
    /// It ended early because it was told to.
    pub cancelled: bool,
}

/// What every block of a disk's leaf holds.
#[derive(Debug)]
#[non_exhaustive]
pub struct Survey {
    findings: Vec<BlockFinding>,
    arrangement: Arrangement,
    file_bytes: u64,
}

impl Survey {
    /// Looks at every block of the disk's leaf. Nothing is changed.
    ///
    /// # Errors
    /// [`CompactError`] if the image must not be compacted, or can't be read.
    pub fn new(
        device: &LayeredDevice,
        options: &CompactOptions<'_>,
        progress: &dyn Progress,
    ) -> Result<Self, CompactError> {
        let arrangement = check_compactable(device)?;
        Ok(Self {
            findings: survey::survey(device, &arrangement, options, progress)?,
            arrangement,
            file_bytes: device.leaf().file_len()?,
        })
    }

    /// What was found in each block that has space, in the order of the file.
    #[must_use]
    pub fn findings(&self) -> &[BlockFinding] {
        &self.findings
    }

    /// Bytes on the disk that a block is for.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.arrangement.layout.block_size()
    }
}

impl CompactPlan {
    /// Plans by what was found; what is free in its file system goes only with `free_space`.
    #[must_use]
    pub fn new(survey: &Survey, free_space: bool) -> Self {
        let mut arrangement = survey.arrangement.clone();
        let mut plan = Self {
            drops: Vec::new(),
            trims: Vec::new(),
            moves: Vec::new(),
            summary: CompactSummary {
                file_bytes: survey.file_bytes,
                file_bytes_after: survey.file_bytes,
                blocks: u64_from(survey.findings.len()),
                ..CompactSummary::default()
            },
        };
        plan.choose(&survey.findings, free_space);
        plan.drops.sort_unstable();
        arrangement
            .blocks
            .retain(|placed| plan.drops.binary_search(&placed.block).is_err());
        plan.moves = plan_moves(&arrangement);
        plan.sum_up(arrangement);
        plan
    }

    fn choose(&mut self, findings: &[BlockFinding], free_space: bool) {
        for finding in findings {
            if finding.cause.can_go() && (free_space || finding.cause != BlockCause::Free) {
                self.drops.push(finding.block);
            } else if free_space && finding.trimmable_bytes > 0 {
                self.trims.push(finding.block);
                self.summary.trimmed_bytes += finding.trimmable_bytes;
            }
        }
    }

    fn sum_up(&mut self, mut arrangement: Arrangement) {
        let stored = arrangement.layout.stored_bytes();
        self.summary.dropped_blocks = u64_from(self.drops.len());
        self.summary.moved_blocks = u64_from(self.moves.len());
        self.summary.moved_bytes = self.summary.moved_blocks * stored;
        layout::apply(&mut arrangement, &self.moves);
        let end = arrangement.needed_end();
        let footer = u64_from(crate::format::FOOTER_SIZE);
        if end + footer <= arrangement.space_end {
            self.summary.file_bytes_after = end + footer;
        }
    }

    /// The figures.
    #[must_use]
    pub fn summary(&self) -> CompactSummary {
        self.summary
    }

    /// The compaction would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let gains = self.summary.file_bytes_after < self.summary.file_bytes;
        !gains && self.drops.is_empty() && self.trims.is_empty() && self.moves.is_empty()
    }

    /// The bytes that [`compact`] hands to its progress.
    fn work_bytes(&self) -> u64 {
        self.summary.moved_bytes
    }
}

/// Does what the plan of the same disk, which nobody changed since, says. The disk is consumed: nobody else reads
/// or writes while blocks change their places.
///
/// At every moment a crash leaves an image that reads the same, at worst with leaked space; doing it again goes on.
///
/// # Errors
/// [`CompactError`]; what was done before stays done.
pub fn compact(
    mut device: LayeredDevice,
    plan: &CompactPlan,
    options: &CompactOptions<'_>,
    progress: &dyn Progress,
) -> Result<CompactReport, CompactError> {
    check_compactable(&device)?;
    if plan.is_empty() {
        device.close()?;
        return Ok(CompactReport {
            planned: plan.summary,
            file_bytes: plan.summary.file_bytes,
            ..CompactReport::default()
        });
    }
    progress.begin(plan.work_bytes());
    let report = execute::execute(&mut device, plan, options, progress)?;
    device.close()?;
    Ok(report)
}

/// Where everything is in an image that may be compacted.
fn check_compactable(device: &LayeredDevice) -> Result<Arrangement, CompactError> {
    let leaf = device.leaf();
    let arrangement = leaf.arrangement()?.ok_or(CompactError::NoBlocks)?;
    if leaf.footer().saved_state {
        return Err(CompactError::SavedState);
    }
    if leaf.has_batmap()? {
        return Err(CompactError::Batmap);
    }
    // INV-12: without its parents nothing tells what a differencing image would read without a block.
    if leaf.is_differencing() && device.layers().len() < 2 {
        return Err(CompactError::ParentsUnknown);
    }
    Ok(arrangement)
}

/// Where a block was and is to be.
impl Move {
    fn target(self) -> (BlockIndex, Option<FileOffset>) {
        (self.block, Some(FileOffset(self.to)))
    }
}
