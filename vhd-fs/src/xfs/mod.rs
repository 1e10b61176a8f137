//! XFS, versions 4 and 5: in each allocation group a B+tree of free extents.

mod free_extents;
mod log;

use crate::bytes::{be16, be32, be64, byte, has, le32};
use crate::checksum::{crc32c_without, matches};
use crate::probe::known_features;
use crate::window::Window;
use crate::{FreeMap, Unusable};

pub(crate) const NAME: &str = "XFS";

const SECTOR: u64 = 512;
const SUPERBLOCK_CHECKSUM: usize = 224;
/// The identity of the structures is another one than that of the file system.
const INCOMPAT_METADATA_IDENTITY: u32 = 0x4;
const VERSION_MASK: u16 = 0xF;
/// File types, sparse inodes, metadata identity, large time stamps, many extents, exchange of ranges, parent pointers.
const INCOMPAT_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80;
const INCOMPAT_NEEDS_REPAIR: u32 = 0x10;
/// B+trees of free inodes, of owners and of shared extents, and counts of inode blocks.
const RO_COMPAT_KNOWN: u32 = 0x1 | 0x2 | 0x4 | 0x8;

/// What the superblock says, checked.
pub(crate) struct Layout<'a> {
    window: Window<'a>,
    block: u64,
    sector: u64,
    blocks: u64,
    group_blocks: u64,
    groups: u64,
    has_checksums: bool,
    /// The identity that structures of version 5 bear.
    identity: [u8; 16],
    free_blocks: u64,
    log_start: u64,
    log_len: u64,
}

pub(crate) fn recognise(window: &Window<'_>) -> Result<bool, Unusable> {
    Ok(has(&window.peek(0, 4)?, 0, b"XFSB"))
}

pub(crate) fn free_space(window: &Window<'_>) -> Result<FreeMap, Unusable> {
    let layout = Layout::of(window, &window.read(0, SECTOR)?)?;
    if !layout.is_sound(&window.read(0, layout.sector)?, SUPERBLOCK_CHECKSUM) {
        return Err(window.damaged("the checksum of its superblock is wrong"));
    }
    // INV-13: a log that is to be replayed changes the trees.
    if !log::is_clean(&layout)? {
        return Err(window.dirty("its log must be replayed"));
    }
    let mut map = window.free_map();
    let mut free = 0;
    for group in 0..layout.groups {
        free += free_extents::add_group(&layout, group, &mut map)?;
    }
    // INV-13: the superblock of a clean file system counts the free blocks of all groups.
    if free != layout.free_blocks {
        return Err(window.damaged("it has another number of free blocks than it says"));
    }
    Ok(map)
}

impl<'a> Layout<'a> {
    fn of(window: &Window<'a>, sb: &[u8]) -> Result<Self, Unusable> {
        let version = be16(sb, 100) & VERSION_MASK;
        if !matches!(version, 4 | 5) {
            return Err(window.unsupported("a version other than 4 and 5"));
        }
        if byte(sb, 126) != 0 {
            return Err(window.dirty("it is being made"));
        }
        if version == 5 {
            if be32(sb, 216) & INCOMPAT_NEEDS_REPAIR != 0 {
                return Err(window.dirty("it must be repaired"));
            }
            known_features("XFS", be32(sb, 216), INCOMPAT_KNOWN)?;
            known_features("XFS (read-only set)", be32(sb, 212), RO_COMPAT_KNOWN)?;
            known_features("XFS (log set)", be32(sb, 220), 0)?;
        }
        let (block, sector) = (u64::from(be32(sb, 4)), u64::from(be16(sb, 102)));
        let (blocks, group_blocks) = (be64(sb, 8), u64::from(be32(sb, 84)));
        let groups = u64::from(be32(sb, 88));
        let sizes = [block, sector];
        if sizes
            .iter()
            .any(|size| !size.is_power_of_two() || !(512..=65536).contains(size))
            || sector > block
        {
            return Err(window.damaged("its blocks have no possible size"));
        }
        let inside = blocks.checked_mul(block).is_some_and(|bytes| bytes <= window.len);
        if !inside || group_blocks < 4 || blocks.div_ceil(group_blocks) != groups {
            return Err(window.damaged("its groups do not make up its size"));
        }
        let log_start = be64(sb, 48);
        if log_start == 0 {
            return Err(window.unsupported("its log on another disk"));
        }
        let shift = u32::from(byte(sb, 124));
        let (group, within) = match shift {
            1..=31 => (log_start >> shift, log_start & ((1 << shift) - 1)),
            _ => return Err(window.damaged("its log is not inside it")),
        };
        let log_block = group
            .checked_mul(group_blocks)
            .and_then(|first| first.checked_add(within));
        let log_start = log_block.and_then(|first| first.checked_mul(block));
        Ok(Self {
            window: *window,
            block,
            sector,
            blocks,
            group_blocks,
            groups,
            has_checksums: version == 5,
            identity: {
                let has_own = version == 5 && be32(sb, 216) & INCOMPAT_METADATA_IDENTITY != 0;
                let at = if has_own { 248 } else { 32 };
                std::array::from_fn(|index| byte(sb, at + index))
            },
            free_blocks: be64(sb, 144),
            log_start: log_start.ok_or_else(|| window.damaged("its log is not inside it"))?,
            log_len: u64::from(be32(sb, 96)) * block,
        })
    }

    /// Whether a structure has the checksum that it says, at `at`. Before version 5 there are none.
    fn is_sound(&self, bytes: &[u8], at: usize) -> bool {
        !self.has_checksums || matches(!crc32c_without(bytes, at), le32(bytes, at))
    }
}
