//! What a frontend sees of a disk: the [`BlockDevice`] contract.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::ControlFlow;

/// A range of bytes on the virtual disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The number of bytes.
    pub len: u64,
}

impl ByteRange {
    /// The `len` bytes from `start`.
    #[must_use]
    pub const fn new(start: u64, len: u64) -> Self {
        Self { start, len }
    }

    /// The byte after the last; saturates at the largest offset.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// What a device can do, as data: frontends advertise what is set and never try the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Writes, zeroes and discards are accepted.
    pub write: bool,
    /// Discards and unmapping zeroes give space back to the host.
    pub discard: bool,
    /// Zeroes can be written without moving the bytes (so `fast_only` has a chance).
    pub fast_zero: bool,
    /// The size can be changed.
    pub resize: bool,
}

/// What is known of a device for its whole life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// Bytes; every offset and length of the [`BlockDevice`] calls is a multiple of it.
    pub logical_block_size: u32,
    /// Bytes; requests aligned to it avoid a read-modify-write below.
    pub physical_block_size: u32,
    /// Bytes; requests of this size and alignment are cheapest per byte.
    pub preferred_transfer: u32,
    /// Bytes; a frontend should not pass longer requests in one call.
    pub maximum_transfer: u32,
    /// Equal for two devices only if they are the same disk (a VHD's unique id).
    pub identity: [u8; 16],
    /// What the device can do.
    pub capabilities: Capabilities,
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// The space may be given back to the host.
    pub may_unmap: bool,
    /// Fail with [`DeviceError::NotFast`] rather than write the zeroes out.
    pub fast_only: bool,
    /// The zeroes are durable on return.
    pub fua: bool,
}

/// How a part of a disk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// Stored bytes.
    Data,
    /// Stored as zeroes: some layer owns the range, but it takes no space and reads zero.
    Zero,
    /// No layer owns the range; it reads zero.
    Hole,
}

/// A maximal range of a disk that reads in one way from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The range on the virtual disk.
    pub range: ByteRange,
    /// How it reads.
    pub kind: ExtentKind,
    /// The layer that answers, 0 for the disk's own file; for a hole, the base.
    pub depth: u32,
    /// Where the range lies in that layer's file, contiguous; `None` for a hole.
    pub file_offset: Option<u64>,
}

/// Receives extents in ascending order, without gaps; `Break` ends the walk.
pub type ExtentVisitor<'a> = &'a mut dyn FnMut(Extent) -> ControlFlow<()>;

/// A random-access disk. All calls take `&self`; any number of threads may call at once.
///
/// Offsets and lengths are multiples of the logical block size and lie inside the disk: [`Disk`] checks
/// and adapts, an implementation answers a violation with [`DeviceError::OutOfRange`] or
/// [`DeviceError::Misaligned`]. A write that returned is seen by every later read; it is durable after the
/// next successful [`flush`](BlockDevice::flush), or on return when `fua` was set. Overlapping concurrent
/// writes leave either's bytes per logical block, in no given order.
pub trait BlockDevice: Send + Sync {
    /// What is known of the device for its whole life.
    fn info(&self) -> &DeviceInfo;

    /// The size of the disk in bytes, a multiple of the logical block size.
    fn size_bytes(&self) -> u64;

    /// Fills `bufs` in turn from `offset`.
    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError>;

    /// Writes all of `bufs` in turn at `offset`; with `fua` they are durable on return.
    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError>;

    /// Makes every write that returned before the call durable.
    fn flush(&self) -> Result<(), DeviceError>;

    /// Makes the range read zero.
    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError>;

    /// Says that the content of the range is not needed: each block of it reads zero or as before afterwards.
    fn discard(&self, range: ByteRange) -> Result<(), DeviceError>;

    /// Visits the extents of the range.
    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError>;

    /// Changes the size of the disk.
    fn resize(&self, size: u64) -> Result<(), DeviceError>;
}

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
