//! Blocks over one another: which of them the space belongs to, as far as their neighbours tell.

use std::cmp::Reverse;

use super::header::slack;
use super::table::Scene;
use crate::units::BlockIndex;

/// What an entry of the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) block: BlockIndex,
    /// Where its bitmap is said to be.
    pub(super) offset: u64,
}

/// A block whose space is also another's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Contested {
    pub(super) claim: Claim,
    /// The block that keeps the space.
    pub(super) with: Claim,
    /// The neighbours tell that the space is the other's.
    pub(super) sure: bool,
}

/// More blocks than this at one place are no mistake about a block, but a table that holds something else.
const MOST_AT_ONE_PLACE: usize = 2;

/// Takes blocks that lie over others out of `standing`: those that need space of their own, and those whose entries
/// can't be meant.
pub(super) fn settle(standing: &mut Vec<Claim>, scene: &Scene<'_>) -> (Vec<Contested>, Vec<Claim>) {
    standing.sort_unstable_by_key(|claim| (claim.offset, claim.block));
    let disbelieved: Vec<Claim> = standing
        .chunk_by(|a, b| a.offset == b.offset)
        .filter(|same| same.len() > MOST_AT_ONE_PLACE)
        .flatten()
        .copied()
        .collect();
    standing.retain(|claim| !disbelieved.contains(claim));
    let neighbours = Neighbours::of(standing, scene);
    let mut contested = Vec::new();
    let mut kept: Vec<Claim> = Vec::new();
    for &claim in standing.iter() {
        let mut claim = Some(claim);
        while let (Some(next), Some(&last)) = (claim, kept.last()) {
            if next.offset >= scene.end_of(&last) {
                break;
            }
            let (of_last, of_next) = (neighbours.around(last.offset), neighbours.around(next.offset));
            let sure = of_last != of_next;
            if of_next > of_last {
                contested.push(Contested {
                    claim: last,
                    with: next,
                    sure,
                });
                kept.pop();
            } else {
                contested.push(Contested {
                    claim: next,
                    with: last,
                    sure,
                });
                claim = None;
            }
        }
        kept.extend(claim);
    }
    *standing = kept;
    (contested, disbelieved)
}

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
    fn around(&self, offset: u64) -> (usize, Reverse<u64>) {
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
