//! A file as the readers of formats want it.

use std::io::{self, IoSliceMut};
use std::sync::Arc;

use image_formats::{ImageFile, Segment};

use crate::storage::{self, StorageFile};

/// A file, for reading.
pub(super) struct SharedFile(pub(super) Arc<dyn StorageFile>);

impl ImageFile for SharedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buf, offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.0.read_exact_vectored_at(bufs, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        let (segment, end) = self.0.segment_at(offset)?;
        let segment = match segment {
            storage::Segment::Data => Segment::Data,
            storage::Segment::Hole => Segment::Hole,
        };
        Ok((segment, end))
    }
}
