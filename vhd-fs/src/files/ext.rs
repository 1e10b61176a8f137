//! ext2, ext3 and ext4, read by the crate ferrosys.

use ferrosys::crc32c;
use ferrosys::ext::ondisk::FileType as DirFileType;
use ferrosys::ext::ondisk::Inode;
use ferrosys::ext::{OpenOptions, Reader};

use super::entry::{Entry, FileType, Metadata, Node};
use super::ferro::{failed, open_in_spite_of_damage, time};
use super::region::Region;
use super::{FileError, FileSystem};
use crate::bytes::le32;

const ROOT_INODE: u64 = 2;
/// The superblock, and what of it is looked at here (Linux `fs/ext4/ext4.h`, `struct ext4_super_block`).
const SUPERBLOCK_AT: u64 = 1024;
const SUPERBLOCK_LEN: u64 = 1024;
const COMPAT: usize = 0x5C;
const HAS_JOURNAL: u32 = 0x4;
const INCOMPAT: usize = 0x60;
const NEEDS_RECOVERY: u32 = 0x4;
const EXTENTS: u32 = 0x40;
const RO_COMPAT: usize = 0x64;
const METADATA_CSUM: u32 = 0x400;
const CHECKSUM: usize = 0x3FC;

pub(super) struct Ext {
    reader: Reader<Region>,
    format: &'static str,
    notes: Vec<String>,
    /// The last inode that was read: most requests are for one file.
    last: Option<(u32, Inode)>,
}

impl Ext {
    /// Opens the file system. A journal that is not empty is replayed into memory if `replay`; otherwise the state
    /// on the disk is shown, and a note says so.
    pub(super) fn open(region: Region, replay: bool) -> Result<Self, FileError> {
        let superblock = region.bytes_at(SUPERBLOCK_AT, SUPERBLOCK_LEN).map_err(FileError::Io)?;
        let format = format_name(&superblock);
        let mut notes = Vec::new();
        let dirty = le32(&superblock, INCOMPAT) & NEEDS_RECOVERY != 0;
        let region = if dirty && !replay {
            notes.push(format!(
                "the {format} was not unmounted: its journal is not replayed, the state on the disk is shown"
            ));
            region.patched(SUPERBLOCK_AT, without_recovery(superblock))
        } else {
            region
        };
        let reader = open_in_spite_of_damage(format, &mut notes, |policy| {
            Reader::open_with(region.clone(), &OpenOptions::new().policy(policy))
        })?;
        if let Some(journal) = reader.journal_replay() {
            notes.push(format!(
                "the {format} was not unmounted: {} transactions of its journal are replayed in memory",
                journal.transactions
            ));
        }
        Ok(Self {
            reader,
            format,
            notes,
            last: None,
        })
    }

    fn inode(&mut self, node: Node) -> Result<Inode, FileError> {
        let number = u32::try_from(node.0).map_err(|_| FileError::NotFound)?;
        if let Some((last, inode)) = &self.last
            && *last == number
        {
            return Ok(inode.clone());
        }
        let inode = self.reader.inode(number).map_err(|e| failed(self.format, e))?;
        self.last = Some((number, inode.clone()));
        Ok(inode)
    }

    fn kind(&self, inode: &Inode) -> Result<FileType, FileError> {
        let kind = FileType::from_mode(u32::from(inode.mode));
        kind.ok_or_else(|| FileError::damaged(self.format, format!("an inode has mode {:#o}", inode.mode)))
    }
}

impl FileSystem for Ext {
    fn format(&self) -> &'static str {
        self.format
    }

    fn label(&mut self) -> Option<String> {
        let name = self.reader.superblock().volume_name;
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        (end > 0).then(|| String::from_utf8_lossy(&name[..end]).into_owned())
    }

    fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    fn root(&self) -> Node {
        Node(ROOT_INODE)
    }

    fn list(&mut self, directory: Node) -> Result<Vec<Entry>, FileError> {
        let inode = self.inode(directory)?;
        if self.kind(&inode)? != FileType::Directory {
            return Err(FileError::NotDirectory);
        }
        let entries = self.reader.read_dir(&inode).map_err(|e| failed(self.format, e))?;
        Ok(entries
            .into_iter()
            .map(|entry| Entry {
                kind: dir_file_type(entry.file_type),
                name: entry.name,
                node: Node(u64::from(entry.inode)),
            })
            .collect())
    }

    fn metadata(&mut self, node: Node) -> Result<Metadata, FileError> {
        let inode = self.inode(node)?;
        let kind = self.kind(&inode)?;
        let content = matches!(kind, FileType::Regular | FileType::Symlink);
        let device = matches!(kind, FileType::CharDevice | FileType::BlockDevice);
        // Inodes of 128 bytes have no field for it, and show zero.
        let created = (inode.crtime.secs != 0).then(|| time(inode.crtime));
        Ok(Metadata {
            kind,
            size: if content { inode.size } else { 0 },
            mode: u32::from(inode.mode & 0o7777),
            uid: inode.uid,
            gid: inode.gid,
            links: u32::from(inode.links_count),
            accessed: time(inode.atime),
            modified: time(inode.mtime),
            changed: time(inode.ctime),
            created,
            device: device.then(|| self.reader.device(&inode)),
        })
    }

    fn read_at(&mut self, node: Node, buf: &mut [u8], offset: u64) -> Result<usize, FileError> {
        let inode = self.inode(node)?;
        self.kind(&inode)?.require_regular()?;
        self.reader
            .read_into(&inode, offset, buf)
            .map_err(|e| failed(self.format, e))
    }

    fn read_link(&mut self, node: Node) -> Result<Vec<u8>, FileError> {
        let inode = self.inode(node)?;
        if self.kind(&inode)? != FileType::Symlink {
            return Err(FileError::NotSymlink);
        }
        self.reader.read_symlink(&inode).map_err(|e| failed(self.format, e))
    }
}

/// Which of the three it is: ext4 has extents, ext3 a journal.
fn format_name(superblock: &[u8]) -> &'static str {
    let extents = le32(superblock, INCOMPAT) & EXTENTS != 0;
    let journal = le32(superblock, COMPAT) & HAS_JOURNAL != 0;
    match (extents, journal) {
        (true, _) => "ext4",
        (false, true) => "ext3",
        (false, false) => "ext2",
    }
}

/// The superblock as it is once the journal is empty: readers then take the blocks as they are on the disk.
fn without_recovery(mut superblock: Vec<u8>) -> Vec<u8> {
    let incompat = le32(&superblock, INCOMPAT) & !NEEDS_RECOVERY;
    superblock[INCOMPAT..INCOMPAT + 4].copy_from_slice(&incompat.to_le_bytes());
    if le32(&superblock, RO_COMPAT) & METADATA_CSUM != 0 {
        let checksum = crc32c(!0, &superblock[..CHECKSUM]);
        superblock[CHECKSUM..CHECKSUM + 4].copy_from_slice(&checksum.to_le_bytes());
    }
    superblock
}

fn dir_file_type(kind: DirFileType) -> Option<FileType> {
    match kind {
        DirFileType::RegFile => Some(FileType::Regular),
        DirFileType::Dir => Some(FileType::Directory),
        DirFileType::CharDev => Some(FileType::CharDevice),
        DirFileType::BlockDev => Some(FileType::BlockDevice),
        DirFileType::Fifo => Some(FileType::Fifo),
        DirFileType::Socket => Some(FileType::Socket),
        DirFileType::Symlink => Some(FileType::Symlink),
        _ => None,
    }
}
