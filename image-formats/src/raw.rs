//! A raw file as the base of a chain.

use std::io::IoSliceMut;
use std::sync::Arc;

use crate::error::ReadContext as _;
use crate::{ImageError, ImageFile, Layer, Place};

/// A file whose bytes are the disk's.
pub struct RawLayer {
    file: Arc<dyn ImageFile>,
    len: u64,
}

impl RawLayer {
    /// The disk in `file`.
    ///
    /// # Errors
    /// [`ImageError::Read`].
    pub fn new(file: Arc<dyn ImageFile>) -> Result<Self, ImageError> {
        let len = file.len().at(0, 0)?;
        Ok(Self { file, len })
    }
}

impl Layer for RawLayer {
    fn disk_size(&self) -> u64 {
        self.len
    }

    fn place(&self, offset: u64, len: u64) -> Result<(Place, u64), ImageError> {
        Ok((Place::Stored(offset), len))
    }

    fn read_computed(&self, _: &mut [IoSliceMut<'_>], _: u64) -> Result<(), ImageError> {
        Ok(())
    }

    fn file(&self) -> &dyn ImageFile {
        &*self.file
    }

    fn table_memory(&self) -> u64 {
        0
    }
}
