//! Failures of the host-file layer.

use std::io;
use std::path::{Path, PathBuf};

use super::{Access, LockHolder};
use crate::ErrorKind;

/// Why a host file could not be opened, locked or given its name.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The file, or a directory on its path, does not exist.
    #[error("{path} does not exist")]
    NotFound {
        /// The file asked for.
        path: PathBuf,
    },

    /// The host file system failed.
    #[error("can't {operation} {path}")]
    Io {
        /// The file or directory it happened to.
        path: PathBuf,
        /// What was tried: a verb that takes the path as its object.
        operation: &'static str,
        /// The system's reason.
        source: io::Error,
    },

    /// Another handle, of this or another process, uses the image in a way that excludes this one.
    #[error("can't open {path} for {}: {} uses it", purpose(.wanted), holder_name(.holder))]
    Locked {
        /// The image.
        path: PathBuf,
        /// What it was to be opened for.
        wanted: Access,
        /// Who holds it, if that can be seen from here.
        holder: Option<LockHolder>,
    },

    /// The file system has no file locks, so nothing would keep a second writer away.
    #[error("can't open {path} for writing: its file system has no file locks to keep other writers away")]
    LocksUnsupported {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// The file, or the file system it is on, does not let this user write.
    #[error("can't open {path} for writing: the file or its file system is read-only")]
    ReadOnly {
        /// The image.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    /// A descriptor that was opened elsewhere, and not as it must be.
    #[error("can't use {path}: {reason}")]
    Descriptor {
        /// What it is called.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// There is a file of that name, which would have been replaced.
    #[error("{path} exists")]
    Exists {
        /// The name that is taken.
        path: PathBuf,
    },

    /// The file is a disk of a cluster volume, where it would be changed behind the volume's back.
    #[error(
        "{path} is on the cluster volume in {volume} and is changed through that alone: name it VOLUME:/PATH, \
         if this can be done there"
    )]
    OnVolume {
        /// The file.
        path: PathBuf,
        /// The directory of the volume.
        volume: PathBuf,
    },

    /// A directory, socket, pipe or character device, or a path that names no file.
    #[error("{path} is neither a regular file nor a block device")]
    NotAFile {
        /// The path given.
        path: PathBuf,
    },

    /// At each try the path led to another file after the lock was taken than before.
    #[error("{path} is being replaced again and again")]
    Replaced {
        /// The path given.
        path: PathBuf,
    },
}

impl StorageError {
    /// The kind of this failure, for a program to branch on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Io { source, .. } => io_kind(source),
            Self::Locked { .. } => ErrorKind::Locked,
            Self::LocksUnsupported { .. } => ErrorKind::Unsupported,
            Self::ReadOnly { .. } => ErrorKind::ReadOnly,
            Self::Descriptor { .. } => ErrorKind::Descriptor,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::OnVolume { .. } => ErrorKind::OnVolume,
            Self::NotAFile { .. } => ErrorKind::InvalidArgument,
            Self::Replaced { .. } => ErrorKind::Io,
        }
    }

    /// The failure of `operation` on `path`.
    pub(crate) fn at(path: &Path, operation: &'static str, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.to_path_buf(), source.into());
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            _ => Self::Io {
                path,
                operation,
                source,
            },
        }
    }
}

/// The kind of a failure of the host file system.
#[must_use]
pub fn io_kind(error: &io::Error) -> ErrorKind {
    vhd_block::io_kind(error).into()
}

fn purpose(access: &Access) -> &'static str {
    match access {
        Access::ReadOnly => "reading",
        Access::ReadWrite => "writing",
    }
}

fn holder_name(holder: &Option<LockHolder>) -> String {
    match holder {
        Some(holder) => holder.to_string(),
        None => "another process".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::Errno;

    fn io(errno: Errno) -> StorageError {
        StorageError::at(Path::new("a.vhd"), "grow", errno)
    }

    #[test]
    fn system_errors_keep_their_kind() {
        assert_eq!(io(Errno::NOSPC).kind(), ErrorKind::NoSpace);
        assert_eq!(io(Errno::DQUOT).kind(), ErrorKind::NoSpace);
        assert_eq!(io(Errno::NOENT).kind(), ErrorKind::NotFound);
        assert_eq!(io(Errno::ROFS).kind(), ErrorKind::ReadOnly);
        assert_eq!(io(Errno::NOTSUP).kind(), ErrorKind::Unsupported);
        assert_eq!(io(Errno::IO).kind(), ErrorKind::Io);
    }

    #[test]
    fn messages_name_the_file_and_leave_the_reason_to_the_source() {
        let error = io(Errno::NOSPC);
        assert_eq!(error.to_string(), "can't grow a.vhd");
        assert!(std::error::Error::source(&error).is_some());
    }

    #[test]
    fn a_lock_conflict_names_the_holder() {
        let mut error = StorageError::Locked {
            path: "a.vhd".into(),
            wanted: Access::ReadWrite,
            holder: Some(LockHolder {
                pid: 123,
                program: Some("qemu-io".to_owned()),
            }),
        };
        assert_eq!(
            error.to_string(),
            "can't open a.vhd for writing: qemu-io (pid 123) uses it"
        );
        if let StorageError::Locked { holder, wanted, .. } = &mut error {
            (*holder, *wanted) = (None, Access::ReadOnly);
        }
        assert_eq!(
            error.to_string(),
            "can't open a.vhd for reading: another process uses it"
        );
    }
}
