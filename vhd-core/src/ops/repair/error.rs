//! Why an image is not repaired.

use std::io;

use crate::ErrorKind;
use crate::format::DiskType;
use crate::image::OpenError;
use crate::storage::{StorageError, io_kind};

/// Why an image is not repaired. Except for [`Io`](RepairError::Io) while changes are applied, nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// Nothing tells what the image was.
    #[error("it can't be repaired: {reason}")]
    NotRepairable {
        /// What is missing.
        reason: String,
    },
    /// The size of the disk is not known from the file.
    #[error("both footers are lost, and with them the size of the disk: {known}; say it with --size")]
    SizeUnknown {
        /// What is known about it.
        known: String,
    },
    /// What the caller says is not what the image certainly says.
    #[error(
        "the image says that it is a {disk_type} disk of {size} bytes, and is sound in this: leave --size and --type out"
    )]
    FactsContradict {
        /// The type in the footer.
        disk_type: DiskType,
        /// Bytes of the disk in the footer.
        size: u64,
    },
    /// The undo file can't be used.
    #[error("the undo file does not fit: {reason}")]
    UndoMismatch {
        /// Why not.
        reason: String,
    },
    /// The host file failed.
    #[error("cannot {operation} at {offset:#x}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Where in the file.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The undo file could not be written, read or removed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl RepairError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotRepairable { .. } => ErrorKind::NotRepairable,
            Self::SizeUnknown { .. } => ErrorKind::FactsMissing,
            Self::FactsContradict { .. } => ErrorKind::FactsContradict,
            Self::UndoMismatch { .. } => ErrorKind::UndoMismatch,
            Self::Io { source, .. } => io_kind(source),
            Self::Storage(error) => error.kind(),
        }
    }

    pub(super) fn hopeless(reason: impl Into<String>) -> Self {
        Self::NotRepairable { reason: reason.into() }
    }

    pub(super) fn mismatch(reason: impl Into<String>) -> Self {
        Self::UndoMismatch { reason: reason.into() }
    }

    /// Tells a failure of the host, which must not be taken for damage, from damage.
    pub(super) fn of_host(error: OpenError) -> Option<Self> {
        match error {
            OpenError::Read { offset, source, .. } => Some(Self::Io {
                operation: "read",
                offset,
                source,
            }),
            _ => None,
        }
    }
}

/// Says what was being done, and where, when the host file failed.
pub(super) trait Doing<T> {
    fn doing(self, operation: &'static str, offset: u64) -> Result<T, RepairError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, operation: &'static str, offset: u64) -> Result<T, RepairError> {
        self.map_err(|source| RepairError::Io {
            operation,
            offset,
            source,
        })
    }
}
