//! ext2, ext3 and ext4: a bitmap for each group of blocks.

use crate::bytes::{index, le16, le32};
use crate::probe::known_features;
use crate::window::{Window, clear_runs};
use crate::{FreeMap, Unusable};

pub(crate) const NAME: &str = "ext2/3/4";

const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xEF53;
const STATE_CLEAN: u16 = 1;
const STATE_ERRORS: u16 = 2;

const COMPAT_SPARSE_SUPER2: u32 = 0x200;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
/// File types, extents, 64 bits, flexible groups, values in inodes, directory data, checksum seed, large
/// directories, inline data, encrypted files, case folding: none of them changes what a block bitmap means.
const INCOMPAT_KNOWN: u32 = 0x2 | 0x40 | INCOMPAT_64BIT | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x3_0000;
const RO_SPARSE_SUPER: u32 = 0x1;
const RO_GROUP_CHECKSUMS: u32 = 0x10 | 0x400;
const RO_BIGALLOC: u32 = 0x200;
const RO_ORPHANS_PRESENT: u32 = 0x1_0000;
/// Sparse superblocks, large files, hashed directories, huge files, checksums, many links, extra inode size,
/// quota, metadata checksums, read-only, project quota, verity.
const RO_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x40 | 0x100 | 0x400 | 0x1000 | 0x2000 | 0x8000;
/// The group's bitmap was never written: what a group starts with is in use, the rest is free.
const GROUP_BITMAP_UNWRITTEN: u16 = 0x2;

struct Layout<'a> {
    window: Window<'a>,
    block: u64,
    blocks: u64,
    first_block: u64,
    per_group: u64,
    groups: u64,
    descriptor: u64,
    has_checksums: bool,
    /// Blocks that a group with a copy of the superblock starts with.
    copies: u64,
    sparse_copies: bool,
    inode_table: u64,
    free_blocks: u64,
}

/// What a group says of itself.
struct Group {
    first: u64,
    blocks: u64,
    bitmap: u64,
    inode_bitmap: u64,
    inode_table: u64,
    free: u64,
    unwritten: bool,
}

pub(crate) fn recognise(window: &Window<'_>) -> Result<bool, Unusable> {
    Ok(le16(&window.peek(SUPERBLOCK_AT, SUPERBLOCK)?, 56) == MAGIC)
}

pub(crate) fn free_space(window: &Window<'_>) -> Result<FreeMap, Unusable> {
    let superblock = window.read(SUPERBLOCK_AT, SUPERBLOCK)?;
    check_features(window, &superblock)?;
    let layout = Layout::of(window, &superblock)?;
    let mut map = window.free_map();
    let mut free = 0;
    for number in 0..layout.groups {
        let group = layout.group(number)?;
        free += group.free;
        let bitmap = layout.bitmap_of(number, &group)?;
        let mut found = 0;
        let mut ranges = Vec::new();
        clear_runs(&bitmap, group.blocks, |unit, units| {
            found += units;
            ranges.push((unit, units));
        });
        // INV-13: the free blocks are counted by the group and by the superblock too.
        if found != group.free {
            return Err(window.damaged("a group has another number of free blocks than it says"));
        }
        for (unit, units) in ranges {
            map.add((group.first + unit) * layout.block, units * layout.block);
        }
    }
    if free != layout.free_blocks {
        return Err(window.damaged("it has another number of free blocks than it says"));
    }
    Ok(map)
}

fn check_features(window: &Window<'_>, superblock: &[u8]) -> Result<(), Unusable> {
    let (incompat, ro_compat) = match le32(superblock, 76) {
        0 => (0, 0),
        _ => (le32(superblock, 96), le32(superblock, 100)),
    };
    let state = le16(superblock, 58);
    // INV-13: a journal that is to be replayed changes the bitmaps.
    if incompat & INCOMPAT_RECOVER != 0 {
        return Err(window.dirty("its journal must be replayed"));
    }
    if state & STATE_CLEAN == 0 || state & STATE_ERRORS != 0 {
        return Err(window.dirty("it was not unmounted, or has errors"));
    }
    if ro_compat & RO_ORPHANS_PRESENT != 0 {
        return Err(window.dirty("it has files to be deleted"));
    }
    if incompat & INCOMPAT_META_BG != 0 {
        return Err(window.unsupported("group descriptors in groups of their own (meta_bg)"));
    }
    if ro_compat & RO_BIGALLOC != 0 {
        return Err(window.unsupported("clusters of blocks (bigalloc)"));
    }
    known_features("ext2/3/4", incompat, INCOMPAT_KNOWN)?;
    known_features("ext2/3/4 (read-only set)", ro_compat, RO_KNOWN)
}

impl<'a> Layout<'a> {
    fn of(window: &Window<'a>, sb: &[u8]) -> Result<Self, Unusable> {
        let (compat, incompat, ro_compat) = match le32(sb, 76) {
            0 => (0, 0, 0),
            _ => (le32(sb, 92), le32(sb, 96), le32(sb, 100)),
        };
        let log_block = le32(sb, 24);
        if log_block > 6 {
            return Err(window.damaged("its blocks have no possible size"));
        }
        let block = 1024_u64 << log_block;
        let is_wide = incompat & INCOMPAT_64BIT != 0;
        let wide = |low: usize, high: usize| {
            let upper = if is_wide { u64::from(le32(sb, high)) } else { 0 };
            upper << 32 | u64::from(le32(sb, low))
        };
        let descriptor = if is_wide { u64::from(le16(sb, 254)) } else { 32 };
        let (blocks, first_block) = (wide(4, 336), u64::from(le32(sb, 20)));
        let per_group = u64::from(le32(sb, 32));
        let inode_size = if le32(sb, 76) == 0 {
            128
        } else {
            u64::from(le16(sb, 88))
        };
        let fits = blocks.checked_mul(block).is_some_and(|bytes| bytes <= window.len);
        if !fits || first_block >= blocks || first_block > 1 {
            return Err(window.damaged("it is larger than its partition"));
        }
        if per_group < 256
            || per_group > 8 * block
            || !descriptor.is_power_of_two()
            || !(32..=block).contains(&descriptor)
        {
            return Err(window.damaged("its groups have no possible size"));
        }
        let groups = (blocks - first_block).div_ceil(per_group);
        let reserved = u64::from(le16(sb, 206));
        Ok(Self {
            window: *window,
            block,
            blocks,
            first_block,
            per_group,
            groups,
            descriptor,
            has_checksums: ro_compat & RO_GROUP_CHECKSUMS != 0,
            copies: 1 + (groups * descriptor).div_ceil(block) + reserved,
            sparse_copies: ro_compat & RO_SPARSE_SUPER != 0 && compat & COMPAT_SPARSE_SUPER2 == 0,
            inode_table: (u64::from(le32(sb, 40)) * inode_size).div_ceil(block),
            free_blocks: wide(12, 344),
        })
    }

    fn group(&self, number: u64) -> Result<Group, Unusable> {
        let at = (self.first_block + 1) * self.block + number * self.descriptor;
        let bytes = self.window.read(at, self.descriptor)?;
        let is_wide = self.descriptor >= 64;
        let wide = |low: usize, high: usize| {
            let upper = if is_wide { u64::from(le32(&bytes, high)) } else { 0 };
            upper << 32 | u64::from(le32(&bytes, low))
        };
        let free_upper = if is_wide { u64::from(le16(&bytes, 44)) } else { 0 };
        let first = self.first_block + number * self.per_group;
        Ok(Group {
            first,
            blocks: self.per_group.min(self.blocks - first),
            bitmap: wide(0, 32),
            inode_bitmap: wide(4, 36),
            inode_table: wide(8, 40),
            free: free_upper << 16 | u64::from(le16(&bytes, 12)),
            unwritten: self.has_checksums && le16(&bytes, 18) & GROUP_BITMAP_UNWRITTEN != 0,
        })
    }

    /// The bitmap of a group: a set bit is a block in use.
    fn bitmap_of(&self, number: u64, group: &Group) -> Result<Vec<u8>, Unusable> {
        if !group.unwritten {
            let at = group.bitmap.checked_mul(self.block);
            let at = at.ok_or_else(|| self.window.damaged("a bitmap is not inside it"))?;
            return self.window.read(at, group.blocks.div_ceil(8));
        }
        let mut bitmap = vec![0; index(group.blocks.div_ceil(8))];
        if self.has_copies(number) {
            mark(&mut bitmap, group, group.first, self.copies);
        }
        mark(&mut bitmap, group, group.bitmap, 1);
        mark(&mut bitmap, group, group.inode_bitmap, 1);
        mark(&mut bitmap, group, group.inode_table, self.inode_table);
        Ok(bitmap)
    }

    /// Copies of the superblock are in the groups 0 and 1 and the powers of 3, 5 and 7, or in all.
    fn has_copies(&self, number: u64) -> bool {
        let is_power = |base: u64| {
            let mut power = base;
            while power < number {
                power = power.saturating_mul(base);
            }
            power == number
        };
        !self.sparse_copies || number <= 1 || [3, 5, 7].into_iter().any(is_power)
    }
}

/// Marks blocks of the file system as used, as far as they are in the group.
fn mark(bitmap: &mut [u8], group: &Group, first: u64, blocks: u64) {
    let end = first.saturating_add(blocks).min(group.first + group.blocks);
    for block in first.max(group.first)..end {
        let bit = block - group.first;
        if let Some(byte) = bitmap.get_mut(index(bit / 8)) {
            *byte |= 1 << (bit % 8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stay_inside_their_group() {
        let group = Group {
            first: 100,
            blocks: 20,
            bitmap: 0,
            inode_bitmap: 0,
            inode_table: 0,
            free: 0,
            unwritten: true,
        };
        let mut bitmap = vec![0; 3];
        mark(&mut bitmap, &group, 90, 12);
        mark(&mut bitmap, &group, 118, u64::MAX);
        mark(&mut bitmap, &group, 5, 3);
        assert_eq!(bitmap, [0b11, 0, 0b1100]);
    }
}
