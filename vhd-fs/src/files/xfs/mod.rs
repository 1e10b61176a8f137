//! XFS. The crate xfs-core decodes superblock, inodes, extent records and directory blocks; what is here finds them. Its
//! own look-ups are not used: they take a whole disk in memory, and a block's number for its place.

mod extents;
mod geometry;
mod inode;

use xfs::{InodeFormat, read_block_dir, read_data_dir_block, read_shortform_dir, verify_dir_block_crc};

use self::extents::Extents;
use self::geometry::Geometry;
use self::inode::XfsInode;
use super::entry::{Entry, FileType, Metadata, Node, Time};
use super::region::Region;
use super::{FileError, FileSystem};
use crate::bytes::{be32, count, has, index};

pub(super) const FORMAT: &str = "XFS";

/// A directory's blocks of names lie below this byte of it, its indexes above (`XFS_DIR2_LEAF_OFFSET`).
const NAMES_END: u64 = 1 << 35;
/// Directory blocks with names: alone in a directory, or one of several; each of version 5 and of version 4.
const BLOCK_MAGICS: [&[u8]; 2] = [b"XDB3", b"XD2B"];
/// A symbolic link's target is at most this long.
const MAX_LINK: u64 = 1024;
/// The header of a block of a link's target in version 5: its magic and its length.
const LINK_MAGIC: &[u8] = b"XSLM";
const LINK_HEADER: u64 = 56;
const LINK_BYTES_AT: usize = 8;

pub(super) struct Xfs {
    region: Region,
    geometry: Geometry,
    label: Option<String>,
    /// The last file whose content was read: most requests are for one file.
    last: Option<(Node, u64, Extents)>,
}

impl Xfs {
    /// Opens the file system. Its log is not replayed: the state on the disk is shown.
    pub(super) fn open(region: Region) -> Result<Self, FileError> {
        let superblock = region.bytes_at(0, geometry::SUPERBLOCK_LEN).map_err(failed_io)?;
        Ok(Self {
            geometry: Geometry::parse(&superblock)?,
            label: geometry::label(&superblock),
            region,
            last: None,
        })
    }

    fn inode(&self, node: Node) -> Result<XfsInode, FileError> {
        XfsInode::read(&self.region, &self.geometry, node.0)
    }

    fn extents(&self, inode: &XfsInode) -> Result<Extents, FileError> {
        Extents::read(&self.region, &self.geometry, inode)
    }

    /// The names in one block of a directory.
    fn block_entries(&self, block: &[u8]) -> Result<Vec<xfs::DirEntry>, FileError> {
        if verify_dir_block_crc(block) == Some(false) {
            return Err(FileError::damaged(FORMAT, "a directory block has another checksum"));
        }
        let alone = BLOCK_MAGICS.iter().any(|magic| has(block, 0, magic));
        let read = if alone { read_block_dir } else { read_data_dir_block };
        read(block, self.geometry.has_ftype).map_err(failed)
    }

    fn names(&self, inode: &XfsInode) -> Result<Vec<xfs::DirEntry>, FileError> {
        if inode.core.format == InodeFormat::Local {
            return Ok(read_shortform_dir(inode.data_fork(), self.geometry.has_ftype));
        }
        let extents = self.extents(inode)?;
        let size = self.geometry.directory_block;
        let mut names = Vec::new();
        let mut block = vec![0; index(size)];
        for at in extents.mapped_steps(size).take_while(|&at| at < NAMES_END) {
            extents.read_at(&self.region, &mut block, at)?;
            names.append(&mut self.block_entries(&block)?);
        }
        Ok(names)
    }
}

impl FileSystem for Xfs {
    fn format(&self) -> &'static str {
        FORMAT
    }

    fn label(&mut self) -> Option<String> {
        self.label.clone()
    }

    fn notes(&self) -> Vec<String> {
        self.geometry.notes.clone()
    }

    fn root(&self) -> Node {
        Node(self.geometry.superblock.rootino)
    }

    fn list(&mut self, directory: Node) -> Result<Vec<Entry>, FileError> {
        let inode = self.inode(directory)?;
        if inode.kind()? != FileType::Directory {
            return Err(FileError::NotDirectory);
        }
        Ok(self
            .names(&inode)?
            .into_iter()
            .map(|entry| Entry {
                node: Node(entry.inode),
                kind: entry.ftype.and_then(directory_type),
                name: entry.name,
            })
            .collect())
    }

    fn metadata(&mut self, node: Node) -> Result<Metadata, FileError> {
        let inode = self.inode(node)?;
        let kind = inode.kind()?;
        let content = matches!(kind, FileType::Regular | FileType::Symlink);
        let core = &inode.core;
        Ok(Metadata {
            kind,
            size: if content { core.size } else { 0 },
            mode: u32::from(core.mode & 0o7777),
            uid: inode.uid,
            gid: inode.gid,
            links: inode.links,
            accessed: time(core.atime),
            modified: time(core.mtime),
            changed: time(core.ctime),
            created: core.crtime.map(time),
            device: inode.device(kind),
        })
    }

    fn read_at(&mut self, node: Node, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        if self.last.as_ref().is_none_or(|(last, ..)| *last != node) {
            let inode = self.inode(node)?;
            inode.kind()?.require_regular()?;
            if inode.is_realtime() {
                return Err(FileError::unsupported(FORMAT, "a file on a realtime device"));
            }
            self.last = Some((node, inode.core.size, self.extents(&inode)?));
        }
        let Some((_, size, extents)) = &self.last else {
            return Ok(0);
        };
        let take = index(size.saturating_sub(offset)).min(buf.len());
        extents.read_at(&self.region, &mut buf[..take], offset)?;
        Ok(take)
    }

    fn read_link(&mut self, node: Node) -> Result<Vec<u8>, FileError> {
        let inode = self.inode(node)?;
        if inode.kind()? != FileType::Symlink {
            return Err(FileError::NotSymlink);
        }
        let len = inode.core.size;
        if len > MAX_LINK {
            return Err(FileError::damaged(FORMAT, format!("a symbolic link of {len} bytes")));
        }
        if inode.core.format == InodeFormat::Local {
            let target = inode.data_fork().get(..index(len));
            return target
                .map(<[u8]>::to_vec)
                .ok_or_else(|| FileError::damaged(FORMAT, "a symbolic link leads out of its inode"));
        }
        remote_link(&self.region, &self.extents(&inode)?, &self.geometry, len)
    }
}

/// The target of a link that is kept in blocks. In version 5 each block has a header of its own.
fn remote_link(region: &Region, extents: &Extents, geometry: &Geometry, len: u64) -> Result<Vec<u8>, FileError> {
    let size = u64::from(geometry.superblock.blocksize);
    let mut target = Vec::new();
    let mut block = vec![0; index(size)];
    for at in extents.mapped_steps(size) {
        extents.read_at(region, &mut block, at)?;
        let left = index(len) - target.len();
        let (start, held) = if geometry.superblock.is_v5() {
            if !has(&block, 0, LINK_MAGIC) {
                return Err(FileError::damaged(FORMAT, "a symbolic link's block has no header"));
            }
            (index(LINK_HEADER), index(u64::from(be32(&block, LINK_BYTES_AT))))
        } else {
            (0, block.len())
        };
        let part = block.get(start..start.saturating_add(held.min(left)));
        target.extend(part.ok_or_else(|| FileError::damaged(FORMAT, "a symbolic link's block is too short"))?);
        if count(target.len()) == len {
            return Ok(target);
        }
    }
    Err(FileError::damaged(FORMAT, "a part of a symbolic link is missing"))
}

/// `XFS_DIR3_FT_*`.
fn directory_type(kind: u8) -> Option<FileType> {
    match kind {
        1 => Some(FileType::Regular),
        2 => Some(FileType::Directory),
        3 => Some(FileType::CharDevice),
        4 => Some(FileType::BlockDevice),
        5 => Some(FileType::Fifo),
        6 => Some(FileType::Socket),
        7 => Some(FileType::Symlink),
        _ => None,
    }
}

fn time(time: xfs::XfsTimestamp) -> Time {
    Time {
        seconds: time.secs,
        nanos: time.nsecs.min(999_999_999),
    }
}

fn failed(error: xfs::XfsError) -> FileError {
    FileError::damaged(FORMAT, error)
}

fn failed_io(error: std::io::Error) -> FileError {
    FileError::from_io(FORMAT, error)
}
