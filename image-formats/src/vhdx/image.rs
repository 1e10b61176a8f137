//! One open VHDX file.

use std::fmt;
use std::io::IoSliceMut;
use std::sync::Arc;

use super::bitmap::{self, Bitmaps};
use super::header::{self, Header};
use super::metadata::{self, DiskType, Metadata};
use super::patched::{PatchedFile, Patches};
use super::table::{self, Block, Table, Usage};
use super::{log, region};
use crate::error::ReadContext as _;
use crate::{BrokenRule, ImageError, ImageFile, Layer, Place};

/// A VHDX file, for reading.
pub struct Image {
    file: PatchedFile,
    header: Header,
    metadata: Metadata,
    table: Table,
    bitmaps: Bitmaps,
    creator: String,
    log: LogState,
    oddities: Vec<Oddity>,
    disk_size: u64,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("vhdx::Image")
            .field("header", &self.header)
            .field("metadata", &self.metadata)
            .field("usage", &self.table.usage)
            .finish_non_exhaustive()
    }
}

/// Whether the log had to be replayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogState {
    /// The image was closed.
    Empty,
    /// The image was not closed: this many entries were replayed in memory.
    Replayed(u64),
}

/// What is odd about an image that can be read all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Oddity {
    /// One of the headers is not usable.
    #[error("one of the two headers is not usable ({0})")]
    Header(BrokenRule),
    /// One of the region tables is not usable.
    #[error("one of the two region tables is not usable ({0})")]
    RegionTable(BrokenRule),
    /// The log has to be replayed.
    #[error("the image was not closed: log entries to replay in memory: {0}; the file stays as it is")]
    LogReplayed(u64),
    /// Regions that this reader does not know, and that are not required.
    #[error("it has regions that are not known here: {0}")]
    UnknownRegions(String),
    /// Space that nothing refers to. Writers may set some aside.
    #[error("{0:#x} bytes of the file belong to no block")]
    UnusedSpace(u64),
}

impl Oddity {
    /// The stable name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Header(_) => "header-copy",
            Self::RegionTable(_) => "region-table-copy",
            Self::LogReplayed(_) => "log-replayed",
            Self::UnknownRegions(_) => "unknown-regions",
            Self::UnusedSpace(_) => "unused-space",
        }
    }
}

impl Image {
    /// Opens the image in `file`. Of a differencing image, only what it holds itself can be read from it.
    ///
    /// # Errors
    /// [`ImageError::Broken`] with the first rule that it breaks; [`ImageError::Unsupported`] for what it requires and this
    /// reader does not know; [`ImageError::Read`].
    pub fn open(file: Arc<dyn ImageFile>) -> Result<Self, ImageError> {
        let mut broken = Vec::new();
        let image = Self::read(file, &mut broken)?;
        match broken.into_iter().next() {
            Some(rule) => Err(rule.into()),
            None => Ok(image),
        }
    }

    /// Every rule that the image in `file` breaks, a hundred at most, and what is odd about one that breaks none.
    ///
    /// # Errors
    /// [`ImageError::Read`] and [`ImageError::Unsupported`].
    pub fn check(file: Arc<dyn ImageFile>) -> Result<(Option<Self>, Vec<BrokenRule>), ImageError> {
        let mut broken = Vec::new();
        match Self::read(file, &mut broken) {
            Ok(image) => Ok((broken.is_empty().then_some(image), broken)),
            Err(ImageError::Broken(rule)) => Ok((None, vec![rule])),
            Err(error) => Err(error),
        }
    }

    fn read(file: Arc<dyn ImageFile>, broken: &mut Vec<BrokenRule>) -> Result<Self, ImageError> {
        let file_len = file.len().at(0, 0)?;
        let (creator, headers) = header::read(&*file)?;
        let header = headers.current;
        let mut oddities: Vec<Oddity> = headers.other.map(Oddity::Header).into_iter().collect();
        let (log, file) = match log::read(&*file, &header, file_len)? {
            None => (
                LogState::Empty,
                PatchedFile::new(file, Patches::default(), file_len, file_len),
            ),
            Some(replay) => {
                oddities.push(Oddity::LogReplayed(replay.entries));
                let patched = PatchedFile::new(file, replay.patches, file_len, replay.file_len);
                (LogState::Replayed(replay.entries), patched)
            }
        };
        let file_len = file.len().at(0, 0)?;
        let regions = region::read(&file, &header, file_len)?;
        oddities.extend(regions.other.clone().map(Oddity::RegionTable));
        if !regions.unknown.is_empty() {
            oddities.push(Oddity::UnknownRegions(table::unknown_regions(&regions.unknown)));
        }
        let metadata = metadata::read(&file, regions.metadata)?;
        let table = Table::read(&file, &regions, &metadata, file_len, broken)?;
        if table.usage.unused_bytes > 0 {
            oddities.push(Oddity::UnusedSpace(table.usage.unused_bytes));
        }
        Ok(Self {
            file,
            header,
            disk_size: metadata.disk_size,
            metadata,
            table,
            bitmaps: Bitmaps::default(),
            creator,
            log,
            oddities,
        })
    }

    /// The header that counts.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// What the disk is.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The program that made the file, as it says.
    #[must_use]
    pub fn creator(&self) -> &str {
        &self.creator
    }

    /// How the space of the file is used.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.table.usage
    }

    /// Whether the log had to be replayed.
    #[must_use]
    pub fn log(&self) -> LogState {
        self.log
    }

    /// What is odd about it.
    #[must_use]
    pub fn oddities(&self) -> &[Oddity] {
        &self.oddities
    }

    /// Whether it needs a parent.
    #[must_use]
    pub fn is_differencing(&self) -> bool {
        self.metadata.disk_type == DiskType::Differencing
    }

    /// A range of a partly present block.
    fn partial(&self, block: u64, in_block: u64, len: u64, stored: u64) -> Result<(Place, u64), ImageError> {
        let sector_size = u64::from(self.metadata.logical_sector);
        let bits_len = u64::from(self.metadata.block_size) / sector_size / 8;
        let bits_at = self.table.bitmap_offset(block, self.metadata.logical_sector);
        let bits = self.bitmaps.get(&self.file, bits_at, bits_len)?;
        let first = in_block / sector_size;
        let (present, sectors) = bitmap::run(&bits, first, (in_block + len).div_ceil(sector_size) - first);
        let len = ((first + sectors) * sector_size - in_block).min(len);
        Ok(match present {
            true => self.stored(stored + in_block, len),
            false => (Place::Absent, len),
        })
    }

    /// A range of the file, unless the log changes it.
    fn stored(&self, offset: u64, len: u64) -> (Place, u64) {
        match self.file.untouched(offset, len) {
            (true, len) => (Place::Stored(offset), len),
            (false, len) => (Place::Computed, len),
        }
    }
}

impl Layer for Image {
    fn disk_size(&self) -> u64 {
        self.disk_size
    }

    fn place(&self, offset: u64, len: u64) -> Result<(Place, u64), ImageError> {
        let block_size = u64::from(self.metadata.block_size);
        let (block, in_block) = (offset / block_size, offset % block_size);
        let len = len.min(block_size - in_block);
        Ok(match self.table.block(block) {
            Block::Absent => (Place::Absent, len),
            Block::Zero => (Place::Zero, len),
            Block::Present(stored) => self.stored(stored + in_block, len),
            Block::Partial(stored) => return self.partial(block, in_block, len, stored),
        })
    }

    /// What the log changes, which is in one block.
    fn read_computed(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), ImageError> {
        let block_size = u64::from(self.metadata.block_size);
        let (Block::Present(stored) | Block::Partial(stored)) = self.table.block(offset / block_size) else {
            return Ok(());
        };
        let from = stored + offset % block_size;
        self.file.read_exact_vectored_at(bufs, from).at(from, 0)
    }

    fn file(&self) -> &dyn ImageFile {
        &self.file
    }

    fn table_memory(&self) -> u64 {
        self.table.memory()
    }
}
