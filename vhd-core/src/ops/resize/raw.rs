//! A raw file gets another size: its length.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::ResizeError;
use super::proof::Tail;
use crate::device::{BlockDevice as _, DeviceError, Disk, RawDevice};
use crate::image::{CreateError, IoContext};
use crate::storage::StorageFile;
use crate::units::SECTOR_SIZE;

/// Bytes; the largest offset that the host knows, in whole sectors.
const MAX_SIZE: u64 = i64::MAX.unsigned_abs() - (SECTOR_SIZE - 1);

/// A raw file that is going to have another length.
pub(super) struct RawResize {
    file: Arc<dyn StorageFile>,
    /// Bytes that it has, which may be no whole sectors.
    from: u64,
    to: u64,
}

impl RawResize {
    /// Checks that the file at `path` can have the size. Nothing is changed.
    pub(super) fn prepare(file: Arc<dyn StorageFile>, path: &Path, size: u64) -> Result<Self, ResizeError> {
        if size == 0 || size > MAX_SIZE || !size.is_multiple_of(SECTOR_SIZE) {
            return Err(ResizeError::Size(CreateError::Size {
                size,
                maximum: MAX_SIZE,
            }));
        }
        let from = file.len().io_context("find the length", 0)?;
        let device = RawDevice::new(Arc::clone(&file), false).io_context("find the length", 0)?;
        if size < device.size_bytes() {
            // INV-27: what is cut off reads zero.
            let tail = Tail {
                disk: &Disk::new(Arc::new(device)),
                size,
                own: None,
                may_move_gpt: false,
            };
            tail.require_free(path, &AtomicBool::new(false))?;
        }
        Ok(Self { file, from, to: size })
    }

    /// Gives the file its length, durably, or the former one if that fails. What is cut off is zero, as what is new is:
    /// so the content is right with either.
    pub(super) fn run(self) -> Result<(), ResizeError> {
        let Err(error) = self.set_len(self.to) else {
            return Ok(());
        };
        if let Err(undoing) = self.file.set_len(self.from) {
            tracing::error!(error = %undoing, "a raw file keeps the length of a failed resize");
        }
        Err(error.into())
    }

    fn set_len(&self, len: u64) -> Result<(), DeviceError> {
        self.file.set_len(len).io_context("set the length", len)?;
        self.file.sync().io_context("sync", 0)
    }
}
