//! ext2, ext3 and ext4: a bitmap for each group of blocks.

mod groups;
mod journal;
mod superblock;

use crate::bytes::le16;
use crate::window::{Window, clear_runs};
use crate::{FreeMap, Unusable};
use groups::Groups;
use superblock::Superblock;

pub(crate) const NAME: &str = "ext2/3/4";

const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xEF53;

pub(crate) fn recognise(window: &Window<'_>) -> Result<bool, Unusable> {
    Ok(le16(&window.peek(SUPERBLOCK_AT, SUPERBLOCK)?, 56) == MAGIC)
}

pub(crate) fn free_space(window: &Window<'_>) -> Result<FreeMap, Unusable> {
    let bytes = window.read(SUPERBLOCK_AT, SUPERBLOCK)?;
    let superblock = Superblock::of(window, &bytes)?;
    let groups = Groups::read(window, &superblock)?;
    journal::check_empty(window, &superblock, &bytes, &groups)?;
    let mut map = window.free_map();
    let mut free = 0;
    for group in groups.all() {
        free += group.free;
        let bitmap = groups.bitmap_of(window, &superblock, group)?;
        let mut found = 0;
        clear_runs(&bitmap, group.blocks, |unit, units| {
            found += units;
            map.add((group.first + unit) * superblock.block, units * superblock.block);
        });
        // INV-13: the free blocks are counted by the group and by the superblock too.
        if found != group.free {
            return Err(window.damaged("a group has another number of free blocks than it says"));
        }
    }
    if free != superblock.free_blocks {
        return Err(window.damaged("it has another number of free blocks than it says"));
    }
    Ok(map)
}
