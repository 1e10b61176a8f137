//! A file that is made durable later, or not at all.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use super::delegate::{delegate_changes_to, delegate_reads_to, delegate_to};
use super::{Segment, StorageFile};

/// A file whose syncs do nothing: for an image that no one can see yet, whose order of writes therefore
/// does not matter. Whoever gives it its name decides whether to sync it before.
#[derive(Debug)]
pub struct UnsyncedFile(pub Arc<dyn StorageFile>);

impl StorageFile for UnsyncedFile {
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    delegate_reads_to! { 0 }
    delegate_changes_to! { 0 }
}
