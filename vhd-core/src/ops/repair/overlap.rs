//! Blocks over one another: which of them keeps the space, and what of them cannot be known.
//!
//! A block that is a few sectors too far to the front or to the back is as right as its neighbour: both are kept, and what
//! they share is in doubt in both. An entry that leads into the middle of another block is wrong as a whole; its place
//! does not look like a block, unless by chance.

use std::cmp::Reverse;

use super::bitmaps::{whole_bitmap, with_runs};
use super::draft::Draft;
use super::error::{Doing as _, RepairError};
use super::header::slack;
use super::scene::{Claim, Scene};
use crate::device::ByteRange;
use crate::image::stored_runs;
use crate::units::{BlockIndex, SECTOR_SIZE, usize_from};

/// A block whose space is also another's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contested {
    pub(super) claim: Claim,
    /// The block that keeps the space.
    pub(super) with: Claim,
    /// There is a bitmap at its place that fits the data behind it.
    pub(super) looks_right: bool,
}

/// Two blocks that share space, in the order of the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Overlap {
    pub(super) first: Claim,
    pub(super) second: Claim,
}

/// What becomes of blocks that lie over others.
pub(super) struct Settled {
    /// The blocks that stay where they are.
    pub(super) standing: Vec<Claim>,
    /// Those that need space of their own.
    pub(super) contested: Vec<Contested>,
    /// Those whose entries can't be meant.
    pub(super) disbelieved: Vec<Claim>,
    /// All that shared space before.
    pub(super) overlaps: Vec<Overlap>,
}

/// More blocks than this at one place are no mistake about a block, but a table that holds something else.
const MOST_AT_ONE_PLACE: usize = 2;
/// A block of which a part is another's has one such neighbour on each side. An entry that lies over more is not meant, if
/// its place does not look like a block either.
const MOST_NEIGHBOURS: usize = 2;
/// However much it looks like a block.
const MOST_AT_ALL: usize = 16;

/// Takes blocks that lie over others apart.
pub(super) fn settle(draft: &Draft, mut claims: Vec<Claim>, scene: &Scene<'_>) -> Result<Settled, RepairError> {
    claims.sort_unstable_by_key(|claim| (claim.offset, claim.block));
    let crowded = claims.chunk_by(|a, b| a.offset == b.offset);
    let crowded = crowded.filter(|same| same.len() > MOST_AT_ONE_PLACE);
    let mut disbelieved: Vec<Claim> = crowded.flatten().copied().collect();
    let places: Vec<u64> = disbelieved.iter().map(|claim| claim.offset).collect();
    claims.retain(|claim| places.binary_search(&claim.offset).is_err());
    for (most, unless) in [(MOST_NEIGHBOURS, true), (MOST_AT_ALL, false)] {
        let crowds: Vec<usize> = (0..claims.len())
            .map(|index| neighbours(&claims, index, scene))
            .collect();
        let mut kept = Vec::with_capacity(claims.len());
        for (claim, count) in claims.iter().zip(crowds) {
            let meant = count <= most || unless && scene.looks_like_block(draft, claim.offset)?;
            if meant { &mut kept } else { &mut disbelieved }.push(*claim);
        }
        claims = kept;
    }
    let overlaps = overlaps(&claims, scene);
    let (standing, contested) = arrange(draft, &claims, &overlaps, scene)?;
    Ok(Settled {
        standing,
        contested,
        disbelieved,
        overlaps,
    })
}

/// How many others a claim lies over; the claims are in the order of the file.
fn neighbours(claims: &[Claim], index: usize, scene: &Scene<'_>) -> usize {
    let claim = claims[index];
    let end = scene.end_of(&claim);
    let behind = claims.partition_point(|other| other.offset < end);
    // The last block of the disk may be shorter than the others: that counts one too many, which does no harm.
    let before = claims.partition_point(|other| other.offset.saturating_add(scene.stored()) <= claim.offset);
    behind - before - 1
}

/// All pairs that share space.
fn overlaps(claims: &[Claim], scene: &Scene<'_>) -> Vec<Overlap> {
    let mut pairs = Vec::new();
    for (index, first) in claims.iter().enumerate() {
        let end = scene.end_of(first);
        let others = claims[index + 1..].iter().take_while(|other| other.offset < end);
        pairs.extend(others.map(|second| Overlap {
            first: *first,
            second: *second,
        }));
    }
    pairs
}

/// Which blocks keep their places: of two, the one at whose place there is a block, then the one that adjoins its
/// neighbours.
fn arrange(
    draft: &Draft,
    claims: &[Claim],
    overlaps: &[Overlap],
    scene: &Scene<'_>,
) -> Result<(Vec<Claim>, Vec<Contested>), RepairError> {
    let mut sharing: Vec<BlockIndex> = overlaps
        .iter()
        .flat_map(|pair| [pair.first.block, pair.second.block])
        .collect();
    sharing.sort_unstable();
    sharing.dedup();
    let around = Neighbours::of(claims, scene);
    let (mut kept, mut contested): (Vec<(Claim, Rank)>, Vec<Contested>) = (Vec::new(), Vec::new());
    for &claim in claims {
        let looks_right = match sharing.binary_search(&claim.block) {
            Ok(_) => scene.looks_like_block(draft, claim.offset)?,
            Err(_) => true,
        };
        let mut next = Some((claim, (looks_right, around.of_place(claim.offset))));
        while let (Some((claim, rank)), Some(&(last, last_rank))) = (next, kept.last()) {
            if claim.offset >= scene.end_of(&last) {
                break;
            }
            let (loser, with, looks_right) = match rank > last_rank {
                true => (last, claim, last_rank.0),
                false => (claim, last, rank.0),
            };
            contested.push(Contested {
                claim: loser,
                with,
                looks_right,
            });
            if rank > last_rank {
                kept.pop();
            } else {
                next = None;
            }
        }
        kept.extend(next);
    }
    Ok((kept.into_iter().map(|(claim, _)| claim).collect(), contested))
}

/// Says of both blocks of each pair what is in doubt, and replaces bitmaps that are not to be believed.
pub(super) fn doubt(draft: &mut Draft, scene: &Scene<'_>, overlaps: &[Overlap]) -> Result<(), RepairError> {
    for pair in overlaps {
        let shared = pair.second.offset..scene.end_of(&pair.first).min(scene.end_of(&pair.second));
        let same_place = pair.first.offset == pair.second.offset;
        for (claim, other) in [(pair.first, pair.second), (pair.second, pair.first)] {
            if same_place {
                let reason = format!(
                    "it was said to be where block {} is: one of the two is wrong",
                    other.block
                );
                draft.doubt(scene.range(claim.block, 0), reason);
                continue;
            }
            let data = claim.offset + scene.layout().bitmap_bytes();
            let range = scene.range(claim.block, 0);
            let from = shared.start.saturating_sub(data) / SECTOR_SIZE * SECTOR_SIZE;
            let to = shared.end.saturating_sub(data).min(range.len);
            if from < to {
                let range = ByteRange::new(range.start + from, to - from);
                draft.doubt(range, format!("it shared this space with block {}", other.block));
            }
        }
        if !same_place {
            replace_bitmap(draft, scene, pair)?;
        }
    }
    Ok(())
}

/// The bitmap of the second block lies under the data of the first one: it may be that data. All of a dynamic block is
/// read, which is right whatever the bitmap was: what was absent is zero. In a child that would hide the parent.
fn replace_bitmap(draft: &mut Draft, scene: &Scene<'_>, pair: &Overlap) -> Result<(), RepairError> {
    let block = pair.second.block;
    let Some(at) = scene.place_of(draft, block)? else {
        return Ok(());
    };
    let fits = scene.looks_like_block(draft, pair.second.offset)?;
    if scene.is_differencing() && !fits {
        let layout = scene.layout();
        let sectors = scene.range(block, 0).len / SECTOR_SIZE;
        let mut runs = Vec::new();
        let mut push = |first, count| runs.push((first, count));
        let data = at + layout.bitmap_bytes();
        stored_runs(&*draft.overlay, data, (0, sectors), &mut push).doing("read a block", data)?;
        draft.write(at, &with_runs(vec![0; usize_from(layout.bitmap_bytes())], &runs))?;
    } else if !scene.is_differencing() {
        draft.write(at, &whole_bitmap(scene))?;
    }
    if !fits || scene.is_differencing() {
        doubt_whole(draft, scene, pair);
    }
    Ok(())
}

fn doubt_whole(draft: &mut Draft, scene: &Scene<'_>, pair: &Overlap) {
    let reason = format!(
        "its bitmap lies under block {}: which sectors it has is not known",
        pair.first.block
    );
    draft.doubt(scene.range(pair.second.block, 0), reason);
}

/// Whether a place looks like a block's, and how it lies among others.
type Rank = (bool, (usize, Reverse<u64>));

/// Where things in the file start and end.
struct Neighbours {
    starts: Vec<u64>,
    ends: Vec<u64>,
    stored: u64,
    slack: u64,
}

impl Neighbours {
    fn of(claims: &[Claim], scene: &Scene<'_>) -> Self {
        let stored = scene.stored();
        let mut starts: Vec<u64> = claims.iter().map(|claim| claim.offset).chain([scene.end]).collect();
        let ends = claims.iter().map(|claim| claim.offset + stored);
        let mut ends: Vec<u64> = ends.chain(scene.regions.iter().map(|region| region.end)).collect();
        starts.sort_unstable();
        ends.sort_unstable();
        Self {
            starts,
            ends,
            stored,
            slack: slack(stored),
        }
    }

    /// On how many sides a block at `offset` adjoins something, and how closely.
    fn of_place(&self, offset: u64) -> (usize, Reverse<u64>) {
        let end = offset + self.stored;
        let next = self.starts.partition_point(|start| *start < end);
        let after = self.starts.get(next).map(|start| start - end);
        let before = self.ends[..self.ends.partition_point(|end| *end <= offset)].last();
        let gaps = [after, before.map(|before| offset - before)];
        let near = gaps.into_iter().flatten().filter(|gap| *gap < self.slack);
        near.fold((0, Reverse(0)), |(sides, Reverse(sum)), gap| {
            (sides + 1, Reverse(sum + gap))
        })
    }
}
