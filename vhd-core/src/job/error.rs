//! Why a job can't begin, or go on.

use std::path::PathBuf;

use super::JobKind;
use crate::ErrorKind;
use crate::record::RecordError;
use crate::storage::StorageError;

/// Why a job can't begin, or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JobError {
    /// Another job on the image has begun and has not ended.
    #[error(
        "{} belongs to an unfinished {kind}, recorded in {}: finish it first ({})",
        image.display(), record.display(), kind.remedy(record)
    )]
    Pending {
        /// The image.
        image: PathBuf,
        /// The job.
        kind: JobKind,
        /// Its record.
        record: PathBuf,
    },
    /// A record names a file that does not name the record.
    #[error(
        "{} names {}, which has no marker that leads back to it ({}.job): the record was made up, or copied from \
         another place; nothing is done with it. Check that file, and remove the record if it is not of these images",
        record.display(), image.display(), image.display()
    )]
    Unproven {
        /// The record.
        record: PathBuf,
        /// The file.
        image: PathBuf,
    },
    /// A marker or a record can't be read: whether a job is open nobody knows.
    #[error("whether a job on {} is unfinished can't be told: remove the file if none is", image.display())]
    Unreadable {
        /// The image.
        image: PathBuf,
        /// The cause.
        #[source]
        source: Box<RecordError>,
    },
    /// A marker can't be written, or a record not be removed.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A directory can't be locked, or a file not be removed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

impl JobError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Pending { .. } => ErrorKind::JobPending,
            Self::Unproven { .. } => ErrorKind::RecordDamaged,
            Self::Unreadable { source, .. } => source.kind(),
            Self::Record(source) => source.kind(),
            Self::Storage(error) => error.kind(),
        }
    }
}
