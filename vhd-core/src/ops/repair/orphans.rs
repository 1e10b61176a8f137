//! Blocks that no entry refers to: where they are, and which they can only be.

use super::draft::Draft;
use super::error::{Doing as _, RepairError};
use super::finding::{Certainty, RepairCode};
use super::overlap::Contested;
use super::scene::{Claim, Scene};
use crate::image::blocks_between;
use crate::units::{BlockIndex, SECTOR_SIZE};

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
    let found = search(draft, scene, standing, shared)?;
    let assigned = match (&eligible[..], &found[..]) {
        ([block], [offset]) => vec![(*block, *offset)],
        _ => by_order(standing, &eligible, &found),
    };
    for offset in &found {
        if !assigned.iter().any(|(_, taken)| taken == offset) {
            let message = format!(
                "{}, and it stays there",
                what_looks_like_a_block(scene, standing, *offset)
            );
            draft.found(RepairCode::BlockUnknown, Certainty::Assumed, Some(*offset), message);
        }
    }
    if standing.is_empty() && assigned.is_empty() && found.len() > 1 && !eligible.is_empty() {
        let reason = format!(
            "the block table is lost; {} blocks are there, and nothing tells which they are",
            found.len()
        );
        return Err(RepairError::hopeless(reason));
    }
    Ok(assigned)
}

/// What is known of a block without an entry: in a file in the order of the disk it is one of those between the
/// neighbours that have no space.
fn what_looks_like_a_block(scene: &Scene<'_>, standing: &[Claim], offset: u64) -> String {
    let what = "what looks like a block stands here, and no entry of the table leads to it";
    let next = standing.partition_point(|claim| claim.offset < offset);
    if standing.is_empty() || !standing.is_sorted_by_key(|claim| claim.offset) {
        return format!("{what}; nothing tells which block it is");
    }
    let layout = scene.layout();
    let first = next.checked_sub(1).map_or(0, |previous| standing[previous].block.0 + 1);
    let blocks = layout.blocks_for(scene.basis.footer.current_size);
    let end = standing.get(next).map_or(blocks, |claim| u64::from(claim.block.0));
    if u64::from(first) >= end {
        return format!("{what}; its neighbours leave no block between them");
    }
    let lba = |block: u64| block * layout.sectors_per_block();
    let size = scene.basis.footer.current_size / SECTOR_SIZE;
    format!(
        "{what}; by the order of the file it is one of the blocks {first} to {} (LBA {} to {})",
        end - 1,
        lba(u64::from(first)),
        lba(end).min(size) - 1
    )
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

/// Where blocks may begin in the space that nothing uses.
fn search(draft: &Draft, scene: &Scene<'_>, standing: &[Claim], shared: &[Contested]) -> Result<Vec<u64>, RepairError> {
    let claims = standing.iter().chain(shared.iter().map(|contested| &contested.claim));
    let blocks = claims.map(|claim| (claim.offset, claim.offset + scene.stored()));
    let regions = scene.regions.iter().map(|region| (region.start, region.end));
    let mut used: Vec<(u64, u64)> = blocks.chain(regions).collect();
    used.push((scene.end, u64::MAX));
    used.sort_unstable();
    let (mut found, mut free, mut looks) = (Vec::new(), 0, u64::MAX);
    for (start, end) in used {
        let gap = blocks_between(&*draft.overlay, scene.layout(), (free, start), &mut looks);
        found.extend(gap.doing("look for blocks", free)?);
        free = free.max(end);
    }
    Ok(found)
}
