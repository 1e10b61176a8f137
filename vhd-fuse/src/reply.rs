//! Attributes and errors as the kernel takes them.

use fuser::{Errno, FileAttr, FileType, INodeNo};
use vhd_block::{DeviceError, ErrorKind};

use crate::mount::Shown;
use crate::{Kind, Node, NodeError};

/// Bytes in a unit of `st_blocks`.
const BLOCK: u64 = 512;
/// Bytes of a request that is cheap, for `st_blksize`.
const PREFERRED: u32 = 128 << 10;

/// `DT_DIR` and the like.
pub(crate) fn directory_entry_type(kind: &Kind) -> u8 {
    match kind {
        Kind::Directory(_) => 4,
        Kind::File(_) => 8,
        Kind::Symlink(_) => 10,
        Kind::Special { file_type, .. } => u8::try_from(file_type >> 12).unwrap_or(0),
    }
}

/// The type for an entry of a directory; one that is not known is shown as a file until it is looked at.
pub(crate) fn entry_type(file_type: u8) -> FileType {
    match file_type {
        1 => FileType::NamedPipe,
        2 => FileType::CharDevice,
        4 => FileType::Directory,
        6 => FileType::BlockDevice,
        10 => FileType::Symlink,
        12 => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

/// What `stat` shows of a node.
pub(crate) fn attributes(number: u64, node: &Node, shown: &Shown) -> FileAttr {
    let size = match &node.kind {
        Kind::File(content) => content.size(),
        Kind::Symlink(target) => vhd_block::units::u64_from(target.len()),
        _ => 0,
    };
    let stored = match &node.kind {
        Kind::File(content) => content.stored(),
        _ => 0,
    };
    let device = match node.kind {
        Kind::Special {
            device: (major, minor), ..
        } => (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & !0xFF) << 12,
        _ => 0,
    };
    let (uid, gid) = node.stat.owner.unwrap_or(shown.owner);
    FileAttr {
        ino: INodeNo(number),
        size,
        blocks: stored.div_ceil(BLOCK),
        atime: node.stat.accessed,
        mtime: node.stat.modified,
        ctime: node.stat.changed,
        crtime: node.stat.changed,
        kind: entry_type(directory_entry_type(&node.kind)),
        perm: node.stat.mode & !shown.umask,
        nlink: node.stat.links,
        uid: shown.uid.unwrap_or(uid),
        gid: shown.gid.unwrap_or(gid),
        rdev: device,
        blksize: PREFERRED,
        flags: 0,
    }
}

/// The one table from failures to `errno`.
pub(crate) fn errno(error: &NodeError) -> Errno {
    match error {
        NodeError::NotFound => Errno::ENOENT,
        NodeError::Unreadable(_) => Errno::EIO,
        NodeError::Unsupported(_) => Errno::EOPNOTSUPP,
        NodeError::ReadOnly => Errno::EROFS,
        NodeError::Disk(error) => device_errno(error),
    }
}

fn device_errno(error: &DeviceError) -> Errno {
    match error.kind() {
        ErrorKind::NoSpace | ErrorKind::ImageFull => Errno::ENOSPC,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::OutOfRange | ErrorKind::Misaligned | ErrorKind::InvalidArgument => Errno::EINVAL,
        ErrorKind::Unsupported | ErrorKind::NotFast => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}
