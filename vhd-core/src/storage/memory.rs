//! A sparse file in memory.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Segment, StorageFile, transfer};
use crate::units::{u64_from, usize_from};

/// Bytes in a page: the unit in which memory is taken, and of holes.
const PAGE_SIZE: usize = 4096;
/// The longest file, as on the host.
const MAX_LEN: u64 = i64::MAX.unsigned_abs();

type Page = [u8; PAGE_SIZE];

/// A file in memory: pages that were never written take none, so its length may be as large as any file's.
///
/// As on a host file system, reserved and zeroed space is no data until written: [`StorageFile::allocate`]
/// only sets the length, [`StorageFile::zero_range`] does what `punch_hole` does, and
/// [`StorageFile::segment_at`] calls both a hole. [`StorageFile::sync`] does nothing. Ranges are never shared.
pub struct MemoryFile {
    content: RwLock<Content>,
}

/// Bytes past `len` in the last page are zero, and no page starts at or past `len`.
#[derive(Clone, Default)]
struct Content {
    /// Shared with duplicates until written.
    pages: BTreeMap<u64, Arc<Page>>,
    len: u64,
}

impl MemoryFile {
    /// An empty file.
    #[must_use]
    pub fn new() -> Self {
        Self {
            content: RwLock::default(),
        }
    }

    /// A file of these bytes.
    ///
    /// # Panics
    ///
    /// Never: a vector is shorter than the longest file.
    #[must_use]
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        let mut content = Content::default();
        content
            .write(&bytes, 0)
            .expect("a vector is shorter than the longest file");
        Self {
            content: RwLock::new(content),
        }
    }

    /// The whole content. Needs as much memory as the file is long.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let content = self.read_guard();
        let mut bytes = vec![0; usize_from(content.len)];
        content.read(&mut bytes, 0).expect("as long as the file");
        bytes
    }

    /// A file of the same content, independent from now on. Pages are copied only when one of the two writes to them.
    #[must_use]
    pub fn duplicate(&self) -> MemoryFile {
        Self {
            content: RwLock::new(self.read_guard().clone()),
        }
    }

    // A panic inside leaves the content whole enough to go on: at worst a write of the test that panicked is partial.
    fn read_guard(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write_guard(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryFile {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let content = self.read_guard();
        f.debug_struct("MemoryFile")
            .field("len", &content.len)
            .field("pages", &content.pages.len())
            .finish()
    }
}

impl StorageFile for MemoryFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_guard().read(buf, offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], mut offset: u64) -> io::Result<()> {
        let content = self.read_guard();
        for buf in bufs {
            content.read(buf, offset)?;
            offset += u64_from(buf.len());
        }
        Ok(())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.write_guard().write(buf, offset)
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], mut offset: u64) -> io::Result<()> {
        let mut content = self.write_guard();
        for buf in bufs {
            content.write(buf, offset)?;
            offset += u64_from(buf.len());
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.read_guard().len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        checked_end(0, len)?;
        let mut content = self.write_guard();
        let old_len = content.len;
        content.clear(len, old_len);
        content.len = len;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = checked_end(offset, len)?;
        let mut content = self.write_guard();
        let end = end.min(content.len);
        content.clear(offset, end);
        Ok(())
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.punch_hole(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = checked_end(offset, len)?;
        if len > 0 {
            let mut content = self.write_guard();
            content.len = content.len.max(end);
        }
        Ok(())
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        let content = self.read_guard();
        if offset >= content.len {
            return Ok((Segment::Hole, offset));
        }
        let (first, _) = page_of(offset);
        // Pages from here on, without a gap: the end of the run is the end of the data.
        let run = content
            .pages
            .range(first..)
            .zip(first..)
            .take_while(|((page, _), expected)| *page == expected);
        let (segment, end_page) = match run.count() {
            0 => (
                Segment::Hole,
                content.pages.range(first..).next().map(|(page, _)| *page),
            ),
            pages => (Segment::Data, Some(first + u64_from(pages))),
        };
        let end = end_page.map_or(content.len, |page| content.len.min(page * u64_from(PAGE_SIZE)));
        Ok((segment, end))
    }

    fn share_range_from(&self, _: &dyn StorageFile, _: u64, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Content {
    fn read(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        if offset.checked_add(u64_from(buf.len())).is_none_or(|end| end > self.len) {
            return Err(transfer::end_of_file());
        }
        let (mut page, mut start) = page_of(offset);
        let mut rest = buf;
        while !rest.is_empty() {
            let (part, others) = rest.split_at_mut(rest.len().min(PAGE_SIZE - start));
            match self.pages.get(&page) {
                Some(stored) => part.copy_from_slice(&stored[start..start + part.len()]),
                None => part.fill(0),
            }
            (page, start, rest) = (page + 1, 0, others);
        }
        Ok(())
    }

    fn write(&mut self, buf: &[u8], offset: u64) -> io::Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        let end = checked_end(offset, u64_from(buf.len()))?;
        let (mut page, mut start) = page_of(offset);
        let mut rest = buf;
        while !rest.is_empty() {
            let (part, others) = rest.split_at(rest.len().min(PAGE_SIZE - start));
            let stored = Arc::make_mut(self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_SIZE])));
            stored[start..start + part.len()].copy_from_slice(part);
            (page, start, rest) = (page + 1, 0, others);
        }
        self.len = self.len.max(end);
        Ok(())
    }

    /// Makes `from..to` read zero (`to` at most the length) and gives its whole pages back.
    fn clear(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let ((first, start), (last, end)) = (page_of(from), page_of(to));
        let first_whole = if start == 0 { first } else { first + 1 };
        // The page that the file ends in is whole when the range reaches that end: nothing follows in it.
        let end_whole = if to == self.len && end > 0 { last + 1 } else { last };
        let whole: Vec<u64> = if first_whole < end_whole {
            self.pages
                .range(first_whole..end_whole)
                .map(|(page, _)| *page)
                .collect()
        } else {
            Vec::new()
        };
        for page in whole {
            self.pages.remove(&page);
        }
        if start > 0 {
            let stop = if first == last { end } else { PAGE_SIZE };
            self.zero_part(first, start, stop);
        }
        if end > 0 && (first != last || start == 0) {
            self.zero_part(last, 0, end);
        }
    }

    fn zero_part(&mut self, page: u64, start: usize, end: usize) {
        if let Some(stored) = self.pages.get_mut(&page) {
            Arc::make_mut(stored)[start..end].fill(0);
        }
    }
}

/// The page that holds `offset`, and the place in it.
fn page_of(offset: u64) -> (u64, usize) {
    let size = u64_from(PAGE_SIZE);
    (offset / size, usize_from(offset % size))
}

/// The end of a range, or `FileTooLarge`.
fn checked_end(offset: u64, len: u64) -> io::Result<u64> {
    offset
        .checked_add(len)
        .filter(|end| *end <= MAX_LEN)
        .ok_or_else(|| io::ErrorKind::FileTooLarge.into())
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
