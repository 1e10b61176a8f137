//! The groups: their descriptors, what each keeps in its blocks, and their bitmaps.

use std::ops::Range;

use super::superblock::{Checksums, Superblock};
use crate::Unusable;
use crate::bytes::{index, le16, le32};
use crate::window::Window;

/// The group's inode bitmap was never written.
const INODE_BITMAP_UNWRITTEN: u16 = 0x1;
/// The group's bitmap was never written: what metadata is in the group is in use, the rest is free.
const BITMAP_UNWRITTEN: u16 = 0x2;

/// What a group says of itself.
pub(super) struct Group {
    pub(super) first: u64,
    pub(super) blocks: u64,
    bitmap: u64,
    inode_bitmap: u64,
    pub(super) inode_table: u64,
    pub(super) free: u64,
    flags: u16,
    descriptor: Vec<u8>,
}

/// All groups, and where their metadata is.
pub(super) struct Groups {
    groups: Vec<Group>,
    /// Ranges of blocks, ascending, none touching the next. A group's metadata may be in other groups.
    metadata: Vec<Range<u64>>,
}

impl Groups {
    pub(super) fn read(window: &Window<'_>, superblock: &Superblock) -> Result<Self, Unusable> {
        let mut groups = Vec::with_capacity(index(superblock.groups));
        let mut metadata = Vec::new();
        for number in 0..superblock.groups {
            let group = Group::read(window, superblock, number)?;
            if superblock.has_copies(number) {
                metadata.push((group.first, superblock.copy_blocks));
            }
            metadata.extend([
                (group.bitmap, 1),
                (group.inode_bitmap, 1),
                (group.inode_table, superblock.inode_table),
            ]);
            groups.push(group);
        }
        let metadata = merged(metadata);
        // INV-45: all of it is in use.
        for range in &metadata {
            let at = range.start.saturating_mul(superblock.block);
            window.claim(at, (range.end - range.start).saturating_mul(superblock.block));
        }
        Ok(Self { groups, metadata })
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Group> {
        self.groups.iter()
    }

    /// The group that an inode is in.
    pub(super) fn of_inode(&self, superblock: &Superblock, inode: u64) -> Option<(&Group, u64)> {
        let index_in_all = inode.checked_sub(1)?;
        let group = self
            .groups
            .get(index(index_in_all.checked_div(superblock.inodes_per_group)?))?;
        Some((group, index_in_all % superblock.inodes_per_group))
    }

    /// The bitmap of a group, its checksum verified: a set bit is a block in use.
    pub(super) fn bitmap_of(
        &self,
        window: &Window<'_>,
        superblock: &Superblock,
        group: &Group,
    ) -> Result<Vec<u8>, Unusable> {
        let can_be_unwritten = superblock.checksums != Checksums::None;
        if can_be_unwritten && group.flags & BITMAP_UNWRITTEN != 0 {
            return Ok(self.unwritten_bitmap(group));
        }
        let read = |block: u64, bits: u64| {
            let at = block.checked_mul(superblock.block);
            let at = at.ok_or_else(|| window.damaged("a bitmap is not inside it"))?;
            window.read(at, bits.div_ceil(8))
        };
        let bitmap = read(group.bitmap, superblock.per_group)?;
        let is_sound = superblock.is_bitmap_sound(&bitmap, &group.descriptor, 24, 56);
        let inodes_unwritten = can_be_unwritten && group.flags & INODE_BITMAP_UNWRITTEN != 0;
        let are_inodes_sound = inodes_unwritten || superblock.checksums == Checksums::None || {
            let bits = superblock.inodes_per_group.min(superblock.block * 8);
            superblock.is_bitmap_sound(&read(group.inode_bitmap, bits)?, &group.descriptor, 26, 58)
        };
        match is_sound && are_inodes_sound {
            true => Ok(bitmap),
            false => Err(window.damaged("the checksum of a bitmap is wrong")),
        }
    }

    /// The bitmap that a group would have if it had been written.
    fn unwritten_bitmap(&self, group: &Group) -> Vec<u8> {
        let mut bitmap = vec![0; index(group.blocks.div_ceil(8))];
        let end = group.first + group.blocks;
        let behind = self.metadata.partition_point(|range| range.end <= group.first);
        for range in self.metadata[behind..].iter().take_while(|range| range.start < end) {
            mark(&mut bitmap, group, range);
        }
        bitmap
    }
}

impl Group {
    fn read(window: &Window<'_>, superblock: &Superblock, number: u64) -> Result<Self, Unusable> {
        let at = (superblock.first_block + 1) * superblock.block + number * superblock.descriptor;
        let bytes = window.read(at, superblock.descriptor)?;
        if !superblock.is_descriptor_sound(number, &bytes) {
            return Err(window.damaged("the checksum of a group's descriptor is wrong"));
        }
        let is_wide = superblock.descriptor >= 64;
        let wide = |low: usize, high: usize| {
            let upper = if is_wide { u64::from(le32(&bytes, high)) } else { 0 };
            upper << 32 | u64::from(le32(&bytes, low))
        };
        let free_upper = if is_wide { u64::from(le16(&bytes, 44)) } else { 0 };
        let first = superblock.first_block + number * superblock.per_group;
        Ok(Self {
            first,
            blocks: superblock.per_group.min(superblock.blocks - first),
            bitmap: wide(0, 32),
            inode_bitmap: wide(4, 36),
            inode_table: wide(8, 40),
            free: free_upper << 16 | u64::from(le16(&bytes, 12)),
            flags: le16(&bytes, 18),
            descriptor: bytes,
        })
    }
}

/// Ranges that begin at a block and have a number of blocks, as ranges of which none touches another.
fn merged(mut parts: Vec<(u64, u64)>) -> Vec<Range<u64>> {
    parts.sort_unstable();
    let mut merged: Vec<Range<u64>> = Vec::new();
    for (first, blocks) in parts {
        let end = first.saturating_add(blocks);
        match merged.last_mut().filter(|last| last.end >= first) {
            Some(last) => last.end = last.end.max(end),
            None => merged.push(first..end),
        }
    }
    merged
}

/// Marks blocks of the file system as used, as far as they are in the group.
fn mark(bitmap: &mut [u8], group: &Group, used: &Range<u64>) {
    let end = used.end.min(group.first + group.blocks);
    for block in used.start.max(group.first)..end {
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
    fn ranges_that_touch_are_one() {
        assert_eq!(
            merged(vec![(9, 1), (2, 3), (5, 1), (2, 1), (20, u64::MAX)]),
            [2..6, 9..10, 20..u64::MAX]
        );
    }

    #[test]
    fn marks_stay_inside_their_group() {
        let group = Group {
            first: 100,
            blocks: 20,
            bitmap: 0,
            inode_bitmap: 0,
            inode_table: 0,
            free: 0,
            flags: BITMAP_UNWRITTEN,
            descriptor: Vec::new(),
        };
        let mut bitmap = vec![0; 3];
        for used in [90..102, 118..u64::MAX, 5..8] {
            mark(&mut bitmap, &group, &used);
        }
        assert_eq!(bitmap, [0b11, 0, 0b1100]);
    }
}
