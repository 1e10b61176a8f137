//! Whether the journal is empty. The superblock says so too; e2fsck asks both, and so do we.

use super::groups::Groups;
use super::superblock::Superblock;
use crate::Unusable;
use crate::bytes::{be32, le16, le32};
use crate::window::Window;

const EXTENTS: u32 = 0x8_0000;
const EXTENT_MAGIC: u16 = 0xF30A;
/// Levels of a tree of extents.
const MAX_LEVELS: u16 = 5;
const JOURNAL_MAGIC: u32 = 0xC03B_3998;
const SUPERBLOCK_TYPES: [u32; 2] = [3, 4];
/// Bytes of an inode that are needed: all that ext2 has.
const INODE: u64 = 128;

/// Requires a journal to be there, if the file system has one, and to have nothing to replay.
pub(super) fn check_empty(
    window: &Window<'_>,
    superblock: &Superblock,
    bytes: &[u8],
    groups: &Groups,
) -> Result<(), Unusable> {
    if !superblock.has_journal {
        return Ok(());
    }
    let number = u64::from(le32(bytes, 224));
    if number == 0 {
        return Err(window.unsupported("its journal on another disk"));
    }
    let damaged = || window.damaged("its journal is not where it says");
    let (group, position) = groups.of_inode(superblock, number).ok_or_else(damaged)?;
    let table = group.inode_table.checked_mul(superblock.block);
    let at = table.and_then(|table| table.checked_add(position * superblock.inode_size));
    let inode = window.read(at.ok_or_else(damaged)?, INODE)?;
    let first = first_block(window, superblock, &inode)?;
    let at = first
        .filter(|block| *block > 0)
        .and_then(|block| block.checked_mul(superblock.block));
    let header = window.read(at.ok_or_else(damaged)?, superblock.block)?;
    if be32(&header, 0) != JOURNAL_MAGIC || !SUPERBLOCK_TYPES.contains(&be32(&header, 4)) {
        return Err(damaged());
    }
    match be32(&header, 28) {
        0 => Ok(()),
        _ => Err(window.dirty("its journal has something to replay")),
    }
}

/// The first block of the journal's file.
fn first_block(window: &Window<'_>, superblock: &Superblock, inode: &[u8]) -> Result<Option<u64>, Unusable> {
    let map = inode.get(40..100).unwrap_or_default();
    if le32(inode, 32) & EXTENTS == 0 {
        return Ok(Some(u64::from(le32(map, 0))));
    }
    let mut node = map.to_vec();
    for _ in 0..=MAX_LEVELS {
        let (entries, depth) = (le16(&node, 2), le16(&node, 6));
        if le16(&node, 0) != EXTENT_MAGIC || entries == 0 {
            return Ok(None);
        }
        if depth == 0 {
            let starts_at_zero = le32(&node, 12) == 0;
            let start = u64::from(le16(&node, 18)) << 32 | u64::from(le32(&node, 20));
            return Ok(starts_at_zero.then_some(start));
        }
        let child = u64::from(le16(&node, 20)) << 32 | u64::from(le32(&node, 16));
        let Some(at) = child.checked_mul(superblock.block) else {
            return Ok(None);
        };
        node = window.read(at, superblock.block)?;
    }
    Ok(None)
}
