//! Why a child does not get another parent.

use std::path::PathBuf;

use crate::ErrorKind;
use crate::chain::dependants::DependantsError;
use crate::chain::{ChainError, CreateChildError};
use crate::device::DeviceError;
use crate::format::UniqueId;
use crate::image::AmendError;
use crate::job::JobError;

/// Why a child does not get another parent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReparentError {
    /// A file can't be opened, or the chain would come back to itself.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Another job is open on the child or on the parent.
    #[error(transparent)]
    Job(#[from] JobError),
    /// What the child has to say of its parent can't be stored.
    #[error(transparent)]
    Link(#[from] CreateChildError),
    /// Others rely on the child, which would read something else, or that can't be known.
    #[error(transparent)]
    Dependants(#[from] DependantsError),
    /// The image is no differencing one.
    #[error("{} is a {disk_type} image: it has no parent", path.display())]
    NotDifferencing {
        /// The image.
        path: PathBuf,
        /// What it is.
        disk_type: String,
    },
    /// The parent is another disk than the child was made over.
    #[error(
        "{} was made over the disk {wanted}, and {} is the disk {found}: the child would read other bytes wherever \
         it relies on its parent",
        child.display(), parent.display()
    )]
    OtherDisk {
        /// The child.
        child: PathBuf,
        /// The identity it has recorded.
        wanted: UniqueId,
        /// The parent.
        parent: PathBuf,
        /// Its identity.
        found: UniqueId,
    },
    /// Child and parent have disks of different sizes.
    #[error("{} has {child_size} bytes and {} has {parent_size}", child.display(), parent.display())]
    OtherSize {
        /// The child.
        child: PathBuf,
        /// Bytes on its disk.
        child_size: u64,
        /// The parent.
        parent: PathBuf,
        /// Bytes on its disk.
        parent_size: u64,
    },
    /// The child can't be read over its present parents, or not be written.
    #[error("the child can't be read or written")]
    Child(#[source] DeviceError),
    /// The new parent can't be read.
    #[error("the new parent can't be read")]
    Parent(#[source] DeviceError),
    /// Footers and header can't be changed.
    #[error("the child's header can't be changed")]
    Amend(#[from] AmendError),
}

impl ReparentError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Chain(error) => error.kind(),
            Self::Job(error) => error.kind(),
            Self::Link(error) => error.kind(),
            Self::Dependants(error) => error.kind(),
            Self::NotDifferencing { .. } => ErrorKind::InvalidArgument,
            Self::OtherDisk { .. } => ErrorKind::ParentMismatch,
            Self::OtherSize { .. } => ErrorKind::SizeMismatch,
            Self::Child(error) | Self::Parent(error) => error.kind().into(),
            Self::Amend(error) => error.kind(),
        }
    }
}
