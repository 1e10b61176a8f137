//! Why a delta can't be made or used.

use std::path::PathBuf;

use super::hex;
use crate::ErrorKind;
use crate::chain::ChainError;
use crate::ops::OpsError;

/// Why a delta can't be made or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeltaError {
    /// The base or the delta can't be opened.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Something can't be read or written.
    #[error(transparent)]
    Ops(#[from] OpsError),
    /// A child has the size of its parent.
    #[error("the disk has {image_size} bytes and its base {base_size}: a delta leads between disks of one size")]
    SizeMismatch {
        /// Bytes of the disk.
        image_size: u64,
        /// Bytes of the base.
        base_size: u64,
    },
    /// More blocks than a table can address.
    #[error("the delta would need more space than the entries of a block table can address")]
    TooLarge,
    /// The image has no digests to go by.
    #[error("{} has no digests: it is no delta made by export-delta, or another program has rewritten it", path.display())]
    NoRecord {
        /// The image.
        path: PathBuf,
    },
    /// The delta belongs on another disk.
    #[error("{} is not the disk that the delta is for: its SHA-256 is {}, the delta wants {}", path.display(), hex(found), hex(expected))]
    BaseDigest {
        /// The base.
        path: PathBuf,
        /// What the delta wants.
        expected: [u8; 32],
        /// What the base has.
        found: [u8; 32],
    },
    /// The result is not what was exported.
    #[error(
        "the result is not the disk that was exported: its SHA-256 is {}, the delta says {}",
        hex(found),
        hex(expected)
    )]
    ResultDigest {
        /// What the delta says.
        expected: [u8; 32],
        /// What the result has.
        found: [u8; 32],
    },
}

impl DeltaError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Chain(error) => error.kind(),
            Self::Ops(error) => error.kind(),
            Self::SizeMismatch { .. } => ErrorKind::SizeMismatch,
            Self::TooLarge => ErrorKind::ImageFull,
            Self::NoRecord { .. } => ErrorKind::DigestMissing,
            Self::BaseDigest { .. } | Self::ResultDigest { .. } => ErrorKind::DigestMismatch,
        }
    }
}
