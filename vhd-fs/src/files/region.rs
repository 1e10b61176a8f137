//! The part of a disk that a file system has, for readers that seek and read.

use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::ReadAt;
use crate::bytes::{count, index};

/// A disk that several readers share.
pub type SharedDisk = Arc<dyn ReadAt + Send + Sync>;

/// What one operation may still read, shared by whoever starts operations and the region that serves them.
#[derive(Debug, Default)]
pub(super) struct Budget {
    left: AtomicU64,
    exhausted: AtomicBool,
    abandoned: AtomicBool,
}

impl Budget {
    /// Starts an operation that may read `bytes`.
    pub(super) fn start(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
        self.exhausted.store(false, Ordering::Relaxed);
    }

    /// Whether the operation wanted more than it may read.
    pub(super) fn is_exhausted(&self) -> bool {
        self.exhausted.load(Ordering::Relaxed)
    }

    /// From now on every read fails: nobody waits for the answer any more.
    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }

    fn take(&self, bytes: u64) -> io::Result<()> {
        if self.abandoned.load(Ordering::Relaxed) {
            return Err(io::Error::other("the operation was given up"));
        }
        // One operation runs at a time, so there is no race for what is left.
        let Some(left) = self.left.load(Ordering::Relaxed).checked_sub(bytes) else {
            self.exhausted.store(true, Ordering::Relaxed);
            return Err(io::Error::other("the operation reads too much"));
        };
        self.left.store(left, Ordering::Relaxed);
        Ok(())
    }
}

/// A part of a disk. It ends where the partition ends; no read leaves it.
#[derive(Clone)]
pub(super) struct Region {
    disk: SharedDisk,
    start: u64,
    len: u64,
    position: u64,
    budget: Arc<Budget>,
    /// Bytes that are shown in place of those on the disk, and where.
    patch: Option<(u64, Arc<[u8]>)>,
}

impl Region {
    /// The bytes `start..start + len` of the disk; what is behind its end is cut.
    pub(super) fn new(disk: SharedDisk, start: u64, len: u64, budget: Arc<Budget>) -> Self {
        let len = len.min(disk.size().saturating_sub(start));
        Self {
            disk,
            start,
            len,
            position: 0,
            budget,
            patch: None,
        }
    }

    /// Shows `bytes` at `at`, in place of what the disk has there.
    pub(super) fn patched(self, at: u64, bytes: Vec<u8>) -> Self {
        let patch = Some((at, bytes.into()));
        Self { patch, ..self }
    }

    /// Fills the buffer from `at`; an error where the region ends before.
    pub(super) fn fill(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let len = count(buf.len());
        if at.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.budget.take(len)?;
        self.disk.read_at(buf, self.start + at)?;
        if let Some((from, bytes)) = &self.patch {
            overlay(buf, at, bytes, *from);
        }
        Ok(())
    }

    /// `len` bytes from `at`; callers bound `len`.
    pub(super) fn bytes_at(&self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; index(len)];
        self.fill(&mut bytes, at)?;
        Ok(bytes)
    }
}

/// Copies the part of `patch`, which lies at `from`, that a buffer read from `at` shows.
fn overlay(buf: &mut [u8], at: u64, patch: &[u8], from: u64) {
    let start = from.max(at);
    let end = from.saturating_add(count(patch.len())).min(at + count(buf.len()));
    if start < end {
        let source = &patch[index(start - from)..index(end - from)];
        buf[index(start - at)..index(end - at)].copy_from_slice(source);
    }
}

impl Read for Region {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let take = count(buf.len()).min(self.len.saturating_sub(self.position));
        let take = index(take);
        self.fill(&mut buf[..take], self.position)?;
        self.position += count(take);
        Ok(take)
    }
}

impl Seek for Region {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let target = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        self.position = target.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(patch: Option<(u64, Vec<u8>)>) -> Region {
        let disk: SharedDisk = Arc::new((0..100).collect::<Vec<u8>>());
        let budget = Arc::new(Budget::default());
        budget.start(1000);
        let region = Region::new(disk, 10, 20, budget);
        match patch {
            Some((at, bytes)) => region.patched(at, bytes),
            None => region,
        }
    }

    #[test]
    fn no_read_leaves_the_region() {
        let mut region = region(None);
        let mut bytes = Vec::new();
        region.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, (10..30).collect::<Vec<u8>>());
        assert!(region.bytes_at(19, 2).is_err());
        assert!(region.bytes_at(u64::MAX, 2).is_err());
    }

    #[test]
    fn a_patch_is_shown_in_every_read_that_touches_it() {
        let region = region(Some((5, vec![200, 201, 202])));
        assert_eq!(region.bytes_at(4, 5).unwrap(), [14, 200, 201, 202, 18]);
        assert_eq!(region.bytes_at(6, 1).unwrap(), [201]);
        assert_eq!(region.bytes_at(0, 6).unwrap(), [10, 11, 12, 13, 14, 200]);
        assert_eq!(region.bytes_at(8, 2).unwrap(), [18, 19]);
    }

    #[test]
    fn an_operation_reads_what_it_may_and_no_more() {
        let region = region(None);
        region.budget.start(8);
        assert!(region.bytes_at(0, 8).is_ok());
        assert!(!region.budget.is_exhausted());
        assert!(region.bytes_at(0, 1).is_err());
        assert!(region.budget.is_exhausted());
        region.budget.start(8);
        assert!(region.bytes_at(0, 8).is_ok());
        region.budget.abandon();
        region.budget.start(8);
        assert!(region.bytes_at(0, 1).is_err());
    }
}
