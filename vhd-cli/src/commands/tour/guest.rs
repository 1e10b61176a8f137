//! Plays the guest: writes to a disk through the library, and knows what must be on it.

use std::path::Path;

use vhd_core::chain::OpenOptions;
use vhd_core::units::usize_from;

use crate::failure::Failure;

/// A disk's expected content.
#[derive(Clone)]
pub(super) struct Guest {
    bytes: Vec<u8>,
}

impl Guest {
    /// Of a new disk.
    pub(super) fn new(size: u64) -> Self {
        Self {
            bytes: vec![0; usize_from(size)],
        }
    }

    /// What must be on the disk.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Writes `len` bytes at `offset` of the image at `path`, and flushes.
    pub(super) fn write(&mut self, path: &Path, offset: u64, len: u64, seed: u8) -> Result<(), Failure> {
        self.write_as(&OpenOptions::new(), path, offset, len, seed)
    }

    /// The same without a thought for who relies on the image, as other programs do it.
    pub(super) fn tamper(&mut self, path: &Path, offset: u64, len: u64, seed: u8) -> Result<(), Failure> {
        self.write_as(&OpenOptions::new().ignore_children(true), path, offset, len, seed)
    }

    fn write_as(&mut self, options: &OpenOptions, path: &Path, offset: u64, len: u64, seed: u8) -> Result<(), Failure> {
        let start = usize_from(offset);
        let target = &mut self.bytes[start..start + usize_from(len)];
        for (byte, step) in target.iter_mut().zip((1_u8..=251).cycle()) {
            *byte = seed.wrapping_add(step);
        }
        let opened = options.clone().write(true).open(path)?;
        opened.disk().write_at(target, offset)?;
        opened.close()?;
        Ok(())
    }

    /// Whether the file at `path` has exactly this content.
    pub(super) fn is_content_of(&self, path: &Path) -> Result<bool, Failure> {
        let found = std::fs::read(path).map_err(|error| Failure::io("read", path, &error))?;
        Ok(found == self.bytes)
    }
}
