//! The free extents of an allocation group, by their place.

use super::Layout;
use crate::bytes::{be16, be32, has, index};
use crate::{FreeMap, Unusable};

/// Levels of a tree: far fewer suffice for the largest group.
const MAX_LEVELS: u32 = 12;
const RECORD: usize = 8;
const POINTER: usize = 4;
const NO_SIBLING: u32 = u32::MAX;

/// Where checksum, identity and owner are in the headers of a group and in a block of the tree.
const HEADER_CHECKSUM: usize = 216;
const HEADER_IDENTITY: usize = 64;
const BLOCK_CHECKSUM: usize = 52;
const BLOCK_IDENTITY: usize = 32;
const BLOCK_OWNER: usize = 48;
const LIST_CHECKSUM: usize = 32;
const LIST_HEADER: usize = 36;
/// Sectors of headers that a group begins with: superblock, free space, inodes, and the list of reserved blocks.
const HEADERS: u64 = 4;
/// The first slot in use of the ring.
const RESERVED_FIRST: usize = 40;

/// One group under way.
struct Group<'a, 'b> {
    layout: &'a Layout<'b>,
    number: u64,
    start: u64,
    blocks: u64,
}

/// Adds what is free in a group; answers how many blocks the superblock counts for it.
pub(super) fn add_group(layout: &Layout<'_>, number: u64, map: &mut FreeMap) -> Result<u64, Unusable> {
    let window = &layout.window;
    let first = number * layout.group_blocks;
    let group = Group {
        layout,
        number,
        start: first * layout.block,
        blocks: layout.group_blocks.min(layout.blocks - first),
    };
    let header = window.read(group.start + layout.sector, layout.sector)?;
    let is_header = has(&header, 0, b"XAGF") && be32(&header, 4) == 1 && u64::from(be32(&header, 8)) == number;
    if !is_header || u64::from(be32(&header, 12)) != group.blocks {
        return Err(window.damaged("the header of a group's free space is wrong"));
    }
    let is_own = !layout.has_checksums || has(&header, HEADER_IDENTITY, &layout.identity);
    if !is_own || !layout.is_sound(&header, HEADER_CHECKSUM) {
        return Err(window.damaged("the checksum of a group's header is wrong"));
    }
    window.claim(group.start, HEADERS * layout.sector);
    let free = group.walk(be32(&header, 16), be32(&header, 28), map)?;
    // INV-13: the group counts its free blocks too.
    if free != u64::from(be32(&header, 52)) {
        return Err(window.damaged("a group has another number of free blocks than it says"));
    }
    group.claim_reserved(&header)?;
    let (reserved, tree_blocks) = (be32(&header, 48), be32(&header, 60));
    Ok(free + u64::from(reserved) + u64::from(tree_blocks))
}

impl Group<'_, '_> {
    /// Claims the blocks that the group keeps for its trees, from a ring in its fourth sector.
    fn claim_reserved(&self, header: &[u8]) -> Result<(), Unusable> {
        let layout = self.layout;
        let list = layout.window.read(self.start + 3 * layout.sector, layout.sector)?;
        let start = if layout.has_checksums { LIST_HEADER } else { 0 };
        if layout.has_checksums && !(has(&list, 0, b"XAFL") && layout.is_sound(&list, LIST_CHECKSUM)) {
            return Err(layout
                .window
                .damaged("the checksum of a group's list of reserved blocks is wrong"));
        }
        let slots = (list.len() - start) / POINTER;
        let (first, count) = (index(u64::from(be32(header, RESERVED_FIRST))), be32(header, 48));
        if first >= slots || index(u64::from(count)) > slots {
            return Err(layout.window.damaged("a group's list of reserved blocks is wrong"));
        }
        for slot in (first..).take(index(u64::from(count))) {
            let block = u64::from(be32(&list, start + slot % slots * POINTER));
            layout.window.claim(self.start + block * layout.block, layout.block);
        }
        Ok(())
    }

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
        let is_own =
            has(&bytes, BLOCK_IDENTITY, &layout.identity) && u64::from(be32(&bytes, BLOCK_OWNER)) == self.number;
        if layout.has_checksums && !(is_own && layout.is_sound(&bytes, BLOCK_CHECKSUM)) {
            return Err(layout.window.damaged("the checksum of a tree of free space is wrong"));
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
