//! A file whose length is rounded up: what is missing reads zero.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

use super::delegate::{delegate_changes_to, delegate_to};
use super::{Segment, StorageFile};
use crate::units::usize_from;

/// A file seen as if its length were a whole number of blocks: the bytes behind its end read zero. A raw
/// disk whose file is no multiple of a sector long is read through it.
#[derive(Debug)]
pub struct PaddedFile {
    file: Arc<dyn StorageFile>,
    len: u64,
    padded: u64,
}

impl PaddedFile {
    /// The present length of `file`, rounded up to a multiple of `block`, stays the length from now on.
    pub fn new(file: Arc<dyn StorageFile>, block: u64) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self {
            file,
            len,
            padded: len.next_multiple_of(block),
        })
    }

    /// The rounded length in bytes.
    #[must_use]
    pub fn padded_len(&self) -> u64 {
        self.padded
    }

    fn read_into(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // It may have become longer by a write; if it has become shorter, that is an error.
        let len = self.file.len()?.max(self.len);
        let stored = usize_from(len.saturating_sub(offset)).min(buf.len());
        let (inside, behind) = buf.split_at_mut(stored);
        behind.fill(0);
        self.file.read_exact_at(inside, offset)
    }

    /// Whether the range is one that the file itself may not have.
    fn reaches_padding(&self, offset: u64, len: usize) -> bool {
        self.padded != self.len && offset.saturating_add(crate::units::u64_from(len)) > self.len
    }
}

impl StorageFile for PaddedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.reaches_padding(offset, buf.len()) {
            return self.read_into(buf, offset);
        }
        self.file.read_exact_at(buf, offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        let len = bufs.iter().map(|buf| buf.len()).sum();
        if !self.reaches_padding(offset, len) {
            return self.file.read_exact_vectored_at(bufs, offset);
        }
        let mut at = offset;
        for buf in bufs {
            self.read_into(buf, at)?;
            at += crate::units::u64_from(buf.len());
        }
        Ok(())
    }

    delegate_changes_to! { file }
    delegate_to! { file: sync() -> io::Result<()> }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::MemoryFile;

    #[test]
    fn what_is_missing_of_the_last_sector_reads_zero() {
        let file = PaddedFile::new(Arc::new(MemoryFile::from_bytes(vec![7; 700])), 512).unwrap();
        assert_eq!(file.padded_len(), 1024);
        let mut whole = [1; 1024];
        let (a, b) = whole.split_at_mut(650);
        file.read_exact_vectored_at(&mut [IoSliceMut::new(a), IoSliceMut::new(b)], 0)
            .unwrap();
        assert!(whole[..700].iter().all(|&byte| byte == 7) && whole[700..].iter().all(|&byte| byte == 0));
    }
}
