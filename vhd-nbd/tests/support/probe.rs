//! A disk that waits, counts and panics as it is told to.

use std::io::{IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use vhd_block::{BlockDevice, ByteRange, DeviceError, DeviceInfo, Disk, ExtentVisitor, ZeroOptions};
use vhd_core::device::RawDevice;
use vhd_core::storage::{MemoryFile, StorageFile as _};

/// A disk in memory of which every byte is stored, with its troubles.
pub struct Probe {
    inner: RawDevice,
    held: Mutex<bool>,
    released: Condvar,
    /// Reads that were begun.
    pub reads: AtomicU64,
    /// Flushes that were begun.
    pub flushes: AtomicU64,
    /// The next flush panics.
    pub panics: AtomicBool,
}

impl Probe {
    pub fn new(size: u64) -> Arc<Self> {
        let file = MemoryFile::new();
        file.set_len(size).unwrap();
        let inner = RawDevice::new(Arc::new(file), true).unwrap();
        let stored = vec![7; size.min(8 << 20).try_into().unwrap()];
        inner.write_vectored_at(&[IoSlice::new(&stored)], 0, false).unwrap();
        Arc::new(Self {
            inner,
            held: Mutex::new(false),
            released: Condvar::new(),
            reads: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            panics: AtomicBool::new(false),
        })
    }

    /// Gives the disk many extents.
    pub fn fragment(&self) {
        let options = ZeroOptions {
            may_unmap: true,
            ..ZeroOptions::default()
        };
        for start in (0..8 << 20).step_by(8192) {
            self.inner.write_zeroes(ByteRange::new(start, 4096), options).unwrap();
        }
    }

    pub fn disk(self: &Arc<Self>) -> Disk {
        Disk::new(Arc::clone(self) as _)
    }

    /// From now on flushes wait until they are let go.
    pub fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    /// Lets all flushes go.
    pub fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.released.notify_all();
    }

    /// Waits until so many flushes have begun.
    pub fn await_flushes(&self, count: u64) {
        while self.flushes.load(Ordering::SeqCst) < count {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl BlockDevice for Probe {
    fn info(&self) -> &DeviceInfo {
        self.inner.info()
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.inner.read_vectored_at(bufs, offset)
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        self.inner.write_vectored_at(bufs, offset, fua)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        let held = self.held.lock().unwrap();
        drop(self.released.wait_while(held, |held| *held).unwrap());
        assert!(!self.panics.swap(false, Ordering::SeqCst), "as it was told to");
        self.inner.flush()
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.inner.write_zeroes(range, options)
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.inner.discard(range)
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        self.inner.extents(range, visitor)
    }

    fn resize(&self, size: u64) -> Result<(), DeviceError> {
        self.inner.resize(size)
    }
}
