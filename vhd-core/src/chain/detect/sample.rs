//! The bytes of a file that its format is detected by.

use std::io;

use crate::storage::{StorageFile, is_zero};
use crate::units::{u64_from, usize_from};

/// Bytes from the start: up to the superblocks and volume descriptors that lie furthest in.
const HEAD: u64 = 72 << 10;
/// Bytes before the end.
const TAIL: u64 = 4 << 10;

/// The start and the end of a file.
pub(super) struct Sample<'a> {
    file: &'a dyn StorageFile,
    file_len: u64,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl<'a> Sample<'a> {
    pub(super) fn read(file: &'a dyn StorageFile) -> io::Result<Self> {
        let file_len = file.len()?;
        let read = |offset, len| {
            let mut bytes = vec![0; usize_from(len)];
            file.read_exact_at(&mut bytes, offset)?;
            Ok::<_, io::Error>(bytes)
        };
        let tail_len = file_len.min(TAIL);
        Ok(Self {
            file,
            file_len,
            head: read(0, file_len.min(HEAD))?,
            tail: read(file_len - tail_len, tail_len)?,
        })
    }

    pub(super) fn file(&self) -> &'a dyn StorageFile {
        self.file
    }

    pub(super) fn file_len(&self) -> u64 {
        self.file_len
    }

    /// The first bytes.
    pub(super) fn head(&self) -> &[u8] {
        &self.head
    }

    /// The last bytes.
    pub(super) fn tail(&self) -> &[u8] {
        &self.tail
    }

    /// Whether `bytes` stand at `offset` of the head.
    pub(super) fn has(&self, offset: usize, bytes: &[u8]) -> bool {
        self.head.get(offset..).is_some_and(|rest| rest.starts_with(bytes))
    }

    /// Whether `bytes` begin `from_end` bytes before the end.
    pub(super) fn ends_with(&self, from_end: usize, bytes: &[u8]) -> bool {
        let start = self.tail.len().checked_sub(from_end);
        start.is_some_and(|start| self.tail[start..].starts_with(bytes))
    }

    /// The number of `N` bytes at `offset` of the head, little-endian.
    pub(super) fn number<const N: usize>(&self, offset: usize) -> Option<u64> {
        let bytes: [u8; N] = self.head.get(offset..offset.checked_add(N)?)?.try_into().ok()?;
        Some(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u64::from(byte)))
    }

    /// `N` bytes from anywhere in the file; `None` past its end.
    pub(super) fn bytes_at<const N: usize>(&self, offset: u64) -> io::Result<Option<[u8; N]>> {
        let end = offset.checked_add(u64_from(N));
        if end.is_none_or(|end| end > self.file_len) {
            return Ok(None);
        }
        let mut bytes = [0; N];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(Some(bytes))
    }

    pub(super) fn head_is_zero(&self) -> bool {
        is_zero(&self.head)
    }
}
