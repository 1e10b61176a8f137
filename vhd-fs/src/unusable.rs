//! Why the free space of a partition is not used.

use std::io;

use vhd_partition::TableError;

/// Why the free space of a partition, or of a whole disk, is not used. Nothing of it is touched then.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// It can't be read.
    #[error("it can't be read: {0}")]
    Io(#[from] io::Error),
    /// No file system that is known here.
    #[error("no known file system")]
    Unrecognised,
    /// It belongs to something else that knows what is free.
    #[error("{0}: only its own tools know what is free")]
    Container(&'static str),
    /// Signatures of two things.
    #[error("it looks like {0} and like {1}")]
    Ambiguous(&'static str, &'static str),
    /// Not unmounted cleanly, or to be checked.
    #[error("the {0} is not clean: {1}")]
    Dirty(&'static str, &'static str),
    /// A feature that is not known here.
    #[error("the {what} has features that are not known here: {bits:#x}")]
    UnknownFeatures {
        /// Which file system, and which set of features.
        what: &'static str,
        /// The unknown ones.
        bits: u32,
    },
    /// A known feature that is not supported.
    #[error("the {0} has {1}, which is not supported")]
    Unsupported(&'static str, &'static str),
    /// It contradicts itself, or leads out of the partition.
    #[error("the {0} is damaged: {1}")]
    Damaged(&'static str, &'static str),
    /// The partition table leaves doubt about where this partition is, or where all are.
    #[error("the partition table is in doubt: {0}")]
    Table(String),
}

impl From<TableError> for Unusable {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Read(error) => Self::Io(error),
            error => Self::Table(error.to_string()),
        }
    }
}

impl Unusable {
    /// A stable name for the reason.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Io(_) => "io",
            Self::Unrecognised => "unrecognised",
            Self::Container(_) => "container",
            Self::Ambiguous(..) => "ambiguous",
            Self::Dirty(..) => "dirty",
            Self::UnknownFeatures { .. } => "unknown-features",
            Self::Unsupported(..) => "unsupported",
            Self::Damaged(..) => "damaged",
            Self::Table(_) => "partition-table",
        }
    }
}
