//! A file that is made durable later, or not at all.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use super::delegate::delegate_to;
use super::{Segment, StorageFile};

/// A file whose syncs do nothing: for an image that no one can see yet, whose order of writes therefore
/// does not matter. Whoever gives it its name decides whether to sync it before.
#[derive(Debug)]
pub struct UnsyncedFile(pub Arc<dyn StorageFile>);

impl StorageFile for UnsyncedFile {
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    delegate_to! { 0:
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
