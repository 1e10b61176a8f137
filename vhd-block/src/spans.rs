//! Where the bytes of a disk are, for those who move them themselves.
//!
//! A disk says in which file a range lies, and at which offset; the caller moves the bytes: into memory that a guest shares,
//! by io_uring, by splice. What a span names stays what it is until the span is dropped, whatever happens to the disk
//! meanwhile: it keeps the file open, and a change that would move the bytes waits for it (`docs/concurrency.md`).

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::DeviceError;
use crate::lease::Lease;

/// A file below a disk, as far as a span needs it.
pub trait SpanStorage: Send + Sync + fmt::Debug {
    /// Fills `buf` from `offset` of the file.
    ///
    /// # Errors
    /// The system's; `UnexpectedEof` behind the end of the file.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `buf` at `offset` of the file.
    ///
    /// # Errors
    /// The system's.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;

    /// The descriptor of the file, for a range that can be moved with it; `None` where the bytes are in no file, or not as
    /// they read.
    fn descriptor(&self, offset: u64, len: u64) -> Option<BorrowedFd<'_>>;
}

/// The file that a span is in. It stays open as long as this does.
pub struct SpanFile {
    storage: Arc<dyn SpanStorage>,
    /// Dropped last: who waits for it may close or change the file.
    lease: Option<Lease>,
}

impl SpanFile {
    /// In this file.
    #[must_use]
    pub fn new(storage: Arc<dyn SpanStorage>) -> Self {
        Self { storage, lease: None }
    }

    /// The same file, with something that says for how long the span is used.
    #[must_use]
    pub fn under(self, lease: Lease) -> Self {
        Self {
            lease: Some(lease),
            ..self
        }
    }

    /// Fills `buf` from `offset` of the file.
    ///
    /// # Errors
    /// [`DeviceError::Io`].
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        let read = self.storage.read_exact_at(buf, offset);
        read.map_err(failed("read", offset))
    }

    /// Writes all of `buf` at `offset` of the file. Only inside a [`WriteSpan`] it is part of the disk.
    ///
    /// # Errors
    /// [`DeviceError::Io`].
    pub fn write_all_at(&self, buf: &[u8], offset: u64) -> Result<(), DeviceError> {
        let written = self.storage.write_all_at(buf, offset);
        written.map_err(failed("write", offset))
    }

    /// The descriptor of the file, for positional calls of the system in this range of it; `None` where the bytes are in no
    /// file of the host, or not as they read.
    #[must_use]
    pub fn descriptor(&self, offset: u64, len: u64) -> Option<BorrowedFd<'_>> {
        self.storage.descriptor(offset, len)
    }
}

impl fmt::Debug for SpanFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SpanFile({:?}, leased: {})", self.storage, self.lease.is_some())
    }
}

/// The beginning of a range of a disk, as it is to be read.
///
/// Bytes that are written to the disk while a span is held may be read through it or not, sector by sector.
#[derive(Debug)]
pub enum ReadSpan {
    /// Stored.
    Data {
        /// The file.
        file: SpanFile,
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// It reads zero.
    Zero {
        /// How many bytes.
        len: u64,
    },
}

impl ReadSpan {
    /// How many bytes of the range the span is.
    #[must_use]
    pub fn len(&self) -> u64 {
        match self {
            Self::Data { len, .. } | Self::Zero { len } => *len,
        }
    }

    /// Only for a range without bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The same under a lease, if there is anything to keep.
    #[must_use]
    pub fn under(self, lease: impl FnOnce() -> Lease) -> Self {
        match self {
            Self::Data { file, offset, len } => Self::Data {
                file: file.under(lease()),
                offset,
                len,
            },
            Self::Zero { .. } => self,
        }
    }

    /// Without the first `skip` bytes, and at most `limit` long.
    pub(crate) fn part(self, skip: u64, limit: u64) -> Self {
        let left = self.len().saturating_sub(skip).min(limit);
        match self {
            Self::Data { file, offset, .. } => Self::Data {
                file,
                offset: offset + skip,
                len: left,
            },
            Self::Zero { .. } => Self::Zero { len: left },
        }
    }
}

/// What becomes of a place to write to. One of the two is called, once.
pub trait WriteOutcome: Send {
    /// The bytes are in their place: they are part of the disk from now on.
    ///
    /// # Errors
    /// They are not, or not all of them.
    fn complete(self: Box<Self>) -> Result<(), DeviceError>;

    /// The place was given up. Some bytes may have been written to it.
    fn abandon(self: Box<Self>);
}

/// A place for the beginning of a range that is to be written. Put the bytes there, then [`complete`](Self::complete) it:
/// readers see them from then on, and the next flush makes them durable. If it is dropped instead, each sector is as before
/// or as far as it was written, as after a write that failed.
///
/// A change of the disk that the write has to come before waits for the span, for a bounded time: it is to be held as long as
/// the transfer takes.
#[must_use = "bytes are part of the disk after complete() only"]
pub struct WriteSpan {
    /// Before the file: what it does may need it.
    outcome: Option<Box<dyn WriteOutcome>>,
    file: SpanFile,
    offset: u64,
    len: u64,
}

impl WriteSpan {
    /// `len` bytes at `offset` of a file.
    pub fn new(file: SpanFile, offset: u64, len: u64, outcome: Box<dyn WriteOutcome>) -> Self {
        Self {
            outcome: Some(outcome),
            file,
            offset,
            len,
        }
    }

    /// The same under a lease.
    pub fn under(mut self, lease: Lease) -> Self {
        self.file.lease = Some(lease);
        self
    }

    /// The file that the bytes go to.
    #[must_use]
    pub fn file(&self) -> &SpanFile {
        &self.file
    }

    /// Where in the file, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes of the range go there.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// A span has bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the bytes that were put there part of the disk.
    ///
    /// # Errors
    /// What could not be done: the write has failed then.
    pub fn complete(mut self) -> Result<(), DeviceError> {
        self.outcome.take().map_or(Ok(()), |outcome| outcome.complete())
    }
}

impl fmt::Debug for WriteSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WriteSpan({:#x}+{:#x})", self.offset, self.len)
    }
}

impl Drop for WriteSpan {
    fn drop(&mut self) {
        if let Some(outcome) = self.outcome.take() {
            outcome.abandon();
        }
    }
}

pub(crate) fn failed(operation: &'static str, offset: u64) -> impl FnOnce(io::Error) -> DeviceError {
    move |source| DeviceError::Io {
        operation,
        offset,
        source,
    }
}
