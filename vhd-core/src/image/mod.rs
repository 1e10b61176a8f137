//! One open VHD file: where its bytes are, and how changes reach it safely.
//!
//! ```text
//!   resolve_read(range)  -> ReadSpan   Data | Zero | Parent        no lock
//!   resolve_write(range) -> WriteSpan  put bytes there, complete() a lock for the first write of a block only
//!   flush()                            stage, sync, publish, sync  (commit.rs; docs/invariants.md)
//!   close()                            flush, then cut the unused end of the last chunk off
//! ```
//!
//! An image moves no bytes itself: [`device`](crate::device) has the one loop that does, for every type of
//! image and every depth of chain.

mod allocator;
mod amend;
mod block_search;
pub mod check;
mod commit;
mod create;
mod enlarge;
mod error;
mod flush;
mod footers;
mod granted;
mod hidden;
mod open;
mod poison;
mod rearrange;
mod room;
mod sector_map;
mod sector_maps;
mod sparse;
mod table;
mod validate;
mod write_span;
mod zeroing;

use std::fmt;
use std::sync::Arc;

pub use amend::{AmendError, Amendment};
pub use commit::PublishFence;
pub use create::{ParentLink, Preallocate, create_differencing, create_dynamic, create_fixed};
pub use error::{CreateError, OpenError};
pub use footers::{FooterSource, Footers};
pub use granted::{BlockSource, NoBlock};
pub use open::{MAX_BLOCKS, OpenMode};
pub use write_span::WriteSpan;

pub(crate) use block_search::{blocks_between, looks_like_block};
pub(crate) use create::{LocatorData, TABLE_OFFSET, check_size, differencing_header};
pub(crate) use error::IoContext;
pub(crate) use hidden::{Belief, Hidden, Hiding, absent_runs, stored_runs};
pub(crate) use open::{read_header, read_table};
pub(crate) use poison::Poison;
pub(crate) use rearrange::{Arrangement, BATMAP_COOKIE, PlacedBlock};
pub(crate) use validate::{Region, Space, metadata_regions};
pub(crate) use zeroing::{discard_file_range, zero_file_range};

use crate::format::{DiskType, DynamicHeader, Footer, MAX_LOCATOR_LENGTH, PlatformCode, UniqueId, decode_locator};
use crate::storage::{LeastLen, StorageFile};
use crate::sync::{AtomicBool, Ordering};
use crate::units::{FileOffset, VirtualOffset, usize_from};
use commit::Writer;
use flush::FlushCoalescer;
use sparse::Sparse;
use vhd_block::DeviceError;

/// Where the bytes at the start of a range are, and how many of them are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadSpan {
    /// In the image's file.
    Data {
        /// Where in the file.
        file_offset: FileOffset,
        /// Bytes.
        len: u64,
    },
    /// Nowhere: they read zero.
    Zero {
        /// Bytes.
        len: u64,
    },
    /// In the parent.
    Parent {
        /// Bytes.
        len: u64,
    },
}

impl ReadSpan {
    /// The bytes of the span.
    #[must_use]
    pub fn len(self) -> u64 {
        match self {
            Self::Data { len, .. } | Self::Zero { len } | Self::Parent { len } => len,
        }
    }

    /// Spans are never empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// An open VHD file. All I/O is by `&self`; any number of threads may read, write and flush at once.
///
/// Dropping a writable image closes it; only [`close`](Image::close) tells whether that worked.
pub struct Image {
    file: Arc<dyn StorageFile>,
    footers: Footers,
    writable: bool,
    body: Body,
    coalescer: FlushCoalescer,
    /// It was opened for writing, and nothing is written to it any more.
    frozen: AtomicBool,
    /// It is frozen, and all of it is durable.
    clean: AtomicBool,
    least_len: LeastLen,
    /// Nothing is left to be done when it is dropped.
    closed: AtomicBool,
}

enum Body {
    Fixed(Poison),
    Sparse(Box<Sparse>),
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let footer = self.footer();
        write!(
            f,
            "Image({:?} {} of {} bytes in {:?})",
            footer.disk_type, footer.unique_id, footer.current_size, self.file
        )
    }
}

impl Image {
    /// The footer in use.
    #[must_use]
    pub fn footer(&self) -> &Footer {
        &self.footers.footer
    }

    /// Both footers as they were found.
    #[must_use]
    pub fn footers(&self) -> &Footers {
        &self.footers
    }

    /// The dynamic header; `None` for a fixed image.
    #[must_use]
    pub fn header(&self) -> Option<&DynamicHeader> {
        self.sparse().map(|sparse| &sparse.header)
    }

    /// The size of the disk in bytes.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        self.footer().current_size
    }

    /// The identity of the disk.
    #[must_use]
    pub fn unique_id(&self) -> UniqueId {
        self.footer().unique_id
    }

    /// What the image lacks is in a parent.
    #[must_use]
    pub fn is_differencing(&self) -> bool {
        self.footer().disk_type == DiskType::Differencing
    }

    /// The image was opened for writing, and is not frozen.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        self.writable && !self.frozen.load(Ordering::Acquire)
    }

    /// How it was opened.
    pub(crate) fn mode(&self) -> OpenMode {
        let fence = self.writer().and_then(|(_, writer)| writer.fence.clone());
        let mode = match self.writable {
            true => OpenMode::read_write(),
            false => OpenMode::read_only(),
        };
        let mode = match fence {
            Some(fence) => mode.with_fence(fence),
            None => mode,
        };
        match self.writer().and_then(|(_, writer)| writer.granted.as_ref()) {
            Some(granted) => mode.with_blocks(granted.source()),
            None => mode,
        }
    }

    /// From now on nothing is written to the image; what was written before is made durable by a flush. For one who knows
    /// that no write is under way.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
    }

    /// A frozen image of which nothing is left to be flushed; or one that was never written.
    pub(crate) fn is_clean(&self) -> bool {
        !self.writable || self.clean.load(Ordering::Acquire)
    }

    /// Flushes a frozen image, and gives unused space at the end of the file back. INV-57: after that this handle writes
    /// nothing to the file any more, not even when it is dropped, for the file may be opened for writing again.
    pub(crate) fn settle(&self) -> Result<(), DeviceError> {
        debug_assert!(self.frozen.load(Ordering::Acquire), "it may be written to");
        self.flush()?;
        // A flush that began before the image was frozen may still come: it is not to take this for a cut by another program.
        self.coalescer.run_alone(|| {
            let trimmed = self.trim();
            self.least_len.forget();
            trimmed
        })?;
        self.abandon();
        Ok(())
    }

    /// Nothing is written to the file any more when the image is dropped.
    pub(crate) fn abandon(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// What a failed sync does to the image; `None` for one that was opened for reading.
    pub(crate) fn poison(&self) -> Option<&Poison> {
        match &self.body {
            Body::Fixed(poison) => Some(poison),
            Body::Sparse(sparse) => sparse.writer.as_ref().map(|writer| &writer.poison),
        }
    }

    /// The file that holds the image.
    #[must_use]
    pub fn file(&self) -> &Arc<dyn StorageFile> {
        &self.file
    }

    /// Bytes in the file.
    pub(crate) fn file_len(&self) -> Result<u64, DeviceError> {
        self.file.len().io_context("find the length", 0)
    }

    fn sparse(&self) -> Option<&Sparse> {
        match &self.body {
            Body::Fixed(_) => None,
            Body::Sparse(sparse) => Some(sparse),
        }
    }

    fn writer(&self) -> Option<(&Sparse, &Writer)> {
        let sparse = self.sparse()?;
        Some((sparse, sparse.writer.as_ref()?))
    }

    /// Bytes of memory that the block table takes.
    #[must_use]
    pub(crate) fn table_memory(&self) -> u64 {
        self.sparse().map_or(0, |sparse| sparse.table.memory())
    }

    /// Bytes of block data that have space in the file (of a fixed image: the whole disk).
    #[must_use]
    pub fn allocated_bytes(&self) -> u64 {
        match self.sparse() {
            None => self.disk_size(),
            Some(sparse) => sparse.table.allocated() * sparse.layout.block_size(),
        }
    }

    /// Where the bytes at the start of the range are. `offset` and `len` are multiples of 512, `len` is not
    /// zero, and the range is inside the disk.
    pub fn resolve_read(&self, offset: VirtualOffset, len: u64) -> Result<ReadSpan, DeviceError> {
        match &self.body {
            Body::Fixed(_) => Ok(ReadSpan::Data {
                file_offset: FileOffset(offset.0),
                len,
            }),
            Body::Sparse(sparse) => sparse.resolve_read(&*self.file, offset, len),
        }
    }

    /// How many bytes from the start of a range inside the disk are in blocks that have no space in the file. Nothing is read
    /// for it, and long ranges take no longer than short ones.
    pub(crate) fn unallocated(&self, offset: VirtualOffset, len: u64) -> u64 {
        self.sparse().map_or(0, |sparse| sparse.unallocated(offset, len))
    }

    /// A place for the bytes at the start of the range, under the conditions of
    /// [`resolve_read`](Image::resolve_read).
    pub fn resolve_write(&self, offset: VirtualOffset, len: u64) -> Result<WriteSpan<'_>, DeviceError> {
        if !self.is_writable() {
            return Err(DeviceError::ReadOnly);
        }
        match &self.body {
            Body::Fixed(poison) => {
                poison.check()?;
                Ok(WriteSpan::in_place(self, FileOffset(offset.0), len))
            }
            Body::Sparse(sparse) => {
                let writer = sparse.writer.as_ref().ok_or(DeviceError::ReadOnly)?;
                writer.poison.check()?;
                WriteSpan::in_block(self, sparse, writer, offset, len)
            }
        }
    }

    /// Makes every write that completed before the call durable. Concurrent calls share the work.
    pub fn flush(&self) -> Result<(), DeviceError> {
        if self.is_clean() {
            return Ok(());
        }
        // INV-51: only a flush that begins when nothing is written any more has all of it.
        let last = self.frozen.load(Ordering::Acquire);
        self.coalescer.run(|| match &self.body {
            Body::Fixed(poison) => {
                self.check_len(poison)?;
                poison.on_error(self.file.sync().io_context("sync", 0))
            }
            Body::Sparse(sparse) => match &sparse.writer {
                None => Ok(()),
                Some(writer) => {
                    self.check_len(&writer.poison)?;
                    commit::commit(sparse, writer, &*self.file)
                }
            },
        })?;
        if last {
            self.clean.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Nobody has cut off what was written.
    fn check_len(&self, poison: &Poison) -> Result<(), DeviceError> {
        poison.check()?;
        poison.on_error(self.least_len.check(|| self.file.len()).io_context("flush", 0))
    }

    /// Flushes, and gives unused space at the end of the file back.
    pub fn close(mut self) -> Result<(), DeviceError> {
        self.close_once()
    }

    fn close_once(&mut self) -> Result<(), DeviceError> {
        if self.closed.swap(true, Ordering::AcqRel) || !self.writable {
            return Ok(());
        }
        self.flush()?;
        self.trim()
    }

    fn trim(&self) -> Result<(), DeviceError> {
        match self.writer() {
            None => Ok(()),
            Some((_, writer)) => writer.allocator.trim(|| writer.check_fence()),
        }
    }

    /// Where the image says its parent is: each locator's path as written, best first, then the name in the
    /// header. Locators that are not inside the file are left out. Empty for an image without a parent.
    pub fn parent_paths(&self) -> Result<Vec<ParentPath>, OpenError> {
        let (Some(header), true) = (self.header(), self.is_differencing()) else {
            return Ok(Vec::new());
        };
        let read_error = |structure, offset| {
            move |source| OpenError::Read {
                structure,
                offset,
                source,
            }
        };
        let file_len = self.file.len().map_err(read_error("file length", 0))?;
        let mut paths = Vec::new();
        for locator in header.locators.iter().flatten() {
            let (offset, len) = (locator.offset, u64::from(locator.length.min(MAX_LOCATOR_LENGTH)));
            // A resize by VirtualBox leaves entries full of ones. They lead nowhere; the others may be good.
            if offset.checked_add(len).is_none_or(|end| end > file_len) {
                continue;
            }
            let mut data = vec![0; usize_from(len)];
            self.file
                .read_exact_at(&mut data, offset)
                .map_err(read_error("parent locator", offset))?;
            if let Some(path) = decode_locator(locator.code, &data).filter(|path| !path.is_empty()) {
                paths.push(ParentPath {
                    source: PathSource::Locator(locator.code),
                    path,
                });
            }
        }
        if !header.parent_name.is_empty() {
            paths.push(ParentPath {
                source: PathSource::HeaderName,
                path: header.parent_name.to_string_lossy(),
            });
        }
        paths.sort_by_key(|path| path.source.rank());
        Ok(paths)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = self.close_once() {
            tracing::error!(%error, "an image was dropped and could not be closed");
        }
    }
}

/// A path under which an image says its parent can be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentPath {
    /// Where in the image it stands.
    pub source: PathSource,
    /// The path as written, backslashes and drive letters included.
    pub path: String,
}

/// Where in an image a parent's path stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathSource {
    /// In a parent locator.
    Locator(PlatformCode),
    /// In the dynamic header.
    HeaderName,
    /// Under a key of a VHDX's parent locator.
    Key(&'static str),
}

impl PathSource {
    /// The order in which the paths are tried: relative before absolute, current codes before deprecated ones.
    fn rank(self) -> u32 {
        match self {
            Self::Locator(PlatformCode::W2ru) => 0,
            Self::Locator(PlatformCode::W2ku) => 1,
            Self::Locator(PlatformCode::MacX) => 2,
            Self::Locator(PlatformCode::Wi2r) => 3,
            Self::Locator(PlatformCode::Wi2k) => 4,
            Self::Locator(_) => 5,
            Self::HeaderName | Self::Key(_) => 6,
        }
    }
}
