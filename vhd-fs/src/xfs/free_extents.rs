//! The free extents of an allocation group, by their place.

use super::Layout;
use crate::bytes::{be16, be32, has};
use crate::{FreeMap, Unusable};

/// Levels of a tree: far fewer suffice for the largest group.
const MAX_LEVELS: u32 = 12;
const RECORD: usize = 8;
const POINTER: usize = 4;
const NO_SIBLING: u32 = u32::MAX;

/// One group under way.
struct Group<'a, 'b> {
    layout: &'a Layout<'b>,
    start: u64,
    blocks: u64,
}

/// Adds what is free in a group.
pub(super) fn add_group(layout: &Layout<'_>, number: u64, map: &mut FreeMap) -> Result<(), Unusable> {
    let window = &layout.window;
    let first = number * layout.group_blocks;
    let group = Group {
        layout,
        start: first * layout.block,
        blocks: layout.group_blocks.min(layout.blocks - first),
    };
    let header = window.read(group.start + layout.sector, layout.sector)?;
    let is_header = has(&header, 0, b"XAGF") && be32(&header, 4) == 1 && u64::from(be32(&header, 8)) == number;
    if !is_header || u64::from(be32(&header, 12)) != group.blocks {
        return Err(window.damaged("the header of a group's free space is wrong"));
    }
    let free = group.walk(be32(&header, 16), be32(&header, 28), map)?;
    // INV-13: the group counts its free blocks too.
    if free != u64::from(be32(&header, 52)) {
        return Err(window.damaged("a group has another number of free blocks than it says"));
    }
    Ok(())
}

impl Group<'_, '_> {
    fn header_len(&self) -> usize {
        if self.layout.has_checksums { 56 } else { 16 }
    }

    /// A block of the tree at a level, and how many records it has.
    fn block(&self, number: u32, level: u32) -> Result<(Vec<u8>, usize), Unusable> {
        let (layout, number) = (self.layout, u64::from(number));
        let magic = if layout.has_checksums { b"AB3B" } else { b"ABTB" };
        if number >= self.blocks {
            return Err(layout.window.damaged("a tree of free space leads out of its group"));
        }
        let bytes = layout.window.read(self.start + number * layout.block, layout.block)?;
        let records = usize::from(be16(&bytes, 6));
        let item = if level == 0 { RECORD } else { RECORD + POINTER };
        let most = (bytes.len() - self.header_len()) / item;
        if !has(&bytes, 0, magic) || u32::from(be16(&bytes, 4)) != level || records > most {
            return Err(layout.window.damaged("a tree of free space is wrong"));
        }
        Ok((bytes, records))
    }

    /// Goes down to the first leaf, then along the leaves; answers the free blocks.
    fn walk(&self, root: u32, levels: u32, map: &mut FreeMap) -> Result<u64, Unusable> {
        let damaged = || self.layout.window.damaged("a tree of free space is wrong");
        if !(1..=MAX_LEVELS).contains(&levels) {
            return Err(damaged());
        }
        let mut number = root;
        for level in (1..levels).rev() {
            let (bytes, records) = self.block(number, level)?;
            let most = (bytes.len() - self.header_len()) / (RECORD + POINTER);
            if records == 0 {
                return Err(damaged());
            }
            number = be32(&bytes, self.header_len() + most * RECORD);
        }
        let (mut free, mut position) = (0, 0);
        let mut leaves = 0;
        loop {
            let (bytes, records) = self.block(number, 0)?;
            for record in 0..records {
                let at = self.header_len() + record * RECORD;
                let (first, len) = (u64::from(be32(&bytes, at)), u64::from(be32(&bytes, at + 4)));
                // Ascending and inside the group: so the walk has an end whatever the siblings say.
                if first < position || len == 0 || first + len > self.blocks {
                    return Err(damaged());
                }
                map.add(self.start + first * self.layout.block, len * self.layout.block);
                position = first + len;
                free += len;
            }
            leaves += 1;
            let sibling = be32(&bytes, 12);
            if sibling == NO_SIBLING {
                return Ok(free);
            }
            if records == 0 || leaves > self.blocks {
                return Err(damaged());
            }
            number = sibling;
        }
    }
}
