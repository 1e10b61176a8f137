//! The handle of a disk that frontends hold.

use std::fmt;
use std::io::{IoSlice, IoSliceMut};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use crate::counters::{Counters, DiskStats};
use crate::units::{u64_from, usize_from};
use crate::{BlockDevice, ByteRange, DeviceError, DeviceInfo, Extent, ReadSpan, WriteSpan, ZeroOptions, scatter};

/// A disk, cheap to clone. It takes any byte offset and length, checks them once, and counts.
///
/// Requests that are not aligned to the device's logical blocks are completed by reading the blocks at
/// their edges; two such writes to one block do not lose each other's bytes.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    device: Arc<dyn BlockDevice>,
    counters: Counters,
    /// Held while the rest of a block is read, changed and written back.
    partial_writes: Mutex<()>,
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({} bytes, {:?})", self.size(), self.stats())
    }
}

/// A request cut at the borders of blocks.
struct Cut {
    /// Bytes before the first border.
    head: u64,
    /// Bytes in whole blocks.
    body: u64,
    /// Bytes behind the last border.
    tail: u64,
}

impl Disk {
    /// A handle for `device`.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>) -> Self {
        let inner = Inner {
            device,
            counters: Counters::default(),
            partial_writes: Mutex::new(()),
        };
        Self { inner: Arc::new(inner) }
    }

    /// What is known of the device.
    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        self.inner.device.info()
    }

    /// Bytes on the disk.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.inner.device.size_bytes()
    }

    /// What went through this handle and its clones.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        self.inner.counters.sum()
    }

    /// Fills `buf` from byte `offset`.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        self.begin_read(offset, u64_from(buf.len()))?;
        if self.is_aligned(offset, u64_from(buf.len())) {
            return self.inner.device.read_at(buf, offset);
        }
        self.read_unaligned(buf, offset)
    }

    /// Fills `bufs` in turn from byte `offset`.
    pub fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        self.begin_read(offset, len)?;
        if self.is_aligned(offset, len) {
            return self.inner.device.read_vectored_at(bufs, offset);
        }
        let mut at = offset;
        for buf in bufs {
            self.read_unaligned(buf, at)?;
            at += u64_from(buf.len());
        }
        Ok(())
    }

    /// Writes `buf` at byte `offset`.
    pub fn write_at(&self, buf: &[u8], offset: u64) -> Result<(), DeviceError> {
        self.write_vectored_at(&[IoSlice::new(buf)], offset, false)
    }

    /// Writes `bufs` in turn at byte `offset`; with `fua` they are durable on return.
    pub fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        self.check_write(offset, len)?;
        let counters = self.inner.counters.here();
        counters.writes.add(1);
        counters.bytes_written.add(len);
        tracing::trace!(offset, len, fua, "write");
        if self.is_aligned(offset, len) {
            return self.inner.device.write_vectored_at(bufs, offset, fua);
        }
        let mut at = offset;
        for buf in bufs {
            self.write_unaligned(buf, at)?;
            at += u64_from(buf.len());
        }
        if fua { self.inner.device.flush() } else { Ok(()) }
    }

    /// Makes every write that returned before the call durable.
    pub fn flush(&self) -> Result<(), DeviceError> {
        self.inner.counters.here().flushes.add(1);
        tracing::trace!("flush");
        self.inner.device.flush()
    }

    /// Makes the range read zero.
    pub fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.check_write(range.start, range.len)?;
        self.inner.counters.here().zeroes.add(1);
        tracing::trace!(?range, ?options, "write zeroes");
        let Cut { head, body, tail } = self.cut(range.start, range.len);
        if options.fast_only && head + tail > 0 {
            return Err(DeviceError::NotFast);
        }
        let block = usize_from(self.block());
        self.write_unaligned(&vec![0; block][..usize_from(head)], range.start)?;
        if body > 0 {
            let whole = ByteRange::new(range.start + head, body);
            self.inner
                .device
                .write_zeroes(whole, ZeroOptions { fua: false, ..options })?;
        }
        self.write_unaligned(&vec![0; block][..usize_from(tail)], range.start + head + body)?;
        if options.fua { self.inner.device.flush() } else { Ok(()) }
    }

    /// Says that the content of the range is not needed; blocks that are not wholly inside stay as they are.
    pub fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.check_write(range.start, range.len)?;
        self.inner.counters.here().discards.add(1);
        tracing::trace!(?range, "discard");
        let Cut { head, body, .. } = self.cut(range.start, range.len);
        if body == 0 {
            return Ok(());
        }
        self.inner.device.discard(ByteRange::new(range.start + head, body))
    }

    /// Visits the extents of the range, which is widened to whole blocks.
    pub fn extents(
        &self,
        range: ByteRange,
        visitor: &mut dyn FnMut(Extent) -> ControlFlow<()>,
    ) -> Result<(), DeviceError> {
        self.check(range.start, range.len)?;
        self.inner.device.extents(self.widened(range), visitor)
    }

    /// Where the first bytes of a range are, for one who moves them himself: at most as many as the range has. What follows
    /// is asked for again. The span stays good until it is dropped, whatever happens to the disk meanwhile.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] without the capability `resolve`, and those of [`read_at`](Self::read_at).
    pub fn resolve_read(&self, range: ByteRange) -> Result<ReadSpan, DeviceError> {
        if range.len == 0 {
            self.check(range.start, 0)?;
            return Ok(ReadSpan::Zero { len: 0 });
        }
        self.check(range.start, range.len)?;
        let span = match self.is_aligned(range.start, range.len) {
            true => self.inner.device.resolve_read(range)?,
            false => {
                let blocks = self.widened(range);
                let span = self.inner.device.resolve_read(blocks)?;
                span.part(range.start - blocks.start, range.len)
            }
        };
        self.count_read(range.start, span.len());
        Ok(span)
    }

    /// A place for the first bytes of a range, for one who writes them himself: at most as many as the range has. What
    /// follows is asked for again. Each place counts as a write.
    ///
    /// # Errors
    /// [`DeviceError::Unsupported`] without the capability `resolve`, [`DeviceError::Misaligned`] for a range that is not of
    /// whole logical blocks or is empty, and those of [`write_at`](Self::write_at).
    pub fn resolve_write(&self, range: ByteRange) -> Result<WriteSpan, DeviceError> {
        self.check_write(range.start, range.len)?;
        if range.len == 0 || !self.is_aligned(range.start, range.len) {
            let block = self.info().logical_block_size;
            let (offset, len) = (range.start, range.len);
            return Err(DeviceError::Misaligned { offset, len, block });
        }
        let span = self.inner.device.resolve_write(range)?;
        let counters = self.inner.counters.here();
        counters.writes.add(1);
        counters.bytes_written.add(span.len());
        tracing::trace!(offset = range.start, len = span.len(), "write to a span");
        Ok(span)
    }

    /// Changes the size of the disk.
    pub fn resize(&self, size: u64) -> Result<(), DeviceError> {
        self.inner.device.resize(size)
    }

    fn block(&self) -> u64 {
        u64::from(self.info().logical_block_size)
    }

    /// The whole blocks that have the range.
    fn widened(&self, range: ByteRange) -> ByteRange {
        let start = range.start - range.start % self.block();
        let end = range.end().next_multiple_of(self.block());
        ByteRange::new(start, end - start)
    }

    pub(crate) fn is_aligned(&self, offset: u64, len: u64) -> bool {
        // A power of two: a division would take longer than the rest of this layer.
        (offset | len) & (self.block() - 1) == 0
    }

    fn begin_read(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.check(offset, len)?;
        self.count_read(offset, len);
        Ok(())
    }

    fn count_read(&self, offset: u64, len: u64) {
        let counters = self.inner.counters.here();
        counters.reads.add(1);
        counters.bytes_read.add(len);
        tracing::trace!(offset, len, "read");
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        let size = self.size();
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(DeviceError::OutOfRange { offset, len, size });
        }
        Ok(())
    }

    fn check_write(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if !self.info().capabilities.write {
            return Err(DeviceError::ReadOnly);
        }
        self.check(offset, len)
    }

    fn cut(&self, offset: u64, len: u64) -> Cut {
        let block = self.block();
        let head = (offset.next_multiple_of(block) - offset).min(len);
        let tail = (len - head) % block;
        Cut {
            head,
            body: len - head - tail,
            tail,
        }
    }

    fn read_unaligned(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        let Cut { head, body, .. } = self.cut(offset, u64_from(buf.len()));
        let (head_buf, rest) = buf.split_at_mut(usize_from(head));
        let (body_buf, tail_buf) = rest.split_at_mut(usize_from(body));
        self.read_inside_block(head_buf, offset)?;
        if body > 0 {
            self.inner
                .device
                .read_vectored_at(&mut [IoSliceMut::new(body_buf)], offset + head)?;
        }
        self.read_inside_block(tail_buf, offset + head + body)
    }

    fn read_inside_block(&self, buf: &mut [u8], offset: u64) -> Result<(), DeviceError> {
        if buf.is_empty() {
            return Ok(());
        }
        let (block, within) = self.read_block(offset)?;
        buf.copy_from_slice(&block[within..within + buf.len()]);
        Ok(())
    }

    fn write_unaligned(&self, buf: &[u8], offset: u64) -> Result<(), DeviceError> {
        let Cut { head, body, .. } = self.cut(offset, u64_from(buf.len()));
        let (head_buf, rest) = buf.split_at(usize_from(head));
        let (body_buf, tail_buf) = rest.split_at(usize_from(body));
        self.write_inside_block(head_buf, offset)?;
        if body > 0 {
            self.inner
                .device
                .write_vectored_at(&[IoSlice::new(body_buf)], offset + head, false)?;
        }
        self.write_inside_block(tail_buf, offset + head + body)
    }

    fn write_inside_block(&self, buf: &[u8], offset: u64) -> Result<(), DeviceError> {
        if buf.is_empty() {
            return Ok(());
        }
        let _alone = self.inner.partial_writes.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut block, within) = self.read_block(offset)?;
        block[within..within + buf.len()].copy_from_slice(buf);
        self.inner
            .device
            .write_vectored_at(&[IoSlice::new(&block)], offset - u64_from(within), false)
    }

    /// The block that holds byte `offset`, and where in it that byte is.
    fn read_block(&self, offset: u64) -> Result<(Vec<u8>, usize), DeviceError> {
        let within = offset % self.block();
        let mut block = vec![0; usize_from(self.block())];
        self.inner
            .device
            .read_vectored_at(&mut [IoSliceMut::new(&mut block)], offset - within)?;
        Ok((block, usize_from(within)))
    }
}
