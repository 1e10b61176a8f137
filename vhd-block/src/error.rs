//! Why a request to a device failed.

use std::io;

use crate::{ErrorKind, io_kind};

/// Why a request to a device failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The range is not inside the disk.
    #[error("bytes {offset:#x}+{len:#x} are outside the disk of {size:#x} bytes")]
    OutOfRange {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// Size of the disk.
        size: u64,
    },
    /// The range is not aligned to the logical block size.
    #[error("bytes {offset:#x}+{len:#x} are not aligned to {block} bytes")]
    Misaligned {
        /// First byte asked for.
        offset: u64,
        /// Bytes asked for.
        len: u64,
        /// The logical block size.
        block: u32,
    },
    /// The device was opened for reading.
    #[error("the disk is open read-only")]
    ReadOnly,
    /// A layered image was opened without its parents, and the range is in them.
    #[error("the range is in a parent, and the image was opened without it")]
    NoParent,
    /// The device can't do this (its capabilities say so).
    #[error("the disk can't {0}")]
    Unsupported(&'static str),
    /// `fast_only` zeroes would have been written out.
    #[error("the range can't be zeroed without writing it")]
    NotFast,
    /// The file can hold no further block: a block would start past what a 32-bit sector number reaches.
    #[error("no room for another block: it would start at {offset:#x}, past what the block table can address")]
    ImageFull {
        /// Where the block would start.
        offset: u64,
    },
    /// An earlier sync or metadata write failed; nothing is written any more until the image is opened again (INV-05).
    #[error("the image is closed to writes because an earlier flush failed; open it again")]
    Poisoned,
    /// The lease that allows to publish metadata is gone (INV-06).
    #[error("the right to change this image's metadata is lost: {reason}")]
    FenceLost {
        /// What the lease said.
        reason: String,
    },
    /// The disk does not get the size that was asked for.
    #[error("{message}")]
    NotResized {
        /// The kind of failure.
        kind: ErrorKind,
        /// What stands against it, with all causes.
        message: String,
    },
    /// A place to write to, or to read from, was held for so long that the disk could not be changed: it goes on as it was.
    #[error("a request holds a place of the disk, and did not give it back in time: {0} was given up; try again")]
    PlaceHeld(&'static str),
    /// The disk could not be opened again after a resize, or was closed: nothing of it is read or written any more.
    #[error("the disk is not open any more: {message}")]
    Gone {
        /// The kind of failure.
        kind: ErrorKind,
        /// Why, with all causes.
        message: String,
    },
    /// The disk is somewhere else, and what has it there failed or can't be reached.
    #[error("{message}")]
    Remote {
        /// The kind of failure.
        kind: ErrorKind,
        /// What happened, with all causes.
        message: String,
    },
    /// The image is not what its format says, or needs what its reader does not do.
    #[error("{message}")]
    Image {
        /// The kind of failure.
        kind: ErrorKind,
        /// What is wrong, and where.
        message: String,
    },
    /// The host file failed.
    #[error("cannot {operation} at {offset:#x} of the image file")]
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

impl DeviceError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::OutOfRange { .. } => ErrorKind::OutOfRange,
            Self::Misaligned { .. } => ErrorKind::Misaligned,
            Self::ReadOnly => ErrorKind::ReadOnly,
            Self::NoParent => ErrorKind::ParentMissing,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::NotFast => ErrorKind::NotFast,
            Self::ImageFull { .. } => ErrorKind::ImageFull,
            Self::Poisoned => ErrorKind::Poisoned,
            Self::FenceLost { .. } => ErrorKind::FenceLost,
            Self::PlaceHeld(_) => ErrorKind::Refused("locked"),
            Self::NotResized { kind, .. }
            | Self::Gone { kind, .. }
            | Self::Remote { kind, .. }
            | Self::Image { kind, .. } => *kind,
            Self::Io { source, .. } => io_kind(source),
        }
    }
}
