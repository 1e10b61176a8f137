//! Why a disk is not resized.

use std::fmt;
use std::path::PathBuf;

use super::TailUse;
use crate::ErrorKind;
use crate::chain::ChainError;
use crate::chain::dependants::DependantsError;
use crate::device::DeviceError;
use crate::image::{AmendError, CreateError, OpenError};
use crate::job::JobError;
use crate::partition::PartitionError;
use crate::record::RecordError;
use crate::storage::StorageError;

/// Why a disk is not resized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ResizeError {
    /// Another job is open on one of the images, or a record names a file that does not belong to the tree.
    #[error(transparent)]
    Job(#[from] JobError),
    /// It can only be done while nobody uses the disk.
    #[error("{} can't {what} while the disk is in use: end the program that uses it first", path.display())]
    InUse {
        /// The image.
        path: PathBuf,
        /// What can't be done.
        what: &'static str,
    },
    /// No disk can have the size.
    #[error(transparent)]
    Size(#[from] CreateError),
    /// The image's table would need more entries than are supported.
    #[error("the disk would have {blocks} blocks of {block_size} bytes, and at most {maximum} are supported")]
    TooManyBlocks {
        /// Blocks that the disk would have.
        blocks: u64,
        /// Bytes in a block.
        block_size: u64,
        /// The most blocks.
        maximum: u64,
    },
    /// A raw file has no metadata to change.
    #[error("{} is a raw file: only VHD images are resized", path.display())]
    Raw {
        /// The file.
        path: PathBuf,
    },
    /// A block device has the length that it has.
    #[error("{} is a block device, whose length is not changed here", path.display())]
    BlockDevice {
        /// The device.
        path: PathBuf,
    },
    /// The footer of a fixed image does not stand directly behind its disk.
    #[error("the footer stands at {found:#x}, expected at {expected:#x}, the end of the disk: convert the image first")]
    FooterPlace {
        /// Where the footer is.
        found: u64,
        /// Where the disk ends.
        expected: u64,
    },
    /// The footer says that a virtual machine is saved with the disk.
    #[error("a virtual machine is saved with this disk (saved state), and the format forbids to resize it then")]
    SavedState,
    /// Xen's map of complete blocks would not be true any more.
    #[error("the image has a map of complete blocks (Xen batmap), which can't be changed together with the table")]
    Batmap,
    /// The disk is larger than what was asked for.
    #[error(
        "the disk has {disk_size} bytes: making it {size} bytes cuts its end off, which is done only when asked for (--shrink)"
    )]
    ShrinkNotAsked {
        /// Bytes on the disk.
        disk_size: u64,
        /// Bytes asked for.
        size: u64,
    },
    /// What would be cut off is in use.
    #[error("{}: the part from byte {size} on can't be cut off:{}", path.display(), Uses(uses))]
    TailInUse {
        /// The image.
        path: PathBuf,
        /// Bytes asked for.
        size: u64,
        /// What is there; the first ones only.
        uses: Vec<TailUse>,
    },
    /// Others rely on the image, or that can't be known.
    #[error("images of one tree have one size, and --tree resizes them all: {0}")]
    Dependants(#[from] DependantsError),
    /// The image is one of several that must have one size.
    #[error("{}: {reason}: images of one tree have one size, and --tree resizes them all", path.display())]
    NeedsTree {
        /// The image.
        path: PathBuf,
        /// What ties it to others.
        reason: String,
    },
    /// The images of a tree differ in size already.
    #[error("{} has {found} bytes and {} has {expected}: images of a tree that differ in size are not resized together", path.display(), base.display())]
    SizesDiffer {
        /// One image.
        path: PathBuf,
        /// Bytes on its disk.
        found: u64,
        /// The base of the tree.
        base: PathBuf,
        /// Bytes on its disk.
        expected: u64,
    },
    /// An image says that it belongs to the tree, and its parent is not found where it says.
    #[error("{} is based on an image of this tree but does not lead to it: mend that first (vhd reparent)", path.display())]
    Stray {
        /// The image.
        path: PathBuf,
    },
    /// A GPT can't be moved in an image that others are based on.
    #[error("{}: other images are based on it, so its partition table is not written: use --fix-gpt on a leaf", path.display())]
    GptOfParent {
        /// The image.
        path: PathBuf,
    },
    /// The tails of all images of a tree hold its GPT.
    #[error(
        "a tree can't be made smaller with --fix-gpt: each of its images has the backup of the partition table at the end"
    )]
    GptOfTree,
    /// An earlier resize was interrupted.
    #[error("a resize to {size} bytes was interrupted ({}): finish it first: vhd resize {} {size}{}", record.display(), image.display(), if *tree { " --tree" } else { "" })]
    Unfinished {
        /// The record of it.
        record: PathBuf,
        /// The base of the tree, or the image.
        image: PathBuf,
        /// Bytes that it was to have.
        size: u64,
        /// It was a whole tree.
        tree: bool,
    },
    /// A file is not the one that an unfinished resize began with.
    #[error("{}: {reason}; an unfinished resize ({}) expects another", path.display(), record.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// What is different.
        reason: String,
        /// The record.
        record: PathBuf,
    },
    /// The file of a disk in use has another name by now, or none.
    #[error("the file of the disk is not {} any more, and what stands beside it counts: give it that name back", path.display())]
    Renamed {
        /// The name that it was opened by.
        path: PathBuf,
    },
    /// The name can't be put in a record.
    #[error("{} is no UTF-8 text, and an unfinished resize must be able to name it", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// It failed, and what was done could not be undone.
    #[error("{source}; undoing it failed too ({undoing}): free space or mend the cause, then run the same command again to finish ({} has what was being done)", record.display())]
    Stuck {
        /// The failure.
        source: Box<ResizeError>,
        /// The failure of undoing it.
        undoing: Box<ResizeError>,
        /// The record.
        record: PathBuf,
    },
    /// It was told to stop before anything was changed.
    #[error("interrupted: nothing was changed")]
    Cancelled,
    /// A file's failure.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What went wrong with it.
        #[source]
        source: Box<ResizeError>,
    },
    /// A chain can't be opened.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A file can't be opened or locked.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file is no usable image.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The record of a resize can't be read or written.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The partition table is not usable or can't be moved.
    #[error(transparent)]
    Partition(#[from] PartitionError),
    /// Footers and header can't be changed.
    #[error(transparent)]
    Amend(#[from] AmendError),
    /// An image can't be read or changed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl ResizeError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Size(error) => error.kind(),
            Self::InUse { .. } => ErrorKind::InUse,
            Self::Job(error) => error.kind(),
            Self::TooManyBlocks { .. } | Self::ShrinkNotAsked { .. } | Self::Name { .. } => ErrorKind::InvalidArgument,
            Self::Raw { .. } | Self::BlockDevice { .. } | Self::FooterPlace { .. } | Self::GptOfTree => {
                ErrorKind::Unsupported
            }
            Self::SavedState => ErrorKind::SavedState,
            Self::Batmap => ErrorKind::ForeignMetadata,
            Self::TailInUse { .. } => ErrorKind::TailInUse,
            Self::Dependants(error) => error.kind(),
            Self::NeedsTree { .. } | Self::Stray { .. } => ErrorKind::TiedSizes,
            Self::SizesDiffer { .. } => ErrorKind::SizeMismatch,
            Self::GptOfParent { .. } => ErrorKind::HasChildren,
            Self::Unfinished { .. } | Self::Changed { .. } => ErrorKind::ResizeUnfinished,
            Self::Renamed { .. } => ErrorKind::Changed,
            Self::Stuck { source, .. } | Self::File { source, .. } => source.kind(),
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Chain(error) => error.kind(),
            Self::Storage(error) => error.kind(),
            Self::Open(error) => error.kind(),
            Self::Record(error) => error.kind(),
            Self::Partition(error) => error.kind(),
            Self::Amend(error) => error.kind(),
            Self::Device(error) => error.kind().into(),
        }
    }

    /// Says which file it was.
    pub(super) fn about(self, path: &std::path::Path) -> Self {
        Self::File {
            path: path.to_owned(),
            source: Box::new(self),
        }
    }
}

struct Uses<'a>(&'a [TailUse]);

impl fmt::Display for Uses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|used| write!(f, "\n  {used}"))
    }
}
