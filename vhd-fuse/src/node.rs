//! What a mount shows.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::sync::Arc;
use std::time::SystemTime;

use crate::Content;

/// Why a node cannot be had or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// There is no such node any more.
    #[error("no such file or directory")]
    NotFound,
    /// What is shown cannot be read, because of damage or a failure below.
    #[error("{0}")]
    Unreadable(String),
    /// It cannot be read here, although it may be sound.
    #[error("{0}")]
    Unsupported(String),
    /// It cannot be written.
    #[error("read-only")]
    ReadOnly,
    /// The disk failed.
    #[error(transparent)]
    Disk(#[from] vhd_block::DeviceError),
}

/// Owner, mode and times of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Permission bits; the mount takes away what its `umask` says.
    pub mode: u16,
    /// The owner, or the one of the mount.
    pub owner: Option<(u32, u32)>,
    /// Names of the node.
    pub links: u32,
    /// The last access.
    pub accessed: SystemTime,
    /// The last change of the content.
    pub modified: SystemTime,
    /// The last change of anything.
    pub changed: SystemTime,
}

impl Stat {
    /// A directory or file of the mount itself: not writable, and of one time.
    #[must_use]
    pub fn of_mount(kind: &Kind, time: SystemTime) -> Self {
        Self {
            mode: if matches!(kind, Kind::Directory(_)) {
                0o555
            } else {
                0o444
            },
            owner: None,
            links: 1,
            accessed: time,
            modified: time,
            changed: time,
        }
    }
}

/// What a node is.
#[derive(Clone)]
pub enum Kind {
    /// Names of other nodes.
    Directory(Arc<dyn Directory>),
    /// Bytes.
    File(Content),
    /// The path of another file, not followed here.
    Symlink(Vec<u8>),
    /// A device, pipe or socket, which is shown and cannot be opened: the upper four bits of its mode, and its number.
    Special {
        /// `S_IFBLK` and the like.
        file_type: u32,
        /// Major and minor number of a device.
        device: (u32, u32),
    },
}

/// A file or directory of a mount.
#[derive(Clone)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Owner, mode and times.
    pub stat: Stat,
    /// Extended attributes, without the prefix `user.`.
    pub attributes: Vec<(&'static str, String)>,
    /// Tells it from what had the same name before. What the kernel knows of that is then not shown for this.
    pub instance: u64,
}

impl Node {
    /// A node of the mount itself.
    #[must_use]
    pub fn of_mount(kind: Kind, time: SystemTime) -> Self {
        let stat = Stat::of_mount(&kind, time);
        Self {
            kind,
            stat,
            attributes: Vec::new(),
            instance: 0,
        }
    }

    /// The same, told from others that have had its name.
    #[must_use]
    pub fn instance(self, instance: u64) -> Self {
        Self { instance, ..self }
    }

    /// The same, writable by its owner.
    #[must_use]
    pub fn writable(mut self) -> Self {
        self.stat.mode |= 0o200;
        self
    }
}

/// A name in a directory, and whether it is a directory itself as far as that is known without looking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// The name: no `/`, not `.` nor `..`.
    pub name: OsString,
    /// `DT_DIR` and the like, or 0 where only the node itself says it.
    pub file_type: u8,
}

/// A directory of a mount. It may change while it is mounted.
pub trait Directory: Send + Sync {
    /// The names, in an order that stays the same while nothing changes.
    ///
    /// # Errors
    /// What reading meets; other directories go on working.
    fn names(&self) -> Result<Vec<Name>, NodeError>;

    /// The node of a name.
    ///
    /// # Errors
    /// [`NodeError::NotFound`] if there is no such name, and what reading meets.
    fn node(&self, name: &OsStr) -> Result<Node, NodeError>;
}

/// A directory whose names do not change.
#[derive(Default)]
pub struct Fixed(BTreeMap<OsString, Node>);

impl Fixed {
    /// An empty directory.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node, or replaces the one of that name.
    #[must_use]
    pub fn with(mut self, name: impl Into<OsString>, node: Node) -> Self {
        self.0.insert(name.into(), node);
        self
    }
}

impl Directory for Fixed {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        let names = self.0.iter().map(|(name, node)| Name {
            name: name.clone(),
            file_type: crate::reply::directory_entry_type(&node.kind),
        });
        Ok(names.collect())
    }

    fn node(&self, name: &OsStr) -> Result<Node, NodeError> {
        self.0.get(name).cloned().ok_or(NodeError::NotFound)
    }
}
