//! A file that remembers that a sync of it failed.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::delegate::{delegate_changes_to, delegate_reads_to, delegate_to};
use super::{Segment, SetAside, StorageFile};

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

    delegate_reads_to! { file }
    delegate_to! { file:
        keep_writable(offset: u64, len: u64) -> io::Result<()>,
        overwrites_take_space() -> bool,
        set_aside() -> Option<SetAside>,
    }
    delegate_changes_to! { file }
}
