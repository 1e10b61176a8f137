//! A small disk made of windows of a large one: blocks may be huge while a test reads only some sectors.

use std::io::{IoSlice, IoSliceMut};

use vhd_core::device::{BlockDevice, ByteRange, DeviceError, DeviceInfo, ExtentVisitor, LayeredDevice, ZeroOptions};
use vhd_core::units::{u64_from, usize_from};

/// Where the windows are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Windows {
    /// Bytes of the small disk.
    pub(crate) size: u64,
    /// Bytes in each window.
    pub(crate) window: u64,
    /// Bytes from the start of a window to the start of the next.
    pub(crate) stride: u64,
}

impl Windows {
    /// One window: the whole disk.
    pub(crate) fn whole(size: u64) -> Self {
        Self {
            size,
            window: size,
            stride: size,
        }
    }

    /// The parts of a range of the small disk: where each is in it, and where on the large disk.
    fn parts(self, range: ByteRange) -> impl Iterator<Item = (ByteRange, ByteRange)> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            let within = at % self.window;
            let len = (range.end() - at).min(self.window - within);
            let part = (len > 0).then(|| {
                let large = at / self.window * self.stride + within;
                (ByteRange::new(at - range.start, len), ByteRange::new(large, len))
            });
            at += len;
            part
        })
    }
}

/// The windows of a disk, as a disk.
#[derive(Debug)]
pub(crate) struct View {
    device: LayeredDevice,
    windows: Windows,
}

impl View {
    pub(crate) fn new(device: LayeredDevice, windows: Windows) -> Self {
        Self { device, windows }
    }

    pub(crate) fn device(&self) -> &LayeredDevice {
        &self.device
    }

    pub(crate) fn close(self) -> Result<(), DeviceError> {
        self.device.close()
    }

    /// Without windows nothing is cut: a request below is the same as above.
    fn is_whole(&self) -> bool {
        self.windows.window == self.windows.size
    }

    fn each(
        &self,
        start: u64,
        len: u64,
        mut call: impl FnMut(usize, ByteRange) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        self.windows
            .parts(ByteRange::new(start, len))
            .try_for_each(|(part, large)| call(usize_from(part.start), large))
    }
}

impl BlockDevice for View {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn size_bytes(&self) -> u64 {
        self.windows.size
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        if self.is_whole() {
            return self.device.read_vectored_at(bufs, offset);
        }
        let mut at = offset;
        for buf in bufs {
            self.each(at, u64_from(buf.len()), |within, large| {
                let buf = &mut buf[within..within + usize_from(large.len)];
                self.device.read_vectored_at(&mut [IoSliceMut::new(buf)], large.start)
            })?;
            at += u64_from(buf.len());
        }
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        if self.is_whole() {
            return self.device.write_vectored_at(bufs, offset, fua);
        }
        let mut at = offset;
        for buf in bufs {
            self.each(at, u64_from(buf.len()), |within, large| {
                let buf = &buf[within..within + usize_from(large.len)];
                self.device.write_vectored_at(&[IoSlice::new(buf)], large.start, fua)
            })?;
            at += u64_from(buf.len());
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.device.flush()
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.each(range.start, range.len, |_, large| {
            self.device.write_zeroes(large, options)
        })
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.each(range.start, range.len, |_, large| self.device.discard(large))
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        self.each(range.start, range.len, |_, large| self.device.extents(large, visitor))
    }

    fn resize(&self, size: u64) -> Result<(), DeviceError> {
        self.device.resize(size)
    }
}
