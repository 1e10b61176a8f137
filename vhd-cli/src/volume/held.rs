//! A disk of a volume that is open for writing, by the right that the volume gives.

use std::path::Path;
use std::sync::Arc;

use vhd_core::chain::{OpenOptions, OpenedDisk};

use super::{DiskName, Right};
use crate::children;
use crate::failure::Failure;

/// A disk of a volume that is open for writing. Dropped, it is closed before the right goes back.
pub(crate) struct Held {
    opened: OpenedDisk,
    right: Arc<Right>,
}

impl Held {
    /// Takes the right to write a disk and opens its file. It is given back where that fails.
    pub(crate) fn open(disk: &DiskName, path: &Path, options: OpenOptions) -> Result<Self, Failure> {
        let right = Right::take(disk)?;
        let options = options.on_volume(Arc::clone(&right) as _, Arc::clone(&right) as _);
        let opened = options.open(path).map_err(children::explain)?;
        Ok(Self { opened, right })
    }

    pub(crate) fn opened(&self) -> &OpenedDisk {
        &self.opened
    }

    /// Flushes and closes the disk, then gives the right back (INV-98).
    pub(crate) fn close(self) -> Result<(), Failure> {
        self.opened.close()?;
        self.right.give_back()
    }
}
