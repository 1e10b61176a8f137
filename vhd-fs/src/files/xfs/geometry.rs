//! The superblock: sizes, features, and where a block is.

use xfs::Superblock;

use super::{FORMAT, failed};
use crate::bytes::{be16, byte};
use crate::files::FileError;

/// Bytes of the largest sector that a superblock may have.
pub(super) const SUPERBLOCK_LEN: u64 = 512;

// Linux `fs/xfs/libxfs/xfs_format.h`, `struct xfs_dsb`.
const LABEL_AT: usize = 108;
const LABEL_LEN: usize = 12;
const SECTOR_SIZE_AT: usize = 102;
const DIRECTORY_BLOCK_LOG_AT: usize = 192;

/// `XFS_SB_FEAT_INCOMPAT_*` that change nothing here or are dealt with: ftype, sparse inodes, meta_uuid, bigtime,
/// nrext64, exchange-range, parent pointers.
const KNOWN_FEATURES: u32 = 0x1 | 0x2 | 0x4 | 0x8 | 0x20 | 0x40 | 0x80;
/// A repair was begun and did not end.
const NEEDS_REPAIR: u32 = 0x10;

pub(super) struct Geometry {
    pub(super) superblock: Superblock,
    /// Bytes of a block of a directory.
    pub(super) directory_block: u64,
    pub(super) has_ftype: bool,
    pub(super) notes: Vec<String>,
}

impl Geometry {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, FileError> {
        let superblock = Superblock::parse(bytes).map_err(failed)?;
        let damaged = |what: String| Err(FileError::damaged(FORMAT, what));
        let block = superblock.blocksize;
        if !(512..=64 << 10).contains(&block)
            || !block.is_power_of_two()
            || u32::from(superblock.blocklog) != block.ilog2()
        {
            return damaged(format!("blocks of {block} bytes"));
        }
        let inode = u32::from(superblock.inodesize);
        if !(256..=2048).contains(&inode) || !inode.is_power_of_two() || inode > block {
            return damaged(format!("inodes of {inode} bytes"));
        }
        let inodes_log = u32::from(superblock.inopblog);
        let group_log = u32::from(superblock.agblklog);
        if block.checked_shr(inodes_log) != Some(inode)
            || superblock.agblocks == 0
            || group_log > 31
            || superblock.agblocks > 1 << group_log
        {
            return damaged(format!(
                "{} blocks in a group, {inodes_log} and {group_log} as their logarithms",
                superblock.agblocks
            ));
        }
        let blocks = u64::from(superblock.agcount) * u64::from(superblock.agblocks);
        if blocks.checked_mul(u64::from(block)).is_none() {
            return damaged(format!(
                "{} groups of {} blocks",
                superblock.agcount, superblock.agblocks
            ));
        }
        let directory_log = byte(bytes, DIRECTORY_BLOCK_LOG_AT);
        let directory_block = u64::from(block) << directory_log.min(16);
        if directory_block > 64 << 10 {
            return damaged(format!("directory blocks of {block} << {directory_log} bytes"));
        }
        let incompat = if superblock.is_v5() {
            superblock.features_incompat
        } else {
            0
        };
        let unknown = incompat & !(KNOWN_FEATURES | NEEDS_REPAIR);
        if unknown != 0 {
            return Err(FileError::unsupported(FORMAT, format!("the features {unknown:#x}")));
        }
        let mut notes = Vec::new();
        if incompat & NEEDS_REPAIR != 0 {
            notes.push("the XFS needs a repair: xfs_repair was begun and did not end".to_owned());
        }
        // The checksum covers a sector, and what is larger than what was read cannot be told.
        if superblock.crc_valid == Some(false) && usize::from(be16(bytes, SECTOR_SIZE_AT)) == bytes.len() {
            notes.push("the XFS superblock has another checksum".to_owned());
        }
        Ok(Self {
            has_ftype: superblock.has_ftype(),
            superblock,
            directory_block,
            notes,
        })
    }

    /// The byte that a block begins at. Its number has the allocation group in the upper bits.
    pub(super) fn block_at(&self, block: u64) -> Result<u64, FileError> {
        let log = u32::from(self.superblock.agblklog);
        let (group, within) = (block >> log, block & ((1 << log) - 1));
        if group >= u64::from(self.superblock.agcount) || within >= u64::from(self.superblock.agblocks) {
            return Err(FileError::damaged(FORMAT, format!("there is no block {block:#x}")));
        }
        let linear = group * u64::from(self.superblock.agblocks) + within;
        Ok(linear * u64::from(self.superblock.blocksize))
    }
}

/// The volume's name, if it has one.
pub(super) fn label(bytes: &[u8]) -> Option<String> {
    let label = bytes.get(LABEL_AT..LABEL_AT + LABEL_LEN)?;
    let end = label.iter().position(|&byte| byte == 0).unwrap_or(label.len());
    (end > 0).then(|| String::from_utf8_lossy(&label[..end]).into_owned())
}
