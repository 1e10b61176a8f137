//! Units of measure: newtypes that keep the three number spaces of a VHD apart.
//!
//! A VHD knows offsets in the *file*, offsets on the *virtual disk* and sector numbers in its block
//! table. Mixing two of them is the classical bug of disk-image code, so where two of them meet they
//! have types of their own.

use std::fmt;

pub use vhd_block::units::{checked_align_up, u64_from, usize_from};

/// Bytes in a sector: every structure and address of a VHD counts in these (specification, "Overview").
pub const SECTOR_SIZE: u64 = 512;

/// A byte offset in the file that holds an image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileOffset(pub u64);

/// A byte offset on the virtual disk, the one a guest sees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtualOffset(pub u64);

/// The index of a block of the virtual disk, and so of its entry in the block allocation table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockIndex(pub u32);

impl FileOffset {
    /// The offset `bytes` further on; `None` past the largest offset.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl VirtualOffset {
    /// The offset `bytes` further on; `None` past the largest offset.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl BlockIndex {
    /// This index for a slice.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize_from(u64::from(self.0))
    }
}

impl fmt::Debug for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{:#x}", self.0)
    }
}

impl fmt::Debug for VirtualOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk:{:#x}", self.0)
    }
}

impl fmt::Debug for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block:{}", self.0)
    }
}

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtualOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
