//! What a file system says of its files.

use std::fmt;

use super::FileError;

/// A file or directory of an open file system: an inode or record number where the format has one.
///
/// The number is stable as long as the file system is open, and it is what a mount shows as the inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Node(pub u64);

/// What kind of file a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Bytes.
    Regular,
    /// Names of other nodes.
    Directory,
    /// The path of another file.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl FileType {
    /// The type that the upper four bits of a mode name, as in `stat(2)`.
    pub(super) fn from_mode(mode: u32) -> Option<Self> {
        match mode >> 12 & 0xF {
            0x1 => Some(Self::Fifo),
            0x2 => Some(Self::CharDevice),
            0x4 => Some(Self::Directory),
            0x6 => Some(Self::BlockDevice),
            0x8 => Some(Self::Regular),
            0xA => Some(Self::Symlink),
            0xC => Some(Self::Socket),
            _ => None,
        }
    }

    /// Only regular files have content that can be read.
    pub(super) fn require_regular(self) -> Result<(), FileError> {
        match self {
            Self::Regular => Ok(()),
            Self::Directory => Err(FileError::IsDirectory),
            _ => Err(FileError::NotRegular),
        }
    }

    /// A stable name, for reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Regular => "file",
            Self::Directory => "directory",
            Self::Symlink => "symlink",
            Self::CharDevice => "char-device",
            Self::BlockDevice => "block-device",
            Self::Fifo => "fifo",
            Self::Socket => "socket",
        }
    }
}

impl fmt::Display for FileType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name in a directory. `.` and `..` are never among them, and a name has no `/` and no NUL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name, in the bytes of the file system; UTF-8 where the format defines an encoding.
    pub name: Vec<u8>,
    /// What it names.
    pub node: Node,
    /// Its type, where the directory says it.
    pub kind: Option<FileType>,
}

/// The entries of a directory by names that can be used: those of the directory itself and of its parent are left out. A name
/// that no file can have (empty, or with `/` or NUL) would lead whoever uses it as a path out of its directory: as for
/// the kernel, the directory is damaged then.
pub(super) fn with_usable_names(file_system: &'static str, mut entries: Vec<Entry>) -> Result<Vec<Entry>, FileError> {
    entries.retain(|entry| entry.name != b"." && entry.name != b"..");
    let odd = |name: &[u8]| name.is_empty() || name.contains(&b'/') || name.contains(&0);
    match entries.iter().find(|entry| odd(&entry.name)) {
        None => Ok(entries),
        Some(entry) => {
            let name = entry.name.escape_ascii();
            let what = format!("a directory has the name \"{name}\", which no file can have");
            Err(FileError::damaged(file_system, what))
        }
    }
}

/// A point in time: seconds since 1970 in UTC, and nanoseconds below a second.
///
/// FAT has local times; they are taken as UTC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// What is known of a node besides its content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Its type.
    pub kind: FileType,
    /// Bytes of content; 0 for what has none.
    pub size: u64,
    /// The lower twelve bits of the mode. Formats without modes show 0644 and 0755, without the bits for writing
    /// where a file is marked as read-only.
    pub mode: u32,
    /// The owner, 0 where the format has none.
    pub uid: u32,
    /// The group, 0 where the format has none.
    pub gid: u32,
    /// Names of this node.
    pub links: u32,
    /// The last access.
    pub accessed: Time,
    /// The last change of the content.
    pub modified: Time,
    /// The last change of content or metadata.
    pub changed: Time,
    /// The creation, where it is recorded.
    pub created: Option<Time>,
    /// Major and minor number of a device.
    pub device: Option<(u32, u32)>,
}

/// The mode of a node in a format that has none.
pub(super) fn invented_mode(kind: FileType, read_only: bool) -> u32 {
    let mode = if kind == FileType::Directory { 0o755 } else { 0o644 };
    if read_only { mode & !0o222 } else { mode }
}
