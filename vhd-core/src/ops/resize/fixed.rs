//! One fixed image gets another size: the footer goes to another place.
//!
//! Length and content of a file become durable apart, so a fixed image that grows has a moment in which its end is
//! not a footer yet. The record beside it (INV-28) covers that moment.

use super::ResizeError;
use crate::device::DeviceError;
use crate::format::{FOOTER_SIZE, Footer};
use crate::image::IoContext;
use crate::storage::{StorageFile, clear_range};
use crate::units::u64_from;

/// Where both footers of a fixed image that grows or shrinks belong, and what they say.
pub(super) struct FixedFooters {
    pub(super) from: Footer,
    /// As it was found.
    pub(super) from_raw: [u8; FOOTER_SIZE],
    pub(super) to: Footer,
}

impl FixedFooters {
    /// Grows the file, whatever part of that has been done already.
    pub(super) fn grow(&self, file: &dyn StorageFile) -> Result<(), ResizeError> {
        let old = self.from.current_size;
        self.write_footer(file)?;
        // INV-28: the new footer is durable before the old one goes.
        sync(file)?;
        let mut found = [0; FOOTER_SIZE];
        file.read_exact_at(&mut found, old)
            .io_context("read a former footer", old)?;
        // Cleared before, it belongs to the disk, and may hold anything by now.
        if found == self.from_raw {
            clear_range(file, old, u64_from(FOOTER_SIZE)).io_context("clear a former footer", old)?;
        }
        Ok(sync(file)?)
    }

    /// Shrinks the file. What is behind the new end is proven to be free.
    pub(super) fn shrink(&self, file: &dyn StorageFile) -> Result<(), ResizeError> {
        let end = self.to.current_size + u64_from(FOOTER_SIZE);
        self.write_footer(file)?;
        // INV-27: the footer is durable at its new place before the file ends there.
        sync(file)?;
        file.set_len(end).io_context("truncate", end)?;
        Ok(sync(file)?)
    }

    fn write_footer(&self, file: &dyn StorageFile) -> Result<(), DeviceError> {
        let at = self.to.current_size;
        let bytes = self.to.encode_over(&self.from_raw);
        file.write_all_at(&bytes, at).io_context("write the footer", at)
    }
}

fn sync(file: &dyn StorageFile) -> Result<(), DeviceError> {
    file.sync().io_context("sync", 0)
}
