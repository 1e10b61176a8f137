//! Why an image for Azure can't be made.

use std::path::PathBuf;

use crate::ErrorKind;
use crate::ops::OpsError;
use crate::partition::PartitionError;

/// Why an image for Azure can't be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AzureError {
    /// The disk can't be copied.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// The disk's partition table can't be moved with its end.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// What was written is not what was to be written.
    #[error("{} was written and does not read as it must: {what}", path.display())]
    Verification {
        /// The destination, which does not exist.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl AzureError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Ops(error) => error.kind(),
            Self::Partition(error) => error.kind(),
            Self::Verification { .. } => ErrorKind::Verification,
        }
    }
}
