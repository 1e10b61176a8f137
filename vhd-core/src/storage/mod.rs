//! The host file below an image: positional I/O, sync, holes.
//!
//! - [`StorageFile`] is the contract: what an image asks of the file it lives in;
//! - [`HostFile`] fulfils it with a regular file or a block device, under an [`ImageLock`];
//! - [`MemoryFile`] fulfils it with sparse memory;
//! - [`StagedFile`] is a host file that gets its name only when it is complete;
//! - [`OverlayFile`] is a file with changes that stay in memory;
//! - [`PaddedFile`] and [`UnsyncedFile`] change one habit of another file.

mod delegate;
mod error;
mod existing;
mod holder;
mod host_file;
mod least_len;
mod lock;
mod memory;
mod names;
mod on_volume;
mod overlay;
mod padded;
mod partial;
mod set_aside;
mod staged_file;
mod transfer;
mod tree_lock;
mod unsynced;
mod watched;
mod zeroing;

pub use error::{StorageError, io_kind};
pub use existing::{open_existing, read_existing};
pub use holder::LockHolder;
pub use host_file::{Access, FileIdentity, HostFile, Sharing};
pub(crate) use least_len::LeastLen;
pub use lock::ImageLock;
pub(crate) use lock::share_with_readers;
pub use memory::MemoryFile;
pub use names::{beside, remove_file, sync_directory_of};
pub(crate) use names::{full_name, put_back_modified, relative_to, resolved};
pub(crate) use on_volume::is_on_volume;
pub use overlay::{OverlayChange, OverlayFile, OverlaySource};
pub use padded::PaddedFile;
pub use partial::remove_partial_files;
pub use set_aside::SetAside;
pub use staged_file::StagedFile;
pub(crate) use tree_lock::TreeLock;
pub use unsynced::UnsyncedFile;
pub use vhd_block::is_zero;
pub(crate) use watched::WatchedFile;
pub(crate) use zeroing::write_out_holes;
pub use zeroing::{clear_range, zero_range_kept};
pub(crate) use zeroing::{is_hole_already, reads_zero};

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

/// Whether the bytes at a file offset are stored or a hole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Stored bytes (they may be zero).
    Data,
    /// A hole: reads zero and takes no space.
    Hole,
}

/// What an image needs of the file it lives in. All calls are positional and take `&self`, so that
/// any number of threads can use one file at once. Offsets and lengths are bytes in this file.
///
/// Writes become durable with [`sync`](StorageFile::sync) only, and until then in any order, in any
/// subset, a file length included. A single 512-byte aligned sector is written whole or not at all.
#[expect(
    clippy::len_without_is_empty,
    reason = "a file asks the system for its length, and that can fail"
)]
pub trait StorageFile: Send + Sync + fmt::Debug {
    /// Fills `buf` from `offset`; an end of file inside is `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Fills `bufs` in turn from `offset`; an end of file inside is `UnexpectedEof`.
    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset`; the file grows where needed, and a gap before `offset` reads zero.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bufs` in turn at `offset`, like [`write_all_at`](StorageFile::write_all_at).
    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()>;

    /// The length of the file.
    fn len(&self) -> io::Result<u64>;

    /// Sets the length; new space reads zero.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Returns when every write, hole and length that completed before the call is durable.
    fn sync(&self) -> io::Result<()>;

    /// Frees the space of the range, which then reads zero. The length stays; bytes past it are ignored.
    /// `Unsupported` where the file system has no holes.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Makes the range read zero and keeps its space allocated, without writing it out.
    /// `Unsupported` where the file system can't.
    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Reserves space for the range; the length grows to its end. `Unsupported` where the file system can't.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Says that the range is about to be written, in large pieces: its space may be reserved at once, where that makes
    /// the writes cheaper. Returns whether it was, or a part of it: no space for that is no error. Nothing changes that can be read; the length stays. What is not
    /// written after all keeps its space until a [hole is punched](StorageFile::punch_hole) there.
    fn expect_writes(&self, _offset: u64, _len: u64) -> io::Result<bool> {
        Ok(false)
    }

    /// Makes sure that writing the range later needs no new space, as far as that is possible for this very range. Its
    /// content stays.
    fn keep_writable(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    /// Whether every overwrite takes new space, as on copy-on-write file systems.
    fn overwrites_take_space(&self) -> bool {
        false
    }

    /// Sets space of the file system aside, none of it yet; `None` where it can't.
    fn set_aside(&self) -> Option<SetAside> {
        None
    }

    /// What stands at `offset`, and where that segment ends (exclusive, at most the file's length).
    /// A file without hole information is one data segment. `offset` at or past the end: `(Hole, offset)`.
    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)>;

    /// Shares `len` bytes of `source` with this file, without copying (reflink).
    /// `Unsupported` where the two files can't share.
    fn share_range_from(&self, source: &dyn StorageFile, source_offset: u64, offset: u64, len: u64) -> io::Result<()>;

    /// The image's lock, if this handle holds it, stays with the open file when the handle is dropped: until the last
    /// duplicate of its descriptor is closed.
    fn keep_locked(&self) {}

    /// The host file below, where there is one (for reflinks and reports).
    fn host_file(&self) -> Option<&File> {
        None
    }
}
