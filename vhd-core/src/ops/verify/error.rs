//! Why digests are not recorded or verified.

use std::io;
use std::path::{Path, PathBuf};

use crate::ErrorKind;
use crate::device::DeviceError;
use crate::format::UniqueId;
use crate::storage::StorageError;

/// Why digests are not recorded or verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// A record that breaks a rule of its format, or is not what was written.
    #[error("the digest record {} is damaged at {offset:#x}: {reason}", path.display())]
    Damaged {
        /// The record.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What was found, and what was expected.
        reason: String,
    },
    /// A record that a later program wrote.
    #[error("the digest record {} has version {found}, and only {known} is known", path.display())]
    Version {
        /// The record.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The version that can be read.
        known: u32,
    },
    /// The record beside an image is of another disk.
    #[error("the digest record {} is of disk {recorded}, but {} is {found}", path.display(), image.display())]
    OtherDisk {
        /// The record.
        path: PathBuf,
        /// The identity it was made for.
        recorded: UniqueId,
        /// The image.
        image: PathBuf,
        /// Its identity.
        found: UniqueId,
    },
    /// The file was written to while its digests were made.
    #[error("{} was written to while it was read: nothing was recorded", path.display())]
    Changing {
        /// The file.
        path: PathBuf,
    },
    /// A layer can't be read.
    #[error("can't read {}", path.display())]
    Device {
        /// The layer's file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: DeviceError,
    },
    /// A record can't be read, written, or get its name.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// It was told to stop.
    #[error("interrupted: nothing was changed")]
    Cancelled,
}

impl VerifyError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Damaged { .. } => ErrorKind::DigestDamaged,
            Self::Version { .. } => ErrorKind::RecordUnknown,
            Self::OtherDisk { .. } => ErrorKind::DigestOtherDisk,
            Self::Changing { .. } => ErrorKind::ContentChanged,
            Self::Device { source, .. } => source.kind().into(),
            Self::Storage(error) => error.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
        }
    }
}

/// Says what was being done with which file when the host failed.
pub(super) trait Doing<T> {
    fn doing(self, operation: &'static str, path: &Path) -> Result<T, VerifyError>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, operation: &'static str, path: &Path) -> Result<T, VerifyError> {
        self.map_err(|source| StorageError::at(path, operation, source).into())
    }
}
