//! Why a file cannot be read.

use std::io;
use std::time::Duration;

/// Why a file system cannot be opened, or a file of it cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileError {
    /// The disk cannot be read.
    #[error("the disk cannot be read: {0}")]
    Io(#[source] io::Error),
    /// There is no file system that can be read here.
    #[error("no file system that can be read here: {0}")]
    Unrecognised(String),
    /// The file system contradicts its own rules.
    #[error("the {file_system} is damaged: {what}")]
    Damaged {
        /// The format.
        file_system: &'static str,
        /// What was found.
        what: String,
    },
    /// The file system uses something that is not supported.
    #[error("the {file_system} uses {what}, which cannot be read here")]
    Unsupported {
        /// The format.
        file_system: &'static str,
        /// What it uses.
        what: String,
    },
    /// There is no such name.
    #[error("no such file or directory")]
    NotFound,
    /// A part of a path is no directory.
    #[error("not a directory")]
    NotDirectory,
    /// The content of a directory was asked for.
    #[error("is a directory")]
    IsDirectory,
    /// The node is no symbolic link.
    #[error("not a symbolic link")]
    NotSymlink,
    /// The node has no content: a device, a pipe, a socket.
    #[error("not a regular file")]
    NotRegular,
    /// More symbolic links than a path may have.
    #[error("more than {limit} symbolic links in one path")]
    TooManyLinks {
        /// Links that are followed.
        limit: usize,
    },
    /// One operation read more of the disk than any operation of a sound file system needs.
    #[error("one operation on the {file_system} needs more than {limit} bytes of the disk: it is damaged")]
    OverBudget {
        /// The format.
        file_system: &'static str,
        /// Bytes that one operation may read.
        limit: u64,
    },
    /// One operation took longer than it may.
    #[error("one operation on the {file_system} took more than {} s: it is damaged, or the disk is slow", limit.as_secs())]
    TimedOut {
        /// The format.
        file_system: &'static str,
        /// The time one operation may take.
        limit: Duration,
    },
    /// The reader failed; that is a defect of the reader, and other file systems go on working.
    #[error("the reader of the {file_system} failed: {what}")]
    Panicked {
        /// The format.
        file_system: &'static str,
        /// What it said.
        what: String,
    },
}

/// The kinds of [`FileError`], for programs to branch on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileErrorKind {
    /// The disk cannot be read.
    Io,
    /// No file system, or one that is not supported.
    Unsupported,
    /// The file system is damaged, or its reader gave up.
    Damaged,
    /// There is no such name.
    NotFound,
    /// The node is of another type than the request needs.
    WrongType,
    /// More symbolic links than a path may have.
    TooManyLinks,
}

impl FileError {
    /// The kind.
    #[must_use]
    pub fn kind(&self) -> FileErrorKind {
        match self {
            Self::Io(_) => FileErrorKind::Io,
            Self::Unrecognised(_) | Self::Unsupported { .. } => FileErrorKind::Unsupported,
            Self::Damaged { .. } | Self::OverBudget { .. } | Self::TimedOut { .. } | Self::Panicked { .. } => {
                FileErrorKind::Damaged
            }
            Self::NotFound => FileErrorKind::NotFound,
            Self::NotDirectory | Self::IsDirectory | Self::NotSymlink | Self::NotRegular => FileErrorKind::WrongType,
            Self::TooManyLinks { .. } => FileErrorKind::TooManyLinks,
        }
    }

    /// Damage in a file system of this format.
    pub(super) fn damaged(file_system: &'static str, what: impl ToString) -> Self {
        let what = what.to_string();
        Self::Damaged { file_system, what }
    }

    /// Something that a file system of this format uses.
    pub(super) fn unsupported(file_system: &'static str, what: impl ToString) -> Self {
        let what = what.to_string();
        Self::Unsupported { file_system, what }
    }

    /// A read that failed. Reads never leave the partition: one that would is a structure that points out of it.
    pub(super) fn from_io(file_system: &'static str, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                Self::damaged(file_system, "a structure points behind the end of the partition")
            }
            _ => Self::Io(error),
        }
    }
}
