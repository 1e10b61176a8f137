//! Why an image is not compacted.

use crate::ErrorKind;
use crate::device::DeviceError;

/// Why an image is not compacted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompactError {
    /// A fixed or raw image.
    #[error("a fixed or raw image has no blocks that could go: convert it to a dynamic one")]
    NoBlocks,
    /// The footer says that a virtual machine is saved with the disk.
    #[error("a virtual machine is saved with this disk (saved state), and the format forbids to compact it then")]
    SavedState,
    /// Xen's map of complete blocks would not be true any more.
    #[error("the image has a map of complete blocks (Xen batmap), which can't be changed together with the table")]
    Batmap,
    /// A differencing image that was opened without its parents.
    #[error("a differencing image can't be compacted without its parents")]
    ParentsUnknown,
    /// It was told to stop before anything was changed.
    #[error("interrupted: nothing was changed")]
    Cancelled,
    /// The disk can't be read or the image not be changed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl CompactError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoBlocks => ErrorKind::NoBlocks,
            Self::SavedState => ErrorKind::SavedState,
            Self::Batmap => ErrorKind::ForeignMetadata,
            Self::ParentsUnknown => ErrorKind::ParentMissing,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Device(error) => error.kind().into(),
        }
    }
}
