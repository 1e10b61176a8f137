//! Disks get another size: one image, or all images of a tree.

mod error;
mod fixed;
mod layout;
mod one;
mod sparse;

use std::fmt;

pub use error::ResizeError;
pub use one::resize_file;

use crate::device::ByteRange;

/// What is in the part of a disk that is to be cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TailUse {
    /// Bytes that are not zero.
    Data(ByteRange),
}
impl fmt::Display for TailUse {
    fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Ok(())
    }
}
