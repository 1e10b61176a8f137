//! A file that remembers that a sync of it failed.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::delegate::delegate_to;
use super::{Segment, StorageFile};

/// A file that remembers that a sync of it failed. What a later one says proves nothing then (INV-05), and only the
/// first failure knows, which may be told to somebody who goes on.
#[derive(Debug)]
pub(crate) struct WatchedFile {
    file: Arc<dyn StorageFile>,
    sync_failed: AtomicBool,
}

impl WatchedFile {
    pub(crate) fn new(file: Arc<dyn StorageFile>) -> Self {
        Self {
            file,
            sync_failed: AtomicBool::new(false),
        }
    }

    /// A sync failed.
    pub(crate) fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }
}

impl StorageFile for WatchedFile {
    fn sync(&self) -> io::Result<()> {
        self.file
            .sync()
            .inspect_err(|_| self.sync_failed.store(true, Ordering::Release))
    }

    delegate_to! { file:
        read_exact_at(buf: &mut [u8], offset: u64) -> io::Result<()>,
        read_exact_vectored_at(bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()>,
        write_all_at(buf: &[u8], offset: u64) -> io::Result<()>,
        write_all_vectored_at(bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()>,
        len() -> io::Result<u64>,
        set_len(len: u64) -> io::Result<()>,
        punch_hole(offset: u64, len: u64) -> io::Result<()>,
        zero_range(offset: u64, len: u64) -> io::Result<()>,
        allocate(offset: u64, len: u64) -> io::Result<()>,
        expect_writes(offset: u64, len: u64) -> io::Result<bool>,
        segment_at(offset: u64) -> io::Result<(Segment, u64)>,
        share_range_from(source: &dyn StorageFile, source_offset: u64, offset: u64, len: u64) -> io::Result<()>,
        host_file() -> Option<&File>,
    }
}
