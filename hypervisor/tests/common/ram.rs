//! A disk in memory that counts its flushes and can refuse.

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use vhd_block::{
    BlockDevice, ByteRange, Capabilities, DeviceError, DeviceInfo, Disk, Extent, ExtentKind, ExtentVisitor,
    ZeroOptions, check_range, scatter,
};

pub(crate) struct Ram {
    info: DeviceInfo,
    pub(crate) bytes: Mutex<Vec<u8>>,
    pub(crate) flushes: AtomicU32,
    pub(crate) fails: AtomicBool,
}

impl Ram {
    /// A disk of `len` bytes, and what is behind it.
    pub(crate) fn disk(len: usize) -> (Disk, Arc<Self>) {
        let mut capabilities = Capabilities::of_disk(true);
        capabilities.fast_zero = false;
        let ram = Arc::new(Self {
            info: DeviceInfo::new(Some([1; 16]), 4096, capabilities),
            bytes: Mutex::new(vec![0; len]),
            flushes: AtomicU32::new(0),
            fails: AtomicBool::new(false),
        });
        (Disk::new(Arc::clone(&ram) as _), ram)
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if self.fails.load(Ordering::Relaxed) {
            return Err(DeviceError::Poisoned);
        }
        check_range(offset, len, self.size_bytes())
    }
}

impl BlockDevice for Ram {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        self.check(offset, len)?;
        let bytes = self.bytes.lock().unwrap();
        scatter::for_each_mut(bufs, 0, len as usize, |part, at| {
            part.copy_from_slice(&bytes[offset as usize + at..][..part.len()]);
            Ok(())
        })
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, _fua: bool) -> Result<(), DeviceError> {
        let len = scatter::total_len(bufs.iter().map(|buf| &**buf));
        self.check(offset, len)?;
        let mut bytes = self.bytes.lock().unwrap();
        scatter::for_each(bufs, 0, len as usize, |part, at| {
            bytes[offset as usize + at..][..part.len()].copy_from_slice(part);
            Ok(())
        })
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.check(0, 0)?;
        self.flushes.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, _options: ZeroOptions) -> Result<(), DeviceError> {
        self.check(range.start, range.len)?;
        self.bytes.lock().unwrap()[range.start as usize..range.end() as usize].fill(0);
        Ok(())
    }

    /// Discarded bytes read zero, so that a test can see them.
    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.write_zeroes(range, ZeroOptions::default())
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        self.check(range.start, range.len)?;
        let _ = visitor(Extent {
            range,
            kind: ExtentKind::Data,
            depth: 0,
            file_offset: Some(range.start),
        });
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<(), DeviceError> {
        self.check(0, 0)?;
        self.bytes.lock().unwrap().resize(size as usize, 0);
        Ok(())
    }
}
