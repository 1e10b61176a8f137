//! Blocks that no entry refers to: where they are, and which they can only be.

use super::draft::Draft;
use super::error::{Doing as _, RepairError};
use super::finding::{Certainty, RepairCode};
use super::overlap::{Claim, Contested};
use super::table::Scene;
use crate::image::absent_runs;
use crate::storage::{Segment, StorageFile, is_zero, reads_zero};
use crate::units::{BlockIndex, SECTOR_SIZE, usize_from};

/// Finds blocks that nothing refers to, and says which of the `unknown` ones each can only be: the only one there
/// is, or, where all blocks lie in the order of the disk, as many as are missing between two neighbours.
pub(super) fn assign(
    draft: &mut Draft,
    scene: &Scene<'_>,
    standing: &[Claim],
    shared: &[Contested],
    unknown: &[Claim],
) -> Result<Vec<(BlockIndex, u64)>, RepairError> {
    // What lay behind the end of a file that was cut is not in it.
    let eligible: Vec<BlockIndex> = unknown
        .iter()
        .filter(|claim| scene.whole || claim.offset < scene.end)
        .map(|claim| claim.block)
        .collect();
    if eligible.is_empty() {
        return Ok(Vec::new());
    }
    let found = Search::new(scene, standing, shared).run(&*draft.overlay)?;
    let assigned = match (&eligible[..], &found[..]) {
        ([block], [offset]) => vec![(*block, *offset)],
        _ => by_order(standing, &eligible, &found),
    };
    for offset in found
        .iter()
        .filter(|offset| !assigned.iter().any(|(_, taken)| taken == *offset))
    {
        let message = format!("what looks like a block stands at {offset:#x}; nothing tells which, and it stays there");
        draft.found(RepairCode::BlockUnknown, Certainty::Assumed, Some(*offset), message);
    }
    if standing.is_empty() && assigned.is_empty() && found.len() > 1 {
        let reason = format!(
            "the block table is lost; {} blocks are there, and nothing tells which they are",
            found.len()
        );
        return Err(RepairError::hopeless(reason));
    }
    Ok(assigned)
}

/// Pairs blocks and places between the same neighbours, where there are as many of one as of the other.
fn by_order(standing: &[Claim], unknown: &[BlockIndex], found: &[u64]) -> Vec<(BlockIndex, u64)> {
    if !standing.is_sorted_by_key(|claim| claim.offset) {
        return Vec::new();
    }
    let mut pairs = Vec::new();
    let next_of = |block: BlockIndex| standing.partition_point(|claim| claim.block < block);
    for group in unknown.chunk_by(|a, b| next_of(*a) == next_of(*b)) {
        let next = next_of(group[0]);
        let from = next.checked_sub(1).map_or(0, |previous| standing[previous].offset);
        let to = standing.get(next).map_or(u64::MAX, |claim| claim.offset);
        let between = found.iter().filter(|offset| (from..to).contains(*offset));
        if between.clone().count() == group.len() {
            pairs.extend(group.iter().copied().zip(between.copied()));
        }
    }
    pairs
}

/// The search for blocks in the space that nothing uses.
struct Search<'a> {
    scene: &'a Scene<'a>,
    /// What is used, in the order of the file.
    used: Vec<(u64, u64)>,
}

impl<'a> Search<'a> {
    fn new(scene: &'a Scene<'_>, standing: &[Claim], shared: &[Contested]) -> Self {
        let claims = standing.iter().chain(shared.iter().map(|contested| &contested.claim));
        let blocks = claims.map(|claim| (claim.offset, claim.offset + scene.stored()));
        let regions = scene.regions.iter().map(|region| (region.start, region.end));
        let mut used: Vec<(u64, u64)> = blocks.chain(regions).collect();
        used.push((scene.end, u64::MAX));
        used.sort_unstable();
        Self { scene, used }
    }

    fn run(&self, file: &dyn StorageFile) -> Result<Vec<u64>, RepairError> {
        let (mut found, mut free) = (Vec::new(), 0);
        for &(start, end) in &self.used {
            self.gap(file, free, start, &mut found)?;
            free = free.max(end);
        }
        Ok(found)
    }

    /// Looks at each sector of a gap, and behind a block that was found at the sector behind it.
    fn gap(&self, file: &dyn StorageFile, from: u64, to: u64, found: &mut Vec<u64>) -> Result<(), RepairError> {
        let Some(mut at) = from.checked_next_multiple_of(SECTOR_SIZE) else {
            return Ok(());
        };
        while at.checked_add(self.scene.stored()).is_some_and(|end| end <= to) {
            if self.is_block(file, at).doing("read", at)? {
                found.push(at);
                at += self.scene.stored();
                continue;
            }
            at = match file.segment_at(at).doing("look for data", at)? {
                (Segment::Hole, end) => (end / SECTOR_SIZE * SECTOR_SIZE).max(at + SECTOR_SIZE),
                _ => at + SECTOR_SIZE,
            };
        }
        Ok(())
    }

    /// Whether a bitmap may begin here: some bits are set, those behind the last sector are equal, and sectors whose
    /// bit is clear are zero.
    fn is_block(&self, file: &dyn StorageFile, at: u64) -> std::io::Result<bool> {
        let layout = self.scene.located.header.layout;
        let mut bitmap = vec![0; usize_from(layout.bitmap_bytes())];
        file.read_exact_at(&mut bitmap, at)?;
        let sectors = layout.sectors_per_block();
        let padding = &bitmap[usize_from(sectors.div_ceil(8))..];
        let evenly = is_zero(padding) || padding.iter().all(|&byte| byte == 0xFF);
        if !evenly || is_zero(&bitmap) {
            return Ok(false);
        }
        let data = at + layout.bitmap_bytes();
        let mut buffer = Vec::new();
        for (first, count) in absent_runs(&bitmap, sectors) {
            if !reads_zero(file, data + first * SECTOR_SIZE, count * SECTOR_SIZE, &mut buffer)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
