//! Why a long operation failed.

use std::io;
use std::path::PathBuf;

use crate::ErrorKind;
use crate::device::DeviceError;
use crate::image::{CreateError, OpenError};
use crate::storage::{StorageError, io_kind};

/// Why a long operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpsError {
    /// A source can't be read.
    #[error("cannot read the source")]
    Source(#[source] DeviceError),
    /// The destination's file can't be made or named.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The destination can't be an image of this size.
    #[error("cannot create {}", path.display())]
    Create {
        /// The destination.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CreateError,
    },
    /// The destination, just created, can't be opened.
    #[error("cannot open {}, which was just created", path.display())]
    Open {
        /// The destination.
        path: PathBuf,
        /// The cause.
        #[source]
        source: OpenError,
    },
    /// The destination can't be written.
    #[error("cannot write {}", path.display())]
    Destination {
        /// The destination.
        path: PathBuf,
        /// The cause.
        #[source]
        source: DeviceError,
    },
    /// A disk that is there has no room for the source.
    #[error("{} has {size} bytes, and {needed} are needed: nothing was written", path.display())]
    TargetTooSmall {
        /// The destination.
        path: PathBuf,
        /// Bytes on it.
        size: u64,
        /// Bytes of the source.
        needed: u64,
    },
    /// The output stream can't be written.
    #[error("cannot write the output")]
    Output(#[source] io::Error),
}

impl OpsError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(source) | Self::Destination { source, .. } => source.kind().into(),
            Self::Storage(error) => error.kind(),
            Self::Create { source, .. } => source.kind(),
            Self::Open { source, .. } => source.kind(),
            Self::TargetTooSmall { .. } => ErrorKind::SizeMismatch,
            Self::Output(source) => io_kind(source),
        }
    }
}
