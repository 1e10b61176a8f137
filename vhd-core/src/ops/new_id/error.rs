//! Why an image does not get a new identity.

use std::path::PathBuf;

use crate::ErrorKind;
use crate::chain::dependants::DependantsError;
use crate::chain::{ChainError, CreateChildError};
use crate::format::UniqueId;
use crate::image::AmendError;
use crate::job::JobError;
use crate::record::RecordError;
use crate::storage::StorageError;

/// Why an image does not get a new identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NewIdError {
    /// A file can't be opened.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// What a child has to say of its parent can't be stored.
    #[error(transparent)]
    Link(#[from] CreateChildError),
    /// Another job is open on one of the files, or a record names a file that does not belong to the image.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The record can't be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The record can't be removed, or a time not be set.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file can't be changed.
    #[error("cannot change the identity in {}", path.display())]
    Amend {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: AmendError,
    },
    /// A named child is another image's.
    #[error("{} is not based on {}, which is the disk {id}: {reason}", child.display(), image.display())]
    NotAChild {
        /// The named file.
        child: PathBuf,
        /// The image.
        image: PathBuf,
        /// Its identity.
        id: UniqueId,
        /// What the file is instead.
        reason: String,
    },
    /// A manifest of snapshots refers to the image, or whether there are children can't be known.
    #[error(transparent)]
    Dependants(#[from] DependantsError),
    /// There are children that were not named.
    #[error(
        "{} has children that are not named: {}; a child that is not named looks for another file with the old identity",
        image.display(), list(children)
    )]
    OtherChildren {
        /// The image.
        image: PathBuf,
        /// The children that were not named.
        children: Vec<PathBuf>,
    },
    /// A file's name can't be recorded.
    #[error("the name of {} is not Unicode, and can't be recorded", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// An earlier change is not finished, and says something else.
    #[error("{} says that an unfinished change of {} {reason}", record.display(), image.display())]
    Unfinished {
        /// The image.
        image: PathBuf,
        /// The record of the unfinished change.
        record: PathBuf,
        /// What is in the way.
        reason: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}

impl NewIdError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Chain(error) => error.kind(),
            Self::Link(error) => error.kind(),
            Self::Record(error) => error.kind(),
            Self::Job(error) => error.kind(),
            Self::Storage(error) => error.kind(),
            Self::Amend { source, .. } => source.kind(),
            Self::NotAChild { .. } => ErrorKind::ParentMismatch,
            Self::Dependants(error) => error.kind(),
            Self::OtherChildren { .. } => ErrorKind::HasChildren,
            Self::Name { .. } => ErrorKind::InvalidArgument,
            Self::Unfinished { .. } => ErrorKind::RecordDamaged,
        }
    }
}
