//! An inode: what the crate decodes, and the fields that it leaves out.

use xfs::Inode;

use super::geometry::Geometry;
use super::{FORMAT, failed, failed_io};
use crate::bytes::{be16, be32, be64, index};
use crate::files::FileError;
use crate::files::entry::FileType;
use crate::files::region::Region;

// Linux `fs/xfs/libxfs/xfs_format.h`, `struct xfs_dinode`.
const LINKS_V1_AT: usize = 6;
const UID_AT: usize = 8;
const GID_AT: usize = 12;
const LINKS_AT: usize = 16;
const BIG_EXTENTS_AT: usize = 24;
const FLAGS_AT: usize = 90;
const FLAG_REALTIME: u16 = 0x1;
const FLAG2_BIG_EXTENTS: u64 = 1 << 4;

pub(super) struct XfsInode {
    pub(super) core: Inode,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    /// Extents of the content.
    pub(super) extents: u64,
    flags: u16,
    /// Bytes of the data fork: the attributes may follow it.
    fork: usize,
}

impl XfsInode {
    pub(super) fn read(region: &Region, geometry: &Geometry, number: u64) -> Result<Self, FileError> {
        let damaged = |what: &str| FileError::damaged(FORMAT, format!("inode {number:#x} {what}"));
        let superblock = &geometry.superblock;
        let location = superblock.inode_to_location(number);
        if location.agno >= u64::from(superblock.agcount) || location.agblock >= u64::from(superblock.agblocks) {
            return Err(damaged("is not there"));
        }
        let bytes = region
            .bytes_at(location.byte_offset, u64::from(superblock.inodesize))
            .map_err(failed_io)?;
        let core = Inode::parse(&bytes).map_err(failed)?;
        if core.crc_valid == Some(false) {
            return Err(damaged("has another checksum"));
        }
        if core.di_ino.is_some_and(|own| own != number) {
            return Err(damaged("says that it is another one"));
        }
        let start = core.data_fork_offset();
        let fork = match core.forkoff {
            0 => bytes.len().saturating_sub(start),
            units => usize::from(units) * 8,
        };
        if fork > core.data_fork.len() {
            return Err(damaged("has a fork that is larger than the inode"));
        }
        let big = core.flags2.is_some_and(|flags| flags & FLAG2_BIG_EXTENTS != 0);
        let extents = if big {
            be64(&bytes, BIG_EXTENTS_AT)
        } else {
            u64::from(core.nextents)
        };
        let links = match core.version {
            1 => u32::from(be16(&bytes, LINKS_V1_AT)),
            _ => be32(&bytes, LINKS_AT),
        };
        Ok(Self {
            uid: be32(&bytes, UID_AT),
            gid: be32(&bytes, GID_AT),
            flags: be16(&bytes, FLAGS_AT),
            core,
            links,
            extents,
            fork,
        })
    }

    pub(super) fn kind(&self) -> Result<FileType, FileError> {
        let kind = FileType::from_mode(u32::from(self.core.mode));
        kind.ok_or_else(|| FileError::damaged(FORMAT, format!("an inode has mode {:#o}", self.core.mode)))
    }

    pub(super) fn is_realtime(&self) -> bool {
        self.flags & FLAG_REALTIME != 0
    }

    /// The bytes of the fork for content.
    pub(super) fn data_fork(&self) -> &[u8] {
        self.core.data_fork.get(..self.fork).unwrap_or_default()
    }

    /// Major and minor number of a device: 14 bits and 18 bits.
    pub(super) fn device(&self, kind: FileType) -> Option<(u32, u32)> {
        let is_device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
        let number = be32(self.core.data_fork.get(..index(4))?, 0);
        is_device.then_some((number >> 18 & 0x3FFF, number & 0x3_FFFF))
    }
}
