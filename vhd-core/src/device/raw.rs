//! A raw image: the file is the disk.

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use vhd_block::{
    BlockDevice, ByteRange, Capabilities, Coalescer, DeviceError, DeviceInfo, ExtentVisitor, LOGICAL_BLOCK, ReadSpan,
    SpanFile, SpanStorage, WriteSpan, ZeroOptions, check_range, scatter,
};

use super::spans::{in_raw, of_raw};
use super::stretches::{Stretches, push_stored};
use crate::image::{IoContext, Poison, discard_file_range, zero_file_range};
use crate::storage::{LeastLen, PaddedFile, StorageFile};

/// Bytes per request that are cheapest for a plain file.
const PREFERRED_TRANSFER: u32 = 1 << 20;

/// A disk that is a plain file. A file that is no multiple of 512 bytes long reads zero up to the next one.
#[derive(Debug)]
pub struct RawDevice {
    file: Arc<PaddedFile>,
    span_file: Arc<dyn SpanStorage>,
    info: DeviceInfo,
    poison: Poison,
    least_len: LeastLen,
}

impl RawDevice {
    /// The disk in `file`, whose present length is its size.
    pub fn new(file: Arc<dyn StorageFile>, writable: bool) -> std::io::Result<Self> {
        let mut capabilities = Capabilities::of_disk(writable);
        capabilities.resolve = true;
        let info = DeviceInfo::new(None, PREFERRED_TRANSFER, capabilities);
        let len = file.len()?;
        let file = Arc::new(PaddedFile::new(file, u64::from(LOGICAL_BLOCK))?);
        Ok(Self {
            least_len: LeastLen::new(len),
            span_file: of_raw(Arc::clone(&file) as _, len, file.padded_len()),
            file,
            info,
            poison: Poison::new(),
        })
    }

    /// The file that is the disk.
    #[must_use]
    pub fn file(&self) -> &dyn StorageFile {
        &*self.file
    }

    /// Whether somebody has a span of the file.
    pub(crate) fn has_spans(&self) -> bool {
        Arc::strong_count(&self.span_file) > 1
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if !self.info.capabilities.write {
            return Err(DeviceError::ReadOnly);
        }
        self.poison.check()?;
        check_range(offset, len, self.file.padded_len())
    }

    fn flush_if(&self, fua: bool) -> Result<(), DeviceError> {
        if fua { self.flush() } else { Ok(()) }
    }
}

impl BlockDevice for RawDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.file.padded_len()
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        check_range(offset, len, self.file.padded_len())?;
        self.file
            .read_exact_vectored_at(bufs, offset)
            .io_context("read", offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        self.check_write(offset, len)?;
        self.file
            .write_all_vectored_at(bufs, offset)
            .io_context("write", offset)?;
        self.flush_if(fua)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        if !self.info.capabilities.write {
            return Ok(());
        }
        self.poison.check()?;
        self.poison
            .on_error(self.least_len.check(|| self.file.len()).io_context("flush", 0))?;
        self.poison.on_error(self.file.sync().io_context("sync", 0))
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.check_write(range.start, range.len)?;
        zero_file_range(&*self.file, range.start, range.len, options)?;
        self.flush_if(options.fua)
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.check_write(range.start, range.len)?;
        discard_file_range(&*self.file, range.start, range.len)
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        check_range(range.start, range.len, self.file.padded_len())?;
        let mut coalescer = Coalescer::new(visitor);
        let pushed = push_stored(
            &mut coalescer,
            &mut Stretches::default(),
            &*self.file,
            range,
            0,
            range.start,
        );
        if pushed.io_context("look for holes", range.start)?.is_continue() {
            coalescer.finish();
        }
        Ok(())
    }

    fn resolve_read(&self, range: ByteRange) -> Result<ReadSpan, DeviceError> {
        check_range(range.start, range.len, self.file.padded_len())?;
        Ok(ReadSpan::Data {
            file: SpanFile::new(Arc::clone(&self.span_file)),
            offset: range.start,
            len: range.len,
        })
    }

    fn resolve_write(&self, range: ByteRange) -> Result<WriteSpan, DeviceError> {
        self.check_write(range.start, range.len)?;
        Ok(in_raw(&self.span_file, range))
    }

    fn resize(&self, _size: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("be resized"))
    }
}
