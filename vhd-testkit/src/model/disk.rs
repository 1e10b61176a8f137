//! The simplest disk that keeps the contract.

use std::io::{IoSlice, IoSliceMut};
use std::ops::{ControlFlow, Range};
use std::sync::{Mutex, MutexGuard, PoisonError};

use vhd_core::device::{
    BlockDevice, ByteRange, Capabilities, DeviceError, DeviceInfo, Extent, ExtentKind, ExtentVisitor, ZeroOptions,
};
use vhd_core::units::{u64_from, usize_from};

use crate::bytes::is_zero;
use crate::operation::{joined, total};

/// Bytes in memory with the contract of a disk, for comparison with real ones.
#[derive(Debug)]
pub struct ModelDisk {
    info: DeviceInfo,
    bytes: Mutex<Vec<u8>>,
}

impl ModelDisk {
    /// A disk of zeroes with logical blocks of 512 bytes.
    ///
    /// # Panics
    /// When `size` is no multiple of 512.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self::from_bytes(vec![0; usize_from(size)])
    }

    /// A disk that holds `bytes`, with logical blocks of 512 bytes.
    ///
    /// # Panics
    /// When the length is no multiple of 512.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let mut capabilities = Capabilities::of_disk(true);
        capabilities.resize = true;
        let info = DeviceInfo::new(Some(*b"vhd-testkitmodel"), 65536, capabilities);
        Self {
            info,
            bytes: Mutex::new(bytes),
        }
        .with_block_size(512)
    }

    /// The same disk with other logical blocks.
    ///
    /// # Panics
    /// When the disk is not made of whole blocks.
    #[must_use]
    pub fn with_block_size(mut self, block: u32) -> Self {
        assert!(
            self.size_bytes().is_multiple_of(u64::from(block)),
            "the disk is not made of whole blocks"
        );
        self.info.logical_block_size = block;
        self.info.physical_block_size = self.info.physical_block_size.max(block);
        self.info.preferred_transfer = self.info.preferred_transfer.max(block);
        self
    }

    /// The same disk, refusing all changes.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.info.capabilities = Capabilities::default();
        self
    }

    /// The content.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, len: u64, size: u64) -> Result<Range<usize>, DeviceError> {
        let block = self.info.logical_block_size;
        if !offset.is_multiple_of(u64::from(block)) || !len.is_multiple_of(u64::from(block)) {
            return Err(DeviceError::Misaligned { offset, len, block });
        }
        match offset.checked_add(len) {
            Some(end) if end <= size => Ok(usize_from(offset)..usize_from(end)),
            _ => Err(DeviceError::OutOfRange { offset, len, size }),
        }
    }

    fn change(&self, range: ByteRange, change: impl FnOnce(&mut [u8])) -> Result<(), DeviceError> {
        if !self.info.capabilities.write {
            return Err(DeviceError::ReadOnly);
        }
        let mut bytes = self.lock();
        let range = self.check(range.start, range.len, u64_from(bytes.len()))?;
        change(&mut bytes[range]);
        Ok(())
    }
}

impl BlockDevice for ModelDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        u64_from(self.lock().len())
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        let bytes = self.lock();
        let range = self.check(offset, total(bufs.iter().map(|buf| buf.len())), u64_from(bytes.len()))?;
        let mut rest = &bytes[range];
        for buf in bufs {
            let (now, later) = rest.split_at(buf.len());
            buf.copy_from_slice(now);
            rest = later;
        }
        Ok(())
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, _fua: bool) -> Result<(), DeviceError> {
        let data = joined(bufs);
        self.change(ByteRange::new(offset, u64_from(data.len())), |bytes| {
            bytes.copy_from_slice(&data)
        })
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn write_zeroes(&self, range: ByteRange, _options: ZeroOptions) -> Result<(), DeviceError> {
        self.change(range, |bytes| bytes.fill(0))
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.change(range, |bytes| bytes.fill(0))
    }

    /// Blocks of zeroes are holes, all others are data at their own offset.
    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        // A copy, so that the visitor may call back.
        let bytes = self.bytes();
        let checked = self.check(range.start, range.len, u64_from(bytes.len()))?;
        let block = usize_from(u64::from(self.info.logical_block_size));
        let mut position = checked.start;
        for same in bytes[checked]
            .chunks(block)
            .collect::<Vec<_>>()
            .chunk_by(|a, b| is_zero(a) == is_zero(b))
        {
            let (start, hole) = (u64_from(position), is_zero(same[0]));
            position += same.len() * block;
            let extent = Extent {
                range: ByteRange::new(start, u64_from(position) - start),
                kind: if hole { ExtentKind::Hole } else { ExtentKind::Data },
                depth: 0,
                file_offset: (!hole).then_some(start),
            };
            if visitor(extent) == ControlFlow::Break(()) {
                break;
            }
        }
        Ok(())
    }

    fn resize(&self, size: u64) -> Result<(), DeviceError> {
        if !self.info.capabilities.resize {
            return Err(DeviceError::Unsupported("be resized"));
        }
        self.check(0, size, u64::MAX)?;
        self.lock().resize(usize_from(size), 0);
        Ok(())
    }
}
