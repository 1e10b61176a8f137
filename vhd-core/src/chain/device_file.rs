//! The bytes of a disk as a file that can be read: an image that lies on a disk of a server.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::ControlFlow;

use crate::device::{ByteRange, DeviceError, Disk, ExtentKind};
use crate::storage::{Segment, StorageFile};

/// A disk as a file for reading.
#[derive(Debug)]
pub(super) struct DeviceFile {
    disk: Disk,
}

impl DeviceFile {
    pub(super) fn new(disk: Disk) -> Self {
        Self { disk }
    }
}

/// A read past the end is one of a file that is too short.
fn as_io(error: DeviceError) -> io::Error {
    match error {
        DeviceError::OutOfRange { .. } => io::ErrorKind::UnexpectedEof.into(),
        error => io::Error::other(error),
    }
}

fn read_only<T>() -> io::Result<T> {
    Err(io::ErrorKind::ReadOnlyFilesystem.into())
}

impl StorageFile for DeviceFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(buf, offset).map_err(as_io)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.disk.read_vectored_at(bufs, offset).map_err(as_io)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.size())
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        let size = self.disk.size();
        let mut first = (Segment::Hole, offset);
        if offset < size {
            let range = ByteRange::new(offset, size - offset);
            let visited = self.disk.extents(range, &mut |extent| {
                let segment = match extent.kind {
                    ExtentKind::Data => Segment::Data,
                    ExtentKind::Zero | ExtentKind::Hole => Segment::Hole,
                };
                first = (segment, extent.range.start + extent.range.len);
                ControlFlow::Break(())
            });
            visited.map_err(io::Error::other)?;
        }
        Ok(first)
    }

    fn write_all_at(&self, _buf: &[u8], _offset: u64) -> io::Result<()> {
        read_only()
    }

    fn write_all_vectored_at(&self, _bufs: &[IoSlice<'_>], _offset: u64) -> io::Result<()> {
        read_only()
    }

    fn set_len(&self, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, _offset: u64, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn zero_range(&self, _offset: u64, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn allocate(&self, _offset: u64, _len: u64) -> io::Result<()> {
        read_only()
    }

    fn share_range_from(&self, _: &dyn StorageFile, _: u64, _: u64, _: u64) -> io::Result<()> {
        read_only()
    }

    fn host_file(&self) -> Option<&File> {
        None
    }
}
