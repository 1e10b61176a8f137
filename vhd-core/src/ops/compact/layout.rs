//! Which blocks move where: from the end of the file into the lowest holes that fit.

use std::collections::HashMap;

use crate::format::{BlockLayout, TableEntry};
use crate::image::{Arrangement, PlacedBlock};
use crate::units::{BlockIndex, FileOffset, SECTOR_SIZE};

/// Where a block is and is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::ops) struct Move {
    pub(in crate::ops) block: BlockIndex,
    /// Where its bitmap is.
    pub(in crate::ops) from: u64,
    /// Where its bitmap is to be: nothing is there, and no other move goes there.
    pub(in crate::ops) to: u64,
    /// Bytes of bitmap and data that the file has.
    pub(in crate::ops) len: u64,
    /// Bytes of a whole block: more than `len` for a block that is cut short behind the end of the disk.
    pub(in crate::ops) stored: u64,
}

/// The moves that make the file shorter, those from the end of the file first. They are independent of one
/// another: no block moves to where another one was.
pub(in crate::ops) fn plan_moves(arrangement: &Arrangement) -> Vec<Move> {
    let layout = arrangement.layout;
    let mut holes = Holes::new(layout, holes(arrangement), mostly_aligned(arrangement));
    let mut moves = Vec::new();
    let fixed_end = arrangement.fixed_end();
    for placed in arrangement.blocks.iter().rev() {
        // Behind the highest thing that stays, no move makes the file shorter.
        if placed.end <= fixed_end {
            break;
        }
        let Some(to) = holes.take_below(placed.offset) else {
            break;
        };
        moves.push(Move {
            block: placed.block,
            from: placed.offset,
            to,
            len: placed.end - placed.offset,
            stored: layout.stored_bytes(),
        });
    }
    moves
}

/// The arrangement after the moves.
pub(super) fn apply(arrangement: &mut Arrangement, moves: &[Move]) {
    let targets: HashMap<BlockIndex, u64> = moves.iter().map(|step| (step.block, step.to)).collect();
    let stored = arrangement.layout.stored_bytes();
    for placed in &mut arrangement.blocks {
        if let Some(&to) = targets.get(&placed.block) {
            (placed.offset, placed.end) = (to, to + stored);
        }
    }
}

/// Data of blocks on 4 KiB, as every program writes it that cares: then moved blocks get such places too.
fn mostly_aligned(arrangement: &Arrangement) -> bool {
    let aligned = |placed: &&PlacedBlock| is_aligned(arrangement.layout, placed.offset);
    2 * arrangement.blocks.iter().filter(aligned).count() >= arrangement.blocks.len()
}

fn is_aligned(layout: BlockLayout, offset: u64) -> bool {
    layout.aligned_start(offset) == offset
}

/// What nothing uses, in the order of the file: start and end.
fn holes(arrangement: &Arrangement) -> Vec<(u64, u64)> {
    let blocks = arrangement.blocks.iter().map(|placed| (placed.offset, placed.end));
    let mut taken: Vec<(u64, u64)> = blocks.chain(arrangement.fixed.iter().copied()).collect();
    taken.push((arrangement.space_end, u64::MAX));
    taken.sort_unstable();
    let mut found = Vec::new();
    let mut used: u64 = 0;
    for (start, end) in taken {
        let hole_start = used.next_multiple_of(SECTOR_SIZE);
        if start > hole_start && hole_start < arrangement.space_end {
            found.push((hole_start, start.min(arrangement.space_end)));
        }
        used = used.max(end);
        if used >= arrangement.space_end {
            break;
        }
    }
    found
}

/// Space for blocks, given out from the start of the file.
struct Holes {
    layout: BlockLayout,
    holes: Vec<(u64, u64)>,
    /// Only aligned places are given out.
    aligned_only: bool,
    /// No hole before this one fits.
    first: usize,
}

impl Holes {
    fn new(layout: BlockLayout, holes: Vec<(u64, u64)>, aligned_only: bool) -> Self {
        Self {
            layout,
            holes,
            aligned_only,
            first: 0,
        }
    }

    /// The lowest place for a block, if it is below `limit`.
    fn take_below(&mut self, limit: u64) -> Option<u64> {
        let stored = self.layout.stored_bytes();
        while let Some(hole) = self.holes.get(self.first).copied() {
            if hole.0 >= limit {
                return None;
            }
            match self.place_in(hole) {
                Some(place) if place + stored <= limit => {
                    self.holes[self.first].0 = place + stored;
                    return Some(place);
                }
                Some(_) => return None,
                None => self.first += 1,
            }
        }
        None
    }

    fn place_in(&self, (start, end): (u64, u64)) -> Option<u64> {
        let stored = self.layout.stored_bytes();
        let fits = |place: u64| place.checked_add(stored).is_some_and(|place_end| place_end <= end);
        let aligned = self.layout.aligned_start(start);
        let place = if self.aligned_only || costs_no_block(start, aligned, end, stored) {
            aligned
        } else {
            start
        };
        (fits(place) && TableEntry::at(FileOffset(place)).is_some()).then_some(place)
    }
}

/// In a file whose blocks are not aligned, holes are of whole blocks: alignment must not make them too short.
fn costs_no_block(start: u64, aligned: u64, end: u64, stored: u64) -> bool {
    aligned < end && (end - aligned) / stored == (end - start) / stored
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1 << 10;

    fn arrangement(offsets: &[u64], fixed: &[(u64, u64)], space_end: u64) -> Arrangement {
        let layout = BlockLayout::new(4096).unwrap();
        let blocks = (0..).map(BlockIndex).zip(offsets);
        let mut blocks: Vec<_> = blocks
            .map(|(block, &offset)| PlacedBlock {
                block,
                offset,
                end: offset + layout.stored_bytes(),
            })
            .collect();
        blocks.sort_unstable_by_key(|placed| placed.offset);
        Arrangement {
            layout,
            blocks,
            fixed: [&[(0, 2 * KIB)], fixed].concat(),
            space_end,
        }
    }

    fn places(arrangement: &Arrangement) -> Vec<(u64, u64)> {
        let moves = plan_moves(arrangement);
        moves.iter().map(|step| (step.from, step.to)).collect()
    }

    #[test]
    fn blocks_from_the_end_fill_the_lowest_holes() {
        let at = |index: u64| 2 * KIB + index * 4608;
        let full = arrangement(&[at(0), at(1), at(2)], &[], at(3));
        assert_eq!(places(&full), []);
        let holes = arrangement(&[at(1), at(3), at(5)], &[], at(6));
        assert_eq!(places(&holes), [(at(5), at(0)), (at(3), at(2))]);
    }

    #[test]
    fn aligned_blocks_stay_aligned() {
        let at = |index: u64| 3584 + index * 8 * KIB;
        let aligned = arrangement(&[at(1), at(3)], &[], at(4));
        assert_eq!(places(&aligned), [(at(3), 3584)]);
        // The hole is a sector short of an aligned place.
        let short = arrangement(&[4096 + 3584], &[(2 * KIB, 3072)], 64 * KIB);
        assert_eq!(places(&short), []);
    }

    #[test]
    fn unaligned_files_use_holes_of_one_block() {
        let at = |index: u64| 2560 + index * 4608;
        let file = arrangement(&[at(1), at(2), at(4), at(6)], &[(2048, 2560)], at(7));
        assert_eq!(places(&file), [(at(6), at(0)), (at(4), at(3))]);
    }

    #[test]
    fn nothing_moves_below_a_table_at_the_end() {
        let at = |index: u64| 2 * KIB + index * 4608;
        let table = (at(4), at(4) + 512);
        assert_eq!(places(&arrangement(&[at(1), at(3)], &[table], at(4) + 512)), []);
    }

    #[test]
    fn space_is_given_out_once_and_never_over_anything() {
        for seed in 0..200_u64 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut offsets = Vec::new();
            let mut at = 2 * KIB;
            for _ in 0..rng.u64(0..20) {
                at += rng.u64(0..24) * 512;
                offsets.push(at);
                at += 4608;
            }
            let fixed = [(at, at + 512)];
            let space_end = at + rng.u64(0..30) * 512;
            let mut file = arrangement(&offsets, if rng.bool() { &fixed } else { &[] }, space_end.max(at + 512));
            let before = file.needed_end();
            let moves = plan_moves(&file);
            apply(&mut file, &moves);
            file.blocks.sort_unstable_by_key(|placed| placed.offset);
            assert!(file.needed_end() <= before);
            assert!(
                file.blocks.windows(2).all(|pair| pair[0].end <= pair[1].offset),
                "seed {seed}"
            );
            assert!(moves.iter().all(|step| step.to + 4608 <= step.from), "seed {seed}");
        }
    }
}
