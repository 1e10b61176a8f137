//! Space for new blocks: the file grows in chunks behind which a new tail footer stands.
//!
//! An allocation must cost its payload and nothing else, so the file is not extended block by block.
//! One write of the footer at the end of the next chunk makes room for many blocks: it sets the length,
//! and what lies between reads zero (INV-04). No block is ever placed over a footer, so the former tail
//! stays valid until the new one is durable (INV-03); a flush clears it after that.

use std::sync::Arc;

use vhd_block::DeviceError;

use super::error::IoContext;
use crate::format::{BlockLayout, FOOTER_SIZE, TableEntry};
use crate::storage::StorageFile;
use crate::sync::{Mutex, lock};
use crate::units::{FileOffset, u64_from};

/// Bytes of block space that one growth of the file adds, unless a single block is larger.
const CHUNK_BYTES: u64 = 128 << 20;

const FOOTER_BYTES: u64 = u64_from(FOOTER_SIZE);

/// Hands out the space behind the last block.
pub(super) struct Allocator {
    file: Arc<dyn StorageFile>,
    layout: BlockLayout,
    footer: [u8; FOOTER_SIZE],
    tail: Mutex<Tail>,
}

#[derive(Debug)]
struct Tail {
    /// No block handed out so far reaches past this offset.
    next: u64,
    /// Where the space for blocks ends: the tail footer's place.
    limit: u64,
    /// The file was extended by this allocator, so `next..limit` is its own and known to be zero.
    grown: bool,
    /// Former tail footers, to be cleared once the present one is durable.
    retired: Vec<FileOffset>,
    /// Space whose write failed: handed out again after it was zeroed.
    returned: Vec<FileOffset>,
}

/// Space for one block; given back on drop unless [kept](Reservation::keep).
pub(super) struct Reservation<'a> {
    allocator: &'a Allocator,
    bitmap: FileOffset,
    kept: bool,
}

impl Allocator {
    /// An allocator for a file of `file_len` bytes, all of them taken as used: what a crash may have left
    /// behind the last block is never handed out (INV-04). `footer_at` is the tail footer, if there is one.
    pub(super) fn new(
        file: Arc<dyn StorageFile>,
        layout: BlockLayout,
        footer: [u8; FOOTER_SIZE],
        file_len: u64,
        footer_at: Option<FileOffset>,
    ) -> Self {
        let tail = Tail {
            next: file_len,
            limit: file_len,
            grown: false,
            retired: footer_at.into_iter().collect(),
            returned: Vec::new(),
        };
        Self {
            file,
            layout,
            footer,
            tail: Mutex::new(tail),
        }
    }

    /// Space for one block, which reads zero. The file grows only if `check_fence` allows it.
    pub(super) fn reserve(
        &self,
        check_fence: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<Reservation<'_>, DeviceError> {
        let mut tail = lock(&self.tail);
        let bitmap = match tail.returned.last().copied() {
            Some(bitmap) => {
                let len = self.layout.stored_bytes();
                crate::storage::clear_range(&*self.file, bitmap.0, len).io_context("clear a block", bitmap.0)?;
                tail.returned.pop();
                bitmap
            }
            None => self.extend(&mut tail, check_fence)?,
        };
        Ok(Reservation {
            allocator: self,
            bitmap,
            kept: false,
        })
    }

    fn extend(
        &self,
        tail: &mut Tail,
        check_fence: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<FileOffset, DeviceError> {
        let mut start = self.layout.aligned_start(tail.next);
        if start + self.layout.stored_bytes() > tail.limit {
            let behind_footer = if tail.grown {
                tail.limit + FOOTER_BYTES
            } else {
                tail.limit
            };
            start = self.layout.aligned_start(behind_footer);
            check_fence()?;
            self.grow(tail, start)?;
        }
        tail.next = start + self.layout.stored_bytes();
        Ok(FileOffset(start))
    }

    /// Makes room for at least one block at `start` by writing a footer behind it.
    fn grow(&self, tail: &mut Tail, start: u64) -> Result<(), DeviceError> {
        let stored = self.layout.stored_bytes();
        if !addressable(start) {
            return Err(DeviceError::ImageFull { offset: start });
        }
        let stride = self.layout.aligned_start(start + stored) - start;
        let mut blocks = (CHUNK_BYTES / stride).max(1);
        while blocks > 1 && !addressable(start + (blocks - 1) * stride) {
            blocks /= 2;
        }
        let limit = start + (blocks - 1) * stride + stored;
        self.file
            .write_all_at(&self.footer, limit)
            .io_context("write the footer", limit)?;
        if tail.grown {
            tail.retired.push(FileOffset(tail.limit));
        }
        tail.limit = limit;
        tail.grown = true;
        Ok(())
    }

    /// The former tail footers, which the caller clears once the present one is durable.
    pub(super) fn take_retired(&self) -> Vec<FileOffset> {
        let mut tail = lock(&self.tail);
        if tail.grown {
            std::mem::take(&mut tail.retired)
        } else {
            Vec::new()
        }
    }

    /// Puts back what [`take_retired`](Allocator::take_retired) gave and was not cleared.
    pub(super) fn restore_retired(&self, footers: Vec<FileOffset>) {
        lock(&self.tail).retired.extend(footers);
    }

    /// Cuts the unused end of the last chunk off, if `check_fence` allows it: without the lease that end may be
    /// another owner's by now. Nothing is pending any more when this is called.
    pub(super) fn trim(&self, check_fence: impl FnOnce() -> Result<(), DeviceError>) -> Result<(), DeviceError> {
        let mut tail = lock(&self.tail);
        if !tail.grown || tail.next == tail.limit {
            return Ok(());
        }
        check_fence()?;
        let end = tail.next;
        // INV-03: the footer at the new end is durable before the one at the old end goes.
        self.file
            .write_all_at(&self.footer, end)
            .io_context("write the footer", end)?;
        self.file.sync().io_context("sync", end)?;
        self.file.set_len(end + FOOTER_BYTES).io_context("truncate", end)?;
        tail.limit = end;
        Ok(())
    }
}

/// Whether a table entry can hold a bitmap at `offset`.
fn addressable(offset: u64) -> bool {
    TableEntry::at(FileOffset(offset)).is_some()
}

impl Reservation<'_> {
    /// Where the block's bitmap goes; its data follows.
    pub(super) fn bitmap(&self) -> FileOffset {
        self.bitmap
    }

    /// The block is in the table now: the space is not given back.
    pub(super) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            lock(&self.allocator.tail).returned.push(self.bitmap);
        }
    }
}
