//! Why an image can't be opened or created.

use std::io;

use vhd_block::DeviceError;

use crate::ErrorKind;
use crate::format::FormatError;
use crate::storage::io_kind;
use crate::units::{BlockIndex, FileOffset};

/// Why an image can't be opened. Corruption is never reported for a failure to read, nor the reverse.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file could not be read.
    #[error("cannot read the {structure} at {offset:#x}")]
    Read {
        /// What was to be read.
        structure: &'static str,
        /// Where in the file.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file could not be written while its footers were restored.
    #[error("cannot restore the {structure} at {offset:#x}")]
    Restore {
        /// What was to be written.
        structure: &'static str,
        /// Where in the file.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A footer has to be restored, and the lease that allows it is gone (INV-06).
    #[error("the right to change this image's metadata is lost: {reason}")]
    FenceLost {
        /// What the lease said.
        reason: String,
    },
    /// Neither end of the file holds a footer.
    #[error("no footer: neither the last 512 bytes of the {file_len} bytes nor the first are a VHD footer")]
    NoFooter {
        /// Bytes in the file.
        file_len: u64,
    },
    /// A structure breaks a rule of the format.
    #[error("bad {structure} at {offset:#x}")]
    Format {
        /// Which structure.
        structure: &'static str,
        /// Where in the file.
        offset: u64,
        /// The rule.
        #[source]
        source: FormatError,
    },
    /// The file ends before the disk does.
    #[error("the file has {file_len} bytes; its disk of {disk_size} bytes and the footer need {needed}")]
    FileTooShort {
        /// Bytes in the file.
        file_len: u64,
        /// Bytes of the disk.
        disk_size: u64,
        /// Bytes the file needs.
        needed: u64,
    },
    /// The dynamic header is not inside the file.
    #[error("the dynamic header at {offset:#x} is not inside the file of {file_len:#x} bytes")]
    HeaderLocation {
        /// Where the footer says it is.
        offset: u64,
        /// Bytes in the file.
        file_len: u64,
    },
    /// The block table is not inside the file.
    #[error("the block table at {offset:#x}+{len:#x} is not inside the file of {file_len:#x} bytes")]
    TableLocation {
        /// Where the header says it is.
        offset: u64,
        /// Its bytes.
        len: u64,
        /// Bytes in the file.
        file_len: u64,
    },
    /// More blocks than the library keeps a table for.
    #[error("{blocks} blocks of {block_size} bytes: at most {maximum} blocks are supported")]
    TooManyBlocks {
        /// Blocks of the disk.
        blocks: u64,
        /// Bytes in each.
        block_size: u64,
        /// The limit.
        maximum: u64,
    },
    /// A table entry points into metadata.
    #[error("block {block} at {offset} lies over the {structure}")]
    BlockInMetadata {
        /// The block.
        block: BlockIndex,
        /// Where its bitmap is said to be.
        offset: FileOffset,
        /// What it lies over.
        structure: &'static str,
    },
    /// A table entry points past the end of the file.
    #[error("block {block} at {offset} needs the file up to {end:#x}, but its space ends at {space_end:#x}")]
    BlockPastEnd {
        /// The block.
        block: BlockIndex,
        /// Where its bitmap is said to be.
        offset: FileOffset,
        /// Where the block's bytes on the disk end.
        end: u64,
        /// Where space for blocks ends.
        space_end: u64,
    },
    /// Two blocks share bytes.
    #[error("block {block} at {offset} overlaps block {other} at {other_offset}")]
    BlockOverlap {
        /// A block.
        block: BlockIndex,
        /// Where its bitmap is said to be.
        offset: FileOffset,
        /// Another block.
        other: BlockIndex,
        /// Where its bitmap is said to be.
        other_offset: FileOffset,
    },
}

impl OpenError {
    /// Where in the file the problem is, if it has one place.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        match self {
            Self::Read { offset, .. }
            | Self::Restore { offset, .. }
            | Self::Format { offset, .. }
            | Self::HeaderLocation { offset, .. }
            | Self::TableLocation { offset, .. } => Some(*offset),
            Self::BlockInMetadata { offset, .. }
            | Self::BlockPastEnd { offset, .. }
            | Self::BlockOverlap { offset, .. } => Some(offset.0),
            Self::FenceLost { .. } | Self::NoFooter { .. } | Self::FileTooShort { .. } | Self::TooManyBlocks { .. } => {
                None
            }
        }
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } | Self::Restore { source, .. } => io_kind(source),
            Self::FenceLost { .. } => ErrorKind::FenceLost,
            Self::NoFooter { .. } => ErrorKind::FooterMissing,
            Self::Format { source, .. } => source.kind(),
            Self::FileTooShort { .. } => ErrorKind::FileTooShort,
            Self::HeaderLocation { .. } => ErrorKind::HeaderLocation,
            Self::TableLocation { .. } => ErrorKind::TableLocation,
            Self::TooManyBlocks { .. } => ErrorKind::BlockSize,
            Self::BlockInMetadata { .. } => ErrorKind::BlockInMetadata,
            Self::BlockPastEnd { .. } => ErrorKind::BlockPastEnd,
            Self::BlockOverlap { .. } => ErrorKind::BlockOverlap,
        }
    }
}

/// Why an image can't be created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The disk can't have this size.
    #[error("a disk of {size} bytes is not possible: sizes are multiples of 512 from 512 to {maximum} bytes")]
    Size {
        /// Bytes asked for.
        size: u64,
        /// The largest disk.
        maximum: u64,
    },
    /// The block size is not one that other software reads.
    #[error("blocks of {block_size} bytes are not possible: a power of two from {minimum} to {maximum} is needed")]
    BlockSize {
        /// Bytes asked for.
        block_size: u64,
        /// The smallest.
        minimum: u32,
        /// The largest.
        maximum: u32,
    },
    /// The parent's name can't be written into a VHD.
    #[error("the parent's name {name:?} can't be stored in a VHD: {reason}")]
    ParentName {
        /// The name.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// The file could not be written.
    #[error("cannot {operation} at {offset:#x} of the new image")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// Where in the file.
        offset: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl CreateError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Size { .. } | Self::BlockSize { .. } | Self::ParentName { .. } => ErrorKind::InvalidArgument,
            Self::Io { source, .. } => io_kind(source),
        }
    }
}

/// Says what was being done, and where, when the host file failed.
pub(crate) trait IoContext<T> {
    fn io_context(self, operation: &'static str, offset: u64) -> Result<T, DeviceError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn io_context(self, operation: &'static str, offset: u64) -> Result<T, DeviceError> {
        self.map_err(|source| DeviceError::Io {
            operation,
            offset,
            source,
        })
    }
}
