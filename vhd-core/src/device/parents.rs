//! The ancestors of a leaf, as one: which of them answers a range.
//!
//! Ancestors do not change while the leaf is open, so what a walk down the chain finds is remembered: one
//! word per block of the leaf where a single layer answers it whole, a list of runs where several do. A
//! read then costs the same at every depth.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::{DeviceError, Layer};
use crate::image::ReadSpan;
use crate::units::{VirtualOffset, u64_from, usize_from};

/// Bytes of run lists that one disk keeps.
const CACHE_BYTES: u64 = 32 << 20;

/// Who answers the first bytes of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The layer, counted like in the list of all layers; `None` if the bytes read zero.
    pub(super) layer: Option<u32>,
    pub(super) len: u64,
}

/// What is known of one block of the leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Summary {
    Unknown,
    Zero,
    Mixed,
    Whole(u32),
}

impl Summary {
    const FIRST_LAYER: u32 = 3;

    fn from_word(word: u32) -> Self {
        match word {
            0 => Self::Unknown,
            1 => Self::Zero,
            2 => Self::Mixed,
            layer => Self::Whole(layer - Self::FIRST_LAYER),
        }
    }

    fn to_word(self) -> u32 {
        match self {
            Self::Unknown => 0,
            Self::Zero => 1,
            Self::Mixed => 2,
            Self::Whole(layer) => layer + Self::FIRST_LAYER,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Run {
    /// Where the run ends, in bytes from the start of the block.
    end: u64,
    layer: Option<u32>,
}

type Runs = Arc<[Run]>;

#[derive(Clone)]
struct RunBytes;

impl Weighter<u64, Runs> for RunBytes {
    fn weight(&self, _: &u64, runs: &Runs) -> u64 {
        u64_from(size_of_val(&**runs) + size_of::<Runs>())
    }
}

/// Remembers which ancestor answers each block of the leaf.
pub(super) struct ParentIndex {
    block_size: u64,
    disk_size: u64,
    summaries: Box<[AtomicU32]>,
    runs: Cache<u64, Runs, RunBytes>,
}

impl ParentIndex {
    /// For a leaf of `disk_size` bytes in blocks of `block_size` bytes.
    pub(super) fn new(disk_size: u64, block_size: u64) -> Self {
        let blocks = disk_size.div_ceil(block_size);
        Self {
            block_size,
            disk_size,
            summaries: (0..blocks)
                .map(|_| AtomicU32::new(Summary::Unknown.to_word()))
                .collect(),
            runs: Cache::with_weighter(1 << 12, CACHE_BYTES, RunBytes),
        }
    }

    /// Who answers the first bytes of the range; `layers[0]` is the leaf and is not asked.
    pub(super) fn resolve(&self, layers: &[Layer], offset: u64, len: u64) -> Result<Answer, DeviceError> {
        let block = offset / self.block_size;
        let within = offset % self.block_size;
        let len = len.min(self.block_size - within);
        let summary = &self.summaries[usize_from(block)];
        match Summary::from_word(summary.load(Ordering::Relaxed)) {
            Summary::Zero => Ok(Answer { layer: None, len }),
            Summary::Whole(layer) => Ok(Answer {
                layer: Some(layer),
                len,
            }),
            Summary::Mixed => match self.runs.get(&block) {
                Some(runs) => Ok(answer_from(&runs, within, len)),
                None => self.learn(layers, block, within, len),
            },
            Summary::Unknown => self.learn(layers, block, within, len),
        }
    }

    /// Walks down the chain for a whole block and remembers what it found.
    fn learn(&self, layers: &[Layer], block: u64, within: u64, len: u64) -> Result<Answer, DeviceError> {
        let start = block * self.block_size;
        let end = self.disk_size.min(start + self.block_size);
        let runs: Runs = walk(layers, start, end)?.into();
        let summary = match &*runs {
            [Run { layer: None, .. }] => Summary::Zero,
            [Run { layer: Some(layer), .. }] => Summary::Whole(*layer),
            _ => Summary::Mixed,
        };
        let answer = answer_from(&runs, within, len);
        if summary == Summary::Mixed {
            self.runs.insert(block, runs);
        }
        // The ancestors do not change: whoever learns the same block learns the same.
        self.summaries[usize_from(block)].store(summary.to_word(), Ordering::Relaxed);
        Ok(answer)
    }
}

fn answer_from(runs: &[Run], within: u64, len: u64) -> Answer {
    let run = runs[runs.partition_point(|run| run.end <= within)];
    Answer {
        layer: run.layer,
        len: len.min(run.end - within),
    }
}

/// The runs of `start..end`, each layer asked for what the ones above it left open.
fn walk(layers: &[Layer], start: u64, end: u64) -> Result<Vec<Run>, DeviceError> {
    let mut found: Vec<(u64, u64, Option<u32>)> = Vec::new();
    let mut open = vec![(start, end)];
    for (depth, layer) in (0..).zip(layers).skip(1) {
        let mut passed_on = Vec::new();
        for (from, to) in open {
            ask(layer, depth, from, to, &mut found, &mut passed_on)?;
        }
        open = passed_on;
        if open.is_empty() {
            break;
        }
    }
    found.extend(open.into_iter().map(|(from, to)| (from, to, None)));
    found.sort_unstable_by_key(|(from, ..)| *from);
    let mut runs: Vec<Run> = Vec::new();
    for (_, to, layer) in found {
        match runs.last_mut() {
            Some(last) if last.layer == layer => last.end = to - start,
            _ => runs.push(Run { end: to - start, layer }),
        }
    }
    Ok(runs)
}

/// Asks one layer about `from..to`: what it has goes to `found`, what it leaves to its parent to `passed_on`.
fn ask(
    layer: &Layer,
    depth: u32,
    from: u64,
    to: u64,
    found: &mut Vec<(u64, u64, Option<u32>)>,
    passed_on: &mut Vec<(u64, u64)>,
) -> Result<(), DeviceError> {
    let mut at = from;
    while at < to {
        if at >= layer.disk_size() {
            // A parent that is smaller than its child reads zero behind its end.
            found.push((at, to, None));
            break;
        }
        let limit = to.min(layer.disk_size());
        let span = layer.resolve_read(VirtualOffset(at), limit - at)?;
        let next = at + span.len();
        match span {
            ReadSpan::Data { .. } => found.push((at, next, Some(depth))),
            ReadSpan::Zero { .. } => found.push((at, next, None)),
            ReadSpan::Parent { .. } => match passed_on.last_mut() {
                Some((_, end)) if *end == at => *end = next,
                _ => passed_on.push((at, next)),
            },
        }
        at = next;
    }
    Ok(())
}
