//! Fixed, dynamic and differencing VHD images: read and written, alone or in chains, safe against crashes.
//!
//! ```text
//!                 a program: the command, a server, a virtual machine monitor
//!                      |                               |
//!   snapshot SnapshotTree: create, apply, delete       |        names and trees of frozen images
//!                      |                               |
//!   ops      convert, compare, hash, stream            |        long operations on whole disks
//!                      |                               |
//!   chain    OpenOptions::open -> OpenedDisk   create_child     a leaf, its parents, how they are found
//!                      |
//!   device   Disk -> BlockDevice: LayeredDevice | RawDevice     what a frontend sees; the one I/O loop
//!                      |
//!   image    Image: resolve_read, resolve_write, flush, close   one file: table, bitmaps, allocation, commit
//!                      |                    check               the same rules, read-only, all findings
//!   format   footer, header, locators, geometry                 bytes <-> validated types, no I/O
//!                      |
//!   storage  StorageFile: HostFile | MemoryFile                 the host file: positional I/O, sync, holes, locks
//! ```
//!
//! A module uses those below it. What a disk is for those who use it, the crate `vhd-block` says: [`device`] exports it
//! again.
//!
//! # Example
//!
//! A disk, a child over it, and what both read:
//!
//! ```
//! use vhd_core::chain::{OpenOptions, create_child};
//! use vhd_core::format::DEFAULT_BLOCK_SIZE;
//! use vhd_core::image::create_dynamic;
//! use vhd_core::storage::StagedFile;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let (base, child) = (dir.path().join("base.vhd"), dir.path().join("child.avhd"));
//!
//! // A new image gets its name when it is complete.
//! let staged = StagedFile::create_beside(&base)?;
//! create_dynamic(&*staged.storage(), 64 << 20, DEFAULT_BLOCK_SIZE.into())?;
//! staged.publish(false, true)?;
//!
//! let opened = OpenOptions::new().write(true).open(&base)?;
//! let disk = opened.disk();
//! disk.write_at(b"written to the base", 1 << 20)?;
//! disk.flush()?; // durable from here on
//! drop(disk);
//! opened.close()?; // and the file has no slack
//!
//! create_child(&child, &base, None, &OpenOptions::new())?;
//! let opened = OpenOptions::new().write(true).open(&child)?;
//! let disk = opened.disk();
//! disk.write_at(b"changed", 1 << 20)?;
//! let mut bytes = [0; 19];
//! disk.read_at(&mut bytes, 1 << 20)?;
//! assert_eq!(&bytes, b"changed to the base");
//! drop(disk);
//! opened.close()?;
//!
//! let opened = OpenOptions::new().open(&base)?;
//! opened.disk().read_at(&mut bytes, 1 << 20)?;
//! assert_eq!(&bytes, b"written to the base");
//! # Ok(())
//! # }
//! ```
//!
//! # The life of a disk
//!
//! 1. *Open.* [`OpenOptions::open`](chain::OpenOptions::open) locks the file, tells its format by content,
//!    validates every structure before a byte is read through it, and finds the parents by identity. A
//!    differencing image without its parent is an error, never a disk of zeroes.
//! 2. *Use.* [`OpenedDisk::disk`](chain::OpenedDisk::disk) is a handle that any number of threads share and
//!    clone. Only the leaf is written.
//! 3. *Flush.* What was flushed survives a loss of power. What was not may be lost in any part.
//! 4. *Close.* [`OpenedDisk::close`](chain::OpenedDisk::close) flushes, gives the unused end of the file back, and
//!    says whether that worked, or whether somebody still has the disk. Dropping does the same and can only log a failure.
//!
//! `examples/` has whole programs: a chain, a snapshot of a disk in use, a disk for a sandbox.
//!
//! # I/O
//!
//! All calls are synchronous, positional and by `&self`. An engine says where bytes are
//! ([`ReadSpan`](image::ReadSpan), [`WriteSpan`](image::WriteSpan)); one loop moves them, for every type of image
//! and every depth of chain. A reader takes no lock. A block that has space never moves while its image is open.
//!
//! A write puts its bytes into the file and changes the metadata in memory. A flush carries the metadata out in two
//! phases with a sync behind each, so that nothing in the file ever refers to what is not durable. The rules have
//! numbers, INV-01 and on, which the code cites; `docs/invariants.md` states them, `docs/crash-consistency.md`
//! and `docs/concurrency.md` argue for them.
//!
//! # Errors
//!
//! Each family of operations has one error type, and each of them `kind()`:
//!
//! | operation | error |
//! |---|---|
//! | decoding a structure | [`FormatError`](format::FormatError) |
//! | opening, locking, naming a host file | [`StorageError`](storage::StorageError) |
//! | opening an image | [`OpenError`](image::OpenError) |
//! | creating an image, a child | [`CreateError`](image::CreateError), [`CreateChildError`](chain::CreateChildError) |
//! | opening a chain | [`ChainError`](chain::ChainError), and [`ChainWarning`](chain::ChainWarning) for what is odd |
//! | reading and writing | [`DeviceError`](device::DeviceError) |
//! | converting, comparing, hashing | [`OpsError`](ops::OpsError) |
//! | snapshots | [`SnapshotError`](snapshot::SnapshotError) |
//!
//! A program branches on the [`ErrorKind`]. Messages carry the numbers; causes are chained by `source()` and not
//! repeated. A failure of the host is never reported as corruption, nor corruption as a failure of the host.
//!
//! # What is not here
//!
//! No network. Images need Linux on a 64-bit machine. There is no unsafe code.
#![forbid(unsafe_code)]

pub mod chain;
pub mod device;
pub mod error;
pub mod format;
pub mod image;
pub mod job;
pub mod ops;
pub mod partition;
pub mod record;
pub mod snapshot;
pub mod storage;
mod sync;
pub mod units;

pub use error::ErrorKind;
pub use image::check;
