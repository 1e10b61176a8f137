//! The contract between a disk and those who use it.

use std::io::{IoSlice, IoSliceMut};

#[cfg(doc)]
use crate::Disk;
use crate::{DeviceError, ExtentVisitor, ReadSpan, WriteSpan};

/// Bytes in a logical block of every device here: a sector.
pub const LOGICAL_BLOCK: u32 = 512;

/// Bytes to which requests should be aligned: data of images lies on this grid.
pub const PHYSICAL_BLOCK: u32 = 4096;

/// Bytes; the longest request a frontend should pass in one call.
pub const MAXIMUM_TRANSFER: u32 = 32 << 20;

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
#[non_exhaustive]
pub struct Capabilities {
    /// Writes, zeroes and discards are accepted.
    pub write: bool,
    /// Discards and unmapping zeroes give space back to the host.
    pub discard: bool,
    /// Zeroes can be written without moving the bytes (so `fast_only` has a chance).
    pub fast_zero: bool,
    /// The size can be changed.
    pub resize: bool,
    /// It says where its bytes are.
    pub resolve: bool,
}

impl Capabilities {
    /// Of a disk that is read and, if `write`, changed in every way but its size.
    #[must_use]
    pub const fn of_disk(write: bool) -> Self {
        Self {
            write,
            discard: write,
            fast_zero: write,
            resize: false,
            resolve: false,
        }
    }
}

/// What is known of a device for its whole life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Bytes; every offset and length of the [`BlockDevice`] calls is a multiple of it.
    pub logical_block_size: u32,
    /// Bytes; requests aligned to it avoid a read-modify-write below.
    pub physical_block_size: u32,
    /// Bytes; requests of this size and alignment are cheapest per byte.
    pub preferred_transfer: u32,
    /// Bytes; a frontend should not pass longer requests in one call.
    pub maximum_transfer: u32,
    /// Equal for two devices only if they are the same disk: an id that its image carries. `None` for a disk that has none.
    pub identity: Option<[u8; 16]>,
    /// What the device can do.
    pub capabilities: Capabilities,
}

impl DeviceInfo {
    /// What every device here has in common.
    #[must_use]
    pub fn new(identity: Option<[u8; 16]>, preferred_transfer: u32, capabilities: Capabilities) -> Self {
        Self {
            logical_block_size: LOGICAL_BLOCK,
            physical_block_size: PHYSICAL_BLOCK,
            preferred_transfer,
            maximum_transfer: MAXIMUM_TRANSFER,
            identity,
            capabilities,
        }
    }
}

/// How zeroes are to be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ZeroOptions {
    /// The space may be given back to the host. Without it the range has space afterwards, also where it had none: a later
    /// write to it does not fail for want of space.
    pub may_unmap: bool,
    /// Fail with [`DeviceError::NotFast`] rather than write the zeroes out.
    pub fast_only: bool,
    /// The zeroes are durable on return.
    pub fua: bool,
}

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

    /// Fills `buf` from `offset`.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        self.read_vectored_at(&mut [IoSliceMut::new(buf)], offset)
    }

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

    /// Where the first bytes of the range are that are to be read.
    fn resolve_read(&self, _range: ByteRange) -> Result<ReadSpan, DeviceError> {
        Err(DeviceError::Unsupported("say where its bytes are"))
    }

    /// A place for the first bytes of the range that are to be written.
    fn resolve_write(&self, _range: ByteRange) -> Result<WriteSpan, DeviceError> {
        Err(DeviceError::Unsupported("say where its bytes are"))
    }

    /// Changes the size of the disk.
    fn resize(&self, size: u64) -> Result<(), DeviceError>;
}

/// Checks a request to a device of [`LOGICAL_BLOCK`] bytes per block.
///
/// # Errors
/// As [`check_request`].
pub fn check_range(offset: u64, len: u64, size: u64) -> Result<(), DeviceError> {
    check_request(offset, len, size, LOGICAL_BLOCK)
}

/// Checks a request against the contract: inside a disk of `size` bytes, and aligned to its logical blocks of `block`
/// bytes.
///
/// # Errors
/// [`DeviceError::OutOfRange`] and [`DeviceError::Misaligned`], in this order.
pub fn check_request(offset: u64, len: u64, size: u64, block: u32) -> Result<(), DeviceError> {
    if offset.checked_add(len).is_none_or(|end| end > size) {
        return Err(DeviceError::OutOfRange { offset, len, size });
    }
    if !(offset | len).is_multiple_of(u64::from(block)) {
        return Err(DeviceError::Misaligned { offset, len, block });
    }
    Ok(())
}
