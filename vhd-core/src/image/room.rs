//! Room for what a flush writes, taken with the writes that make it necessary.
//!
//! INV-40: a flush needs no new space, so a write that was accepted can be made durable on a full file system. Two things
//! take space in a flush: the bitmap of a new block, which lies in a page of its own, and, on copy-on-write file systems,
//! every overwrite. For both some space is set aside, which is given back to the file system when a write of metadata
//! finds none. Where no space can be set aside a bitmap is written with its block.

use std::io;

use crate::ErrorKind;
use crate::storage::{SetAside, StorageFile, io_kind};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};
use crate::units::u64_from;

/// Blocks that may be unpublished, or have unpublished sectors, at once (INV-07): a crash loses at most these, and a flush
/// handles no more.
const MAX_UNPUBLISHED: u64 = 1 << 16;

/// Bytes that are set aside where overwrites take space, and the part of the free space that is too much for that.
const OVERWRITE_BYTES: u64 = 16 << 20;
const OVERWRITE_SHARE: u64 = 8;

/// Bytes that are set aside for bitmaps at most: for 16384 blocks of 2 MiB. It is taken as blocks come, and one part in so
/// many of the free space at most.
const BITMAP_BYTES: u64 = 64 << 20;
const BITMAP_SHARE: u64 = 64;

/// How often a copy-on-write file system is committed for one write when nothing more can be given back.
const MOST_COMMITS: u32 = 8;

/// Bytes that the smallest write takes.
const PAGE: u64 = 4096;

/// The space kept for the next flush.
#[derive(Debug)]
pub(super) struct Room {
    /// There is room for whatever overwrite becomes pending now.
    ready: AtomicBool,
    held: Mutex<Held>,
    /// Blocks, and bitmaps, that may wait for a flush.
    most_pending: AtomicU64,
    /// Bytes that the bitmaps which wait take at most, and bytes that are set aside for them.
    claimed: AtomicU64,
    covered: AtomicU64,
    /// What a bitmap takes at most.
    bitmap_space: u64,
}

#[derive(Debug, Default)]
struct Held {
    table_is_ours: bool,
    /// Asked for once: a file system that has none to give has none later.
    asked: bool,
    /// Overwrites take space too: what is set aside is for them, and no bitmap waits.
    for_overwrites: bool,
    /// There was no more space for bitmaps when it was last asked for, since the last flush.
    is_scarce: bool,
    spare: Option<SetAside>,
}

impl Room {
    /// For an image whose bitmaps take `bitmap_bytes` each.
    pub(super) fn new(bitmap_bytes: u64) -> Self {
        Self {
            ready: AtomicBool::new(false),
            held: Mutex::new(Held::default()),
            most_pending: AtomicU64::new(MAX_UNPUBLISHED),
            claimed: AtomicU64::new(0),
            covered: AtomicU64::new(0),
            bitmap_space: bitmap_bytes.next_multiple_of(PAGE),
        }
    }

    /// Makes sure that the next flush has room for overwrites; the table is `table_len` bytes at `table_offset`. Costs one
    /// load, but for the first call and the first one after a flush that needed the room.
    pub(super) fn secure(&self, file: &dyn StorageFile, table_offset: u64, table_len: u64) -> io::Result<()> {
        if self.ready.load(Ordering::Acquire) {
            return Ok(());
        }
        let held = &mut *lock(&self.held);
        if !held.table_is_ours {
            file.keep_writable(table_offset, table_len)?;
            held.table_is_ours = true;
        }
        if !held.asked {
            held.asked = true;
            held.for_overwrites = file.overwrites_take_space();
            held.spare = file.set_aside();
        }
        if held.for_overwrites {
            self.secure_overwrites(held)?;
        }
        self.ready.store(true, Ordering::Release);
        Ok(())
    }

    fn secure_overwrites(&self, held: &mut Held) -> io::Result<()> {
        let Some(spare) = &mut held.spare else { return Ok(()) };
        match spare.fill_up(OVERWRITE_BYTES, OVERWRITE_SHARE) {
            Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                tracing::debug!("no space can be set aside for overwrites");
                held.spare = None;
                return Ok(());
            }
            filled => filled?,
        }
        // Half of it: as much again may become pending while these are flushed.
        let most = spare.held() / 2 / (PAGE + self.bitmap_space);
        self.most_pending.store(most, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the bitmap of one more new block may wait for the flush. It is to be [settled](Room::settle) then.
    pub(super) fn defer_bitmap(&self) -> bool {
        let claimed = self.claimed.fetch_add(self.bitmap_space, Ordering::Relaxed) + self.bitmap_space;
        if claimed <= self.covered.load(Ordering::Acquire) || self.cover(claimed) {
            return true;
        }
        self.claimed.fetch_sub(self.bitmap_space, Ordering::Relaxed);
        false
    }

    fn cover(&self, bytes: u64) -> bool {
        let held = &mut *lock(&self.held);
        let Some(spare) = held.spare.as_mut().filter(|_| !held.for_overwrites && !held.is_scarce) else {
            return false;
        };
        let filled = match bytes <= BITMAP_BYTES {
            true => spare.fill_up(bytes, BITMAP_SHARE),
            false => Ok(()),
        };
        self.covered.store(spare.held(), Ordering::Release);
        held.is_scarce = filled.is_err() || spare.held() < bytes;
        !held.is_scarce
    }

    /// Bitmaps that waited have been written: nothing is kept for so many any more.
    pub(super) fn settle(&self, bitmaps: usize) {
        if bitmaps == 0 {
            return;
        }
        let bytes = u64_from(bitmaps) * self.bitmap_space;
        let claimed = self.claimed.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        let held = &mut *lock(&self.held);
        held.is_scarce = false;
        let Some(spare) = &mut held.spare else { return };
        // One part stays, for the next ones.
        let mut surplus = spare.held().saturating_sub(claimed.max(1));
        while surplus >= SetAside::PART && spare.give_back() {
            surplus -= SetAside::PART;
        }
        self.covered.store(spare.held(), Ordering::Release);
    }

    /// How many blocks, or bitmaps, may wait for a flush (INV-07).
    pub(super) fn most_pending(&self) -> u64 {
        self.most_pending.load(Ordering::Relaxed)
    }

    /// Does a write of metadata, with the help of the space set aside where there is no other.
    pub(super) fn use_for(&self, write: impl Fn() -> io::Result<()>) -> io::Result<()> {
        let mut commits = 0;
        loop {
            match write() {
                Err(error) if io_kind(&error) == ErrorKind::NoSpace => {
                    let given = self.give_back();
                    commits += u32::from(!given);
                    let counts = commits <= MOST_COMMITS && self.commit_if_late();
                    if !given && !counts {
                        return Err(error);
                    }
                }
                result => return result,
            }
        }
    }

    /// Makes what was given back count where that is late; whether it is.
    fn commit_if_late(&self) -> bool {
        let held = lock(&self.held);
        match &held.spare {
            Some(spare) if held.for_overwrites => {
                spare.commit();
                true
            }
            _ => false,
        }
    }

    fn give_back(&self) -> bool {
        let held = &mut *lock(&self.held);
        let Some(spare) = &mut held.spare else { return false };
        let given = spare.give_back();
        self.covered.store(spare.held(), Ordering::Release);
        if given && held.for_overwrites {
            self.ready.store(false, Ordering::Release);
        }
        given
    }
}
