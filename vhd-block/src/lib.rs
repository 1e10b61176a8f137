//! What a disk is for those who use it. Nothing of any image format is known here.
//!
//! ```text
//!   a frontend: a server, a mount, a virtual machine monitor, a command
//!        |
//!   Disk           the handle: any byte range, checked once, counted          disk.rs, counters.rs
//!        |
//!   BlockDevice    the contract: whole blocks, by `&self`, from any thread    device.rs
//!        |
//!   an image, a chain of images, a plain file, an export of an NBD server: in other crates
//! ```
//!
//! A request fails with a [`DeviceError`], and a program branches on its [`ErrorKind`]. [`Extent`]s say which parts of a
//! disk are stored, and where. A [`Gate`] stands before a disk that changes while it is used, a [`Switch`] before one that is replaced by another.
//! Callers that move bytes themselves ask where they are: [`Disk::resolve_read`] and [`Disk::resolve_write`] answer spans of
//! files, and [`ReadTarget`] and [`WriteSource`] are memory of which no slice may be made. [`scatter`] walks over lists of
//! buffers, [`units`] casts between integers of two widths.
//!
//! # Example
//!
//! ```
//! use std::io::{IoSlice, IoSliceMut};
//! use std::sync::{Arc, Mutex};
//!
//! use vhd_block::{
//!     BlockDevice, ByteRange, Capabilities, DeviceError, DeviceInfo, Disk, Extent, ExtentKind, ExtentVisitor,
//!     ZeroOptions, check_range, scatter,
//! };
//!
//! /// A disk in memory.
//! struct Ram(DeviceInfo, Mutex<Vec<u8>>);
//!
//! impl BlockDevice for Ram {
//!     fn info(&self) -> &DeviceInfo {
//!         &self.0
//!     }
//!     fn size_bytes(&self) -> u64 {
//!         self.1.lock().unwrap().len() as u64
//!     }
//!     fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
//!         let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
//!         check_range(offset, len, self.size_bytes())?;
//!         let bytes = self.1.lock().unwrap();
//!         scatter::for_each_mut(bufs, 0, len as usize, |part, at| {
//!             part.copy_from_slice(&bytes[offset as usize + at..][..part.len()]);
//!             Ok(())
//!         })
//!     }
//!     fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, _fua: bool) -> Result<(), DeviceError> {
//!         let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
//!         check_range(offset, len, self.size_bytes())?;
//!         let mut bytes = self.1.lock().unwrap();
//!         scatter::for_each(bufs, 0, len as usize, |part, at| {
//!             bytes[offset as usize + at..][..part.len()].copy_from_slice(part);
//!             Ok(())
//!         })
//!     }
//!     fn flush(&self) -> Result<(), DeviceError> {
//!         Ok(())
//!     }
//!     fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
//!         self.write_vectored_at(&[IoSlice::new(&vec![0; range.len as usize])], range.start, options.fua)
//!     }
//!     fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
//!         check_range(range.start, range.len, self.size_bytes())
//!     }
//!     fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
//!         check_range(range.start, range.len, self.size_bytes())?;
//!         let file_offset = Some(range.start);
//!         let _ = visitor(Extent { range, kind: ExtentKind::Data, depth: 0, file_offset });
//!         Ok(())
//!     }
//!     fn resize(&self, _size: u64) -> Result<(), DeviceError> {
//!         Err(DeviceError::Unsupported("be resized"))
//!     }
//! }
//!
//! let ram = Ram(DeviceInfo::new(Some([1; 16]), 4096, Capabilities::of_disk(true)), Mutex::new(vec![0; 1 << 20]));
//! let disk = Disk::new(Arc::new(ram));
//! disk.write_at(b"any bytes", 1000)?; // not aligned: completed by reading the block
//! let mut bytes = [0; 9];
//! disk.read_at(&mut bytes, 1000)?;
//! assert_eq!(&bytes, b"any bytes");
//! # Ok::<(), DeviceError>(())
//! ```
#![forbid(unsafe_code)]

mod counters;
mod device;
mod disk;
mod error;
mod extents;
pub mod gate;
mod kind;
mod lease;
mod memory;
pub mod scatter;
mod spans;
pub mod switch;
mod sync;
pub mod units;
mod zeroes;

pub use counters::DiskStats;
pub use device::{
    BlockDevice, ByteRange, Capabilities, DeviceInfo, LOGICAL_BLOCK, MAXIMUM_TRANSFER, PHYSICAL_BLOCK, ZeroOptions,
    check_range, check_request,
};
pub use disk::Disk;
pub use error::DeviceError;
pub use extents::{Coalescer, Extent, ExtentKind, ExtentVisitor};
pub use gate::Gate;
pub use kind::{ErrorKind, io_kind, with_causes};
pub use lease::Lease;
pub use memory::{ReadTarget, WriteSource};
pub use spans::{ReadSpan, SpanFile, SpanStorage, WriteOutcome, WriteSpan};
pub use switch::{Switch, Users};
pub use zeroes::is_zero;
