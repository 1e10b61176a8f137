//! One image of a chain.

use std::io::IoSliceMut;

use crate::{ImageError, ImageFile};

/// Where the bytes of a part of a disk are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In the image's file from this offset on, as they are.
    Stored(u64),
    /// The image has to make them from what it stores: [`Layer::read_computed`].
    Computed,
    /// The image says that they are zero.
    Zero,
    /// The image says nothing of them: the parent does, or they are zero.
    Absent,
}

/// One image of a chain, for reading.
pub trait Layer: Send + Sync {
    /// Bytes on the disk.
    fn disk_size(&self) -> u64;

    /// Where the byte at `offset` of the disk is, and how many of the `len` bytes from there on are in the same place:
    /// at least one. The range is inside the disk, and not empty.
    fn place(&self, offset: u64, len: u64) -> Result<(Place, u64), ImageError>;

    /// Fills `bufs` with a range of the disk that is [`Place::Computed`] as a whole.
    fn read_computed(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ImageError>;

    /// The file of the image.
    fn file(&self) -> &dyn ImageFile;

    /// Bytes of memory that its tables take.
    fn table_memory(&self) -> u64;
}
