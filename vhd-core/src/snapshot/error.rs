//! Why an operation on snapshots stopped.

use std::path::PathBuf;

use crate::ErrorKind;
use crate::chain::dependants::DependantsError;
use crate::chain::{ChainError, CreateChildError};
use crate::device::DeviceError;
use crate::image::{AmendError, OpenError};
use crate::job::JobError;
use crate::ops::merge::MergeError;
use crate::record::RecordError;
use crate::storage::StorageError;

/// Why an operation on snapshots stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// No snapshot can be called so.
    #[error("a snapshot can't be called \"{name}\": {reason}")]
    Name {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// There is no snapshot of that name.
    #[error("{} has no snapshot \"{name}\"; {}", disk.display(), names(known))]
    Missing {
        /// The disk.
        disk: PathBuf,
        /// The name asked for.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// The present state descends from no snapshot.
    #[error("{} has no snapshot to go back to", disk.display())]
    NothingToRevertTo {
        /// The disk.
        disk: PathBuf,
    },
    /// The name is taken.
    #[error("{} has a snapshot \"{name}\" already", disk.display())]
    Exists {
        /// The disk.
        disk: PathBuf,
        /// The name.
        name: String,
    },
    /// Writes would be lost that no snapshot holds.
    #[error(
        "the present state ({}) has {bytes} bytes that no snapshot has: discard them, or take a snapshot first",
        leaf.display()
    )]
    Unsaved {
        /// The active leaf.
        leaf: PathBuf,
        /// Bytes written since the nearest snapshot that is listed.
        bytes: u64,
    },
    /// The manifest does not describe the files.
    #[error("{} is not true any more: {reason}; a rescan makes a new one from the images", manifest.display())]
    Stale {
        /// The manifest.
        manifest: PathBuf,
        /// What was expected, and what was found.
        reason: String,
    },
    /// Several leaves may be the one that is written to.
    #[error(
        "which of these is the disk's present state can't be told, name it: {}",
        paths(leaves)
    )]
    ActiveUnknown {
        /// The leaves.
        leaves: Vec<PathBuf>,
    },
    /// Images outside the tree rely on a file that would go or change, or that can't be known.
    #[error(transparent)]
    Dependants(#[from] DependantsError),
    /// An interrupted operation comes first.
    #[error("an operation on the snapshots of {} is unfinished: any command that changes them goes on with it", disk.display())]
    Pending {
        /// The disk.
        disk: PathBuf,
    },
    /// There is no manifest in a directory, or more than one.
    #[error("{} does not have the snapshots of exactly one disk", dir.display())]
    NoTree {
        /// The directory.
        dir: PathBuf,
    },
    /// The base is a child of an image that does not belong to the tree.
    #[error("{} is based on an image that does not belong to its snapshots, and would not be copied", path.display())]
    ParentElsewhere {
        /// The base.
        path: PathBuf,
    },
    /// A copy is not what was copied.
    #[error("{} does not read as what was copied", path.display())]
    Verification {
        /// The copy.
        path: PathBuf,
    },
    /// A copy can't be pointed to its parent.
    #[error("{} can't be pointed to its parent", path.display())]
    Relink {
        /// The copy.
        path: PathBuf,
        /// The cause.
        #[source]
        source: AmendError,
    },
    /// A job outside the snapshots is open on a file that would go or change.
    #[error(transparent)]
    Job(#[from] JobError),
    /// The manifest can't be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// A file can't be opened, locked or removed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A client of the disk that is in use reads it.
    #[error("{} is still being read by a client of the server that has the disk in use", path.display())]
    BeingRead {
        /// The file.
        path: PathBuf,
    },
    /// It was told to stop while a deleted snapshot was merged.
    #[error("interrupted while {} was merged; what was done is kept, and the next command goes on", child.display())]
    Interrupted {
        /// What is merged.
        child: PathBuf,
    },
    /// A deleted snapshot can't be merged.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// A new leaf can't be made.
    #[error(transparent)]
    Create(#[from] CreateChildError),
    /// The images can't be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// An image is not usable.
    #[error("{} is not a usable VHD", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The rule.
        #[source]
        source: OpenError,
    },
    /// An image can't be read or written.
    #[error("cannot use {}", path.display())]
    Device {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: DeviceError,
    },
}

impl SnapshotError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name { .. } => ErrorKind::InvalidArgument,
            Self::Missing { .. } | Self::NothingToRevertTo { .. } => ErrorKind::SnapshotMissing,
            Self::Exists { .. } => ErrorKind::SnapshotExists,
            Self::Unsaved { .. } => ErrorKind::SnapshotsUnsaved,
            Self::Stale { .. } | Self::ActiveUnknown { .. } => ErrorKind::ManifestStale,
            Self::Dependants(error) => error.kind(),
            Self::Pending { .. } => ErrorKind::JobPending,
            Self::NoTree { .. } => ErrorKind::NotFound,
            Self::ParentElsewhere { .. } => ErrorKind::Unsupported,
            Self::Verification { .. } => ErrorKind::Verification,
            Self::Relink { source, .. } => source.kind(),
            Self::Record(error) => error.kind(),
            Self::Job(error) => error.kind(),
            Self::Storage(error) => error.kind(),
            Self::Create(error) => error.kind(),
            Self::BeingRead { .. } => ErrorKind::Locked,
            Self::Interrupted { .. } => ErrorKind::Cancelled,
            Self::Merge(error) => error.kind(),
            Self::Chain(error) => error.kind(),
            Self::Image { source, .. } => source.kind(),
            Self::Device { source, .. } => source.kind().into(),
        }
    }
}

fn names(names: &[String]) -> String {
    if names.is_empty() {
        return "it has none at all".to_owned();
    }
    format!("it has \"{}\"", names.join("\", \""))
}

fn paths(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    names.join(", ")
}
