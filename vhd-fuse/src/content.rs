//! The bytes of a file.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vhd_block::units::{u64_from, usize_from};
use vhd_block::{ByteRange, Disk, Extent, ExtentKind, ZeroOptions};

use crate::NodeError;

/// How long a count of the stored bytes of a disk that is written to is shown. Counting walks the block tables.
const USAGE_AGE: Duration = Duration::from_secs(2);

/// A file that a caller reads, such as one inside a file system of a disk.
pub trait ReadFile: Send + Sync {
    /// Bytes.
    fn size(&self) -> u64;

    /// Up to `len` bytes from byte `offset`; fewer are the end of the file.
    ///
    /// # Errors
    /// What reading meets.
    fn read_at(&self, offset: u64, len: usize) -> Result<Vec<u8>, NodeError>;
}

/// The bytes of a file.
#[derive(Clone)]
pub enum Content {
    /// A part of a disk, or all of it.
    Disk(Arc<DiskPart>),
    /// Bytes in memory.
    Bytes(Arc<[u8]>),
    /// Whatever the caller reads.
    Other(Arc<dyn ReadFile>),
}

impl Content {
    /// A whole disk, read-only.
    #[must_use]
    pub fn disk(disk: Disk) -> Self {
        Self::Disk(Arc::new(DiskPart::whole(disk)))
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Disk(part) => part.len(),
            Self::Bytes(bytes) => u64_from(bytes.len()),
            Self::Other(file) => file.size(),
        }
    }

    /// Bytes that take space.
    pub(crate) fn stored(&self) -> u64 {
        match self {
            Self::Disk(part) => part.stored(),
            _ => self.size(),
        }
    }

    /// The disk that is written, if this can be.
    pub(crate) fn writable(&self) -> Result<&DiskPart, NodeError> {
        match self {
            Self::Disk(part) if part.writable => Ok(part),
            _ => Err(NodeError::ReadOnly),
        }
    }

    /// Reads up to `len` bytes into `buf`, which holds exactly those afterwards.
    pub(crate) fn read_at(&self, buf: &mut Vec<u8>, offset: u64, len: usize) -> Result<(), NodeError> {
        match self {
            Self::Disk(part) => {
                let len = usize_from(part.len().saturating_sub(offset)).min(len);
                // The buffer is used again and again: what it held is overwritten, and not cleared before.
                buf.resize(len, 0);
                Ok(part.disk.read_at(buf, part.start + offset)?)
            }
            Self::Bytes(bytes) => {
                let rest = bytes.get(usize_from(offset)..).unwrap_or_default();
                buf.clear();
                buf.extend(&rest[..len.min(rest.len())]);
                Ok(())
            }
            Self::Other(file) => {
                *buf = file.read_at(offset, len)?;
                Ok(())
            }
        }
    }
}

/// A part of a disk, or all of it.
pub struct DiskPart {
    disk: Disk,
    start: u64,
    /// Bytes, or all to the end of the disk, whose size may change.
    len: Option<u64>,
    pub(crate) writable: bool,
    /// Another file changes what is here: the kernel must not keep it.
    pub(crate) changes: bool,
    /// The host file that has exactly these bytes and no others, which the kernel then reads by itself.
    pub(crate) passthrough: Option<File>,
    usage: Mutex<Option<(Instant, u64, u64)>>,
    /// Writes so far, so that a count of before is known to be old.
    writes: AtomicU64,
}

impl DiskPart {
    /// The whole disk, read-only.
    #[must_use]
    pub fn whole(disk: Disk) -> Self {
        Self {
            disk,
            start: 0,
            len: None,
            writable: false,
            changes: false,
            passthrough: None,
            usage: Mutex::new(None),
            writes: AtomicU64::new(0),
        }
    }

    /// The bytes `range` of a disk, read-only; what is behind its end is cut.
    #[must_use]
    pub fn range(disk: Disk, range: ByteRange) -> Self {
        let len = range.len.min(disk.size().saturating_sub(range.start));
        Self {
            start: range.start,
            len: Some(len),
            ..Self::whole(disk)
        }
    }

    /// The same, writable.
    #[must_use]
    pub fn writable(self) -> Self {
        Self { writable: true, ..self }
    }

    /// The same, where the disk changes through another file: the kernel keeps nothing of it.
    #[must_use]
    pub fn changing(self) -> Self {
        Self { changes: true, ..self }
    }

    /// The same, read by the kernel from `file` without a request, where the kernel can. The file must have exactly
    /// these bytes, and no more: the kernel shows all that it has.
    #[must_use]
    pub fn passthrough(self, file: File) -> Self {
        Self {
            passthrough: Some(file),
            ..self
        }
    }

    /// Bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len.unwrap_or_else(|| self.disk.size())
    }

    pub(crate) fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), NodeError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        Ok(self.disk.write_at(bytes, self.start + offset)?)
    }

    pub(crate) fn flush(&self) -> Result<(), NodeError> {
        Ok(self.disk.flush()?)
    }

    /// Makes a range read zero; its space is given back if `may_unmap`.
    pub(crate) fn zero(&self, offset: u64, len: u64, may_unmap: bool) -> Result<(), NodeError> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        let options = ZeroOptions {
            may_unmap,
            ..ZeroOptions::default()
        };
        Ok(self
            .disk
            .write_zeroes(ByteRange::new(self.start + offset, len), options)?)
    }

    /// The first byte from `offset` on that is stored (`data`) or not, or nothing if there is none before the end.
    pub(crate) fn seek(&self, offset: u64, data: bool) -> Result<Option<u64>, NodeError> {
        let mut found = None;
        self.extents(offset, &mut |start, _, is_data| {
            if is_data == data {
                found = Some(start.max(offset));
            }
            found.is_none()
        })?;
        Ok(found)
    }

    /// Bytes that are stored.
    fn stored(&self) -> u64 {
        let writes = self.writes.load(Ordering::Relaxed);
        let mut usage = self.usage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, of, bytes)) = *usage
            && (of == writes && !self.changes || at.elapsed() < USAGE_AGE)
        {
            return bytes;
        }
        let mut bytes = 0;
        let counted = self.extents(0, &mut |_, len, is_data| {
            bytes += if is_data { len } else { 0 };
            true
        });
        // What cannot be counted is shown as stored: programs then read it, and see the error.
        let bytes = if counted.is_ok() { bytes } else { self.len() };
        *usage = Some((Instant::now(), writes, bytes));
        bytes
    }

    /// Visits the extents from `offset` on: start in this part, length, whether it is stored. The visitor says whether
    /// it wants more.
    fn extents(&self, offset: u64, visitor: &mut dyn FnMut(u64, u64, bool) -> bool) -> Result<(), NodeError> {
        let len = self.len();
        if offset >= len {
            return Ok(());
        }
        let range = ByteRange::new(self.start + offset, len - offset);
        self.disk.extents(range, &mut |extent: Extent| {
            let is_data = extent.kind == ExtentKind::Data;
            let start = extent.range.start.max(self.start) - self.start;
            match visitor(start, extent.range.len, is_data) {
                true => std::ops::ControlFlow::Continue(()),
                false => std::ops::ControlFlow::Break(()),
            }
        })?;
        Ok(())
    }
}
