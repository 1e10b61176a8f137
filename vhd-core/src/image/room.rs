//! Room for what a flush writes, taken with the writes that make it necessary.
//!
//! INV-40: a flush needs no new space, so a write that was accepted can be made durable on a full file system. Where an
//! overwrite stays in place, it is enough that the block's bitmap was written with its data and that the table is no
//! hole. Where it does not (btrfs, and ranges shared with a copy), the range is made this file's own, or else some space
//! is set aside, which the flush gives back to the file system when an overwrite finds none.

use std::io;

use crate::ErrorKind;
use crate::storage::{SetAside, StorageFile, io_kind};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// Blocks that may be unpublished, or have unpublished sectors, at once (INV-07): a crash loses at most these, and a flush
/// handles no more.
const MAX_UNPUBLISHED: u64 = 1 << 16;

/// Bytes that are set aside where overwrites take space.
const SPARE_BYTES: u64 = 16 << 20;

/// Bytes that the smallest overwrite takes there.
const PAGE: u64 = 4096;

/// The space kept for the next flush.
#[derive(Debug)]
pub(super) struct Room {
    /// There is room for whatever becomes pending now.
    ready: AtomicBool,
    held: Mutex<Held>,
    /// Blocks, and bitmaps, that may wait for a flush.
    most_pending: AtomicU64,
    /// What a block or a bitmap in a flush takes at most where overwrites take space.
    item_bytes: u64,
}

#[derive(Debug, Default)]
struct Held {
    table_is_ours: bool,
    /// Asked for once: a file system that has none to give has none later.
    asked: bool,
    spare: Option<SetAside>,
}

impl Room {
    /// For an image whose bitmaps take `bitmap_bytes` each.
    pub(super) fn new(bitmap_bytes: u64) -> Self {
        Self {
            ready: AtomicBool::new(false),
            held: Mutex::new(Held::default()),
            most_pending: AtomicU64::new(MAX_UNPUBLISHED),
            item_bytes: PAGE + bitmap_bytes.next_multiple_of(PAGE),
        }
    }

    /// Makes sure that the next flush has room; the table is `table_len` bytes at `table_offset`. Costs one load, but for
    /// the first call and the first one after a flush that needed the room.
    pub(super) fn secure(&self, file: &dyn StorageFile, table_offset: u64, table_len: u64) -> io::Result<()> {
        if self.ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let held = &mut *lock(&self.held);
        if !held.table_is_ours {
            file.keep_writable(table_offset, table_len)?;
            held.table_is_ours = true;
        }
        match &mut held.spare {
            Some(spare) => spare.fill_up()?,
            None if !held.asked => held.spare = file.set_aside(SPARE_BYTES)?,
            None => {}
        }
        held.asked = true;
        if let Some(spare) = &held.spare {
            // Half of it: as much again may become pending while these are flushed.
            let most = spare.held() / 2 / self.item_bytes;
            self.most_pending.store(most, Ordering::Relaxed);
        }
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    /// How many blocks, or bitmaps, may wait for a flush (INV-07).
    pub(super) fn most_pending(&self) -> u64 {
        self.most_pending.load(Ordering::Relaxed)
    }

    /// Does a write of metadata, with the help of the space set aside where there is no other.
    pub(super) fn use_for(&self, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
        loop {
            match write() {
                Err(error) if io_kind(&error) == ErrorKind::NoSpace && self.give_back() => {}
                result => return result,
            }
        }
    }

    fn give_back(&self) -> bool {
        let mut held = lock(&self.held);
        let given = held.spare.as_mut().is_some_and(SetAside::give_back);
        if given {
            self.ready.store(false, Ordering::Release);
        }
        given
    }
}
