//! Why a merge can't be done.

use std::fmt;
use std::path::PathBuf;

use crate::ErrorKind;
use crate::chain::dependants::DependantsError;
use crate::chain::{ChainError, CreateChildError};
use crate::device::DeviceError;
use crate::format::UniqueId;
use crate::image::{AmendError, CreateError, OpenError};
use crate::job::JobError;
use crate::ops::reparent::ReparentError;
use crate::record::RecordError;
use crate::storage::StorageError;

/// Why a merge can't be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// An image of the chain can't be opened.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A file can't be opened, named or removed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// The record of an unfinished merge can't be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Another job is open on one of the images, or a record names a file that does not belong to the merge.
    #[error(transparent)]
    Job(#[from] JobError),
    /// What a child has to say of its new parent can't be said.
    #[error(transparent)]
    Link(#[from] CreateChildError),
    /// The image is not there, and no merge of it was begun that could be gone on with.
    #[error(
        "{} does not exist, and no merge of it is unfinished: one that was interrupted after it removed the image is complete",
        path.display()
    )]
    Gone {
        /// The image.
        path: PathBuf,
    },
    /// A disk can't go on in what is no VHD.
    #[error(
        "{} is written to, and {} is a raw disk, in which it can't go on: end the program that uses it first",
        child.display(), target.display()
    )]
    InUse {
        /// The image.
        child: PathBuf,
        /// What is below it.
        target: PathBuf,
    },
    /// The image has no parent that it could be merged into.
    #[error("{} is based on no other image: there is nothing to merge it into", path.display())]
    NoParent {
        /// The image.
        path: PathBuf,
    },
    /// The image is not based on the one that it is to be merged into.
    #[error("{} is not an ancestor of {}", ancestor.display(), child.display())]
    NotAncestor {
        /// The image.
        child: PathBuf,
        /// What was to be its ancestor.
        ancestor: PathBuf,
    },
    /// A file was named as a child of the image and is none.
    #[error("{} is not a child of {}, whose identity is {id}", path.display(), parent.display())]
    NotChild {
        /// What was to be a child.
        path: PathBuf,
        /// The image.
        parent: PathBuf,
        /// Its identity.
        id: UniqueId,
    },
    /// A layer that is to go is no regular file.
    #[error("{} is no regular file: what is merged into another image is removed", path.display())]
    NotRemovable {
        /// The layer.
        path: PathBuf,
    },
    /// The layers are of different sizes.
    #[error(
        "{} has {size} bytes and {} has {other_size}: make them equal with vhd resize first",
        path.display(),
        other.display()
    )]
    SizeMismatch {
        /// A layer.
        path: PathBuf,
        /// Bytes on its disk.
        size: u64,
        /// The layer below it.
        other: PathBuf,
        /// Bytes on its disk.
        other_size: u64,
    },
    /// Other images would read something else, or lose their parent.
    #[error(
        "other images depend on what the merge changes: {}; with --carry they are made to read the same after it",
        Dependants(dependants)
    )]
    HasChildren {
        /// Each with the layer that is its parent.
        dependants: Vec<Dependant>,
    },
    /// Other images would read what the users of the disk write from then on.
    #[error(
        "other images depend on what would be written to: {}; end the program that uses {} first",
        Dependants(dependants), child.display()
    )]
    ChildrenInUse {
        /// The image that is merged, and is written to.
        child: PathBuf,
        /// Each with the layer that is its parent.
        dependants: Vec<Dependant>,
    },
    /// A layer is frozen by a snapshot, a child of one is damaged, or whether there are others can't be known.
    #[error(transparent)]
    Dependants(#[from] DependantsError),
    /// A merge is unfinished that has to be finished first.
    #[error(
        "an unfinished merge of {} into {} is recorded in {}: finish that one first",
        child.display(), target.display(), record.display()
    )]
    Unfinished {
        /// The record.
        record: PathBuf,
        /// What is merged.
        child: PathBuf,
        /// Into what.
        target: PathBuf,
    },
    /// A file is not the one that an unfinished merge began with.
    #[error("{}: {what}", path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What was expected and found.
        what: String,
    },
    /// A disk can't be read or written.
    #[error("{}", path.display())]
    Device {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: DeviceError,
    },
    /// A child can't be opened to be pointed to its new parent.
    #[error("{} is not a usable VHD", path.display())]
    Child {
        /// The child.
        path: PathBuf,
        /// The rule that it breaks.
        #[source]
        source: OpenError,
    },
    /// A child of another layer can't take over what it reads.
    #[error("{} can't be carried along", path.display())]
    Carry {
        /// The child.
        path: PathBuf,
        /// The cause.
        #[source]
        source: ReparentError,
    },
    /// A child can't be pointed to its new parent.
    #[error("{} can't be pointed to its new parent", path.display())]
    Relink {
        /// The child.
        path: PathBuf,
        /// The cause.
        #[source]
        source: AmendError,
    },
    /// The new image can't be created.
    #[error("cannot create {}", path.display())]
    Create {
        /// The image.
        path: PathBuf,
        /// The cause.
        #[source]
        source: CreateError,
    },
    /// A new image was being written when it was told to stop: nothing is left of it.
    #[error("interrupted: nothing was changed, and nothing is kept of {}", path.display())]
    Cancelled {
        /// The image.
        path: PathBuf,
    },
}

/// An image that depends on a layer which the merge changes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dependant {
    /// The image.
    pub path: PathBuf,
    /// The layer that is its parent.
    pub parent: PathBuf,
}

struct Dependants<'a>(&'a [Dependant]);

impl fmt::Display for Dependants<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Dependant { path, parent }) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { ", " };
            write!(f, "{separator}{} (a child of {})", path.display(), parent.display())?;
        }
        Ok(())
    }
}

impl MergeError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Chain(error) => error.kind(),
            Self::Storage(error) => error.kind(),
            Self::Record(error) => error.kind(),
            Self::Job(error) => error.kind(),
            Self::Link(error) => error.kind(),
            Self::Gone { .. } => ErrorKind::NotFound,
            Self::InUse { .. } => ErrorKind::InUse,
            Self::NoParent { .. } | Self::NotAncestor { .. } | Self::NotChild { .. } => ErrorKind::NotRelated,
            Self::NotRemovable { .. } => ErrorKind::InvalidArgument,
            Self::SizeMismatch { .. } => ErrorKind::SizeMismatch,
            Self::Dependants(error) => error.kind(),
            Self::HasChildren { .. } | Self::ChildrenInUse { .. } => ErrorKind::HasChildren,
            Self::Unfinished { .. } => ErrorKind::JobPending,
            Self::Changed { .. } => ErrorKind::Changed,
            Self::Device { source, .. } => source.kind().into(),
            Self::Child { source, .. } => source.kind(),
            Self::Carry { source, .. } => source.kind(),
            Self::Relink { source, .. } => source.kind(),
            Self::Create { source, .. } => source.kind(),
            Self::Cancelled { .. } => ErrorKind::Cancelled,
        }
    }
}
