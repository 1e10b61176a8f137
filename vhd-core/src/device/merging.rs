//! The leaf of a disk in use is merged into its parent, while requests go on.
//!
//! ```text
//!   follow      what is written to the leaf from here on is noted               requests as before
//!   copy        what the leaf holds goes to the parent; what was noted, again   requests as before
//!   mirror      each write goes to the parent before it returns                 writes take longer
//!   switch      the parent becomes the leaf                                     in memory, requests wait
//!   settle      the parent is durable, and the manifest says that it is the leaf: a part of the next flush
//! ```

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool as Cancel;
use std::time::{Duration, Instant};

use vhd_block::{BlockDevice as _, ByteRange, DeviceError, ZeroOptions};

use super::live::LeafExchange;
use super::{LayeredDevice, LiveDevice};
use crate::image::{Image, IoContext, ReadSpan};
use crate::storage::is_zero;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};
use crate::units::{VirtualOffset, u64_from, usize_from};

/// Bytes of the disk of which it is known whether they have been written to since they were copied.
const GRANULE: u64 = 4096;

/// Granules of larger disks are larger: the notes never take more than 8 MiB.
const MOST_GRANULES: u64 = 64 << 20;

/// Bytes that are read and written at once.
const PIECE: u64 = 1 << 20;

/// Parts that different threads mirror at once.
const STRIPES: usize = 64;

/// Rounds of copying what was written meanwhile, before writes are made to wait for their copies.
const ROUNDS: usize = 3;

/// What ends a merge during which a place to write to is never given back.
const PLACE_HELD: DeviceError = DeviceError::PlaceHeld("the merge");

/// What is to be done about a merge of the leaf, and beside it.
pub struct LeafMerge<'a> {
    /// Told of bytes that are to be copied, and that are; it may take its time, to slow the merge down.
    pub begin: &'a dyn Fn(u64),
    /// Bytes were copied.
    pub advance: &'a dyn Fn(u64),
    /// Set to stop.
    pub cancel: &'a Cancel,
}

/// What makes it known, durably, that the parent is the leaf.
pub type Commit = Box<dyn Fn() -> Result<(), DeviceError> + Send>;

/// How a merge of the leaf ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafMerged {
    /// The parent is the leaf; requests had to wait so long. The next flush makes that durable.
    Done(Duration),
    /// It was told to stop: the leaf is what it was, and the parent has some of what it holds.
    Cancelled,
    /// The disk has gone on in another leaf meanwhile, and the parent has some of what this one holds.
    Overtaken,
}

/// The copying of a leaf into its parent.
pub(crate) struct Merging {
    leaf: Arc<Image>,
    /// The parent, over its own parents.
    parent: LayeredDevice,
    granule: u64,
    /// A bit per granule: the parent lacks something that the leaf holds there.
    lacking: Box<[AtomicU64]>,
    /// Writes are copied before they return.
    mirrors: AtomicBool,
    stripes: Box<[Mutex<()>]>,
    failed: Mutex<Option<DeviceError>>,
}

/// What a device that has taken another's place owes: its first flush makes that durable.
pub(crate) struct Owed {
    paid: AtomicBool,
    /// Goes when it is done, with all that it keeps.
    due: Mutex<Option<Due>>,
}

struct Due {
    /// The leaf that was copied.
    former: Arc<Image>,
    commit: Commit,
}

impl Owed {
    pub(super) fn new(former: Arc<Image>, commit: Commit) -> Self {
        Self {
            paid: AtomicBool::new(false),
            due: Mutex::new(Some(Due { former, commit })),
        }
    }

    /// INV-54: no flush succeeds before it is durable which file has what was flushed. That the former leaf can be flushed
    /// says that what was read from it is what was written to it: a write that failed behind a reader's back shows in the
    /// next sync.
    pub(super) fn pay(
        &self,
        flush_former: impl FnOnce(&Image) -> Result<(), DeviceError>,
        flush: impl FnOnce() -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        if self.paid.load(Ordering::Acquire) {
            return flush();
        }
        let mut due = lock(&self.due);
        if let Some(due) = &*due {
            flush_former(&due.former)?;
        }
        flush()?;
        if let Some(due) = &*due {
            (due.commit)()?;
            self.paid.store(true, Ordering::Release);
        }
        *due = None;
        Ok(())
    }
}

impl Merging {
    fn new(leaf: Arc<Image>, parent: LayeredDevice) -> Self {
        let size = leaf.disk_size();
        let granule = GRANULE.max((size / MOST_GRANULES).next_power_of_two());
        let words = size.div_ceil(granule).div_ceil(64);
        Self {
            leaf,
            parent,
            granule,
            lacking: (0..words).map(|_| AtomicU64::new(0)).collect(),
            mirrors: AtomicBool::new(false),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            failed: Mutex::new(None),
        }
    }

    /// Something was written to the leaf, or may have been. The request has not returned yet.
    pub(super) fn written(&self, range: ByteRange) {
        if self.mirrors.load(Ordering::Acquire) {
            match self.mirror(range) {
                Ok(()) => return,
                // The merge fails and not the write, which is in the leaf.
                Err(error) => drop(lock(&self.failed).get_or_insert(error)),
            }
        }
        self.note(range);
    }

    /// What a request that is refused says may be anywhere.
    fn granules(&self, range: ByteRange) -> std::ops::Range<u64> {
        let size = self.leaf.disk_size();
        let end = range.start.saturating_add(range.len).min(size);
        range.start.min(size) / self.granule..end.div_ceil(self.granule)
    }

    fn range_of(&self, granules: std::ops::Range<u64>) -> ByteRange {
        let start = granules.start * self.granule;
        let end = (granules.end * self.granule).min(self.leaf.disk_size());
        ByteRange::new(start, end - start)
    }

    fn note(&self, range: ByteRange) {
        for granule in self.granules(range) {
            self.lacking[usize_from(granule / 64)].fetch_or(1 << (granule % 64), Ordering::AcqRel);
        }
    }

    fn mirror(&self, range: ByteRange) -> Result<(), DeviceError> {
        let mut buffer = Vec::new();
        for granule in self.granules(range) {
            self.copy_granule(granule, &mut buffer)?;
        }
        Ok(())
    }

    /// The content of a granule is read and written under its lock: of two copies the one that read last writes last.
    fn copy_granule(&self, granule: u64, buffer: &mut Vec<u8>) -> Result<(), DeviceError> {
        let _stripe = lock(&self.stripes[usize_from(granule) % STRIPES]);
        self.copy(self.range_of(granule..granule + 1), buffer).map(drop)
    }

    /// Copies what the leaf holds of a range, and returns how many bytes that are.
    fn copy(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<u64, DeviceError> {
        let (mut at, mut copied) = (range.start, 0);
        while at < range.end() {
            let span = self
                .leaf
                .resolve_read(VirtualOffset(at), (range.end() - at).min(PIECE))?;
            if let ReadSpan::Data { file_offset, len } = span {
                buffer.resize(usize_from(len).max(buffer.len()), 0);
                let bytes = &mut buffer[..usize_from(len)];
                let read = self.leaf.file().read_exact_at(bytes, file_offset.0);
                read.io_context("read", file_offset.0)?;
                self.put(bytes, at)?;
                copied += len;
            }
            at += span.len();
        }
        Ok(copied)
    }

    /// INV-08: what is zero in the leaf is zero in the parent, whatever is below that.
    fn put(&self, bytes: &[u8], at: u64) -> Result<(), DeviceError> {
        if is_zero(bytes) {
            let options = ZeroOptions {
                may_unmap: true,
                ..ZeroOptions::default()
            };
            return self
                .parent
                .write_zeroes(ByteRange::new(at, u64_from(bytes.len())), options);
        }
        self.parent.write_vectored_at(&[IoSlice::new(bytes)], at, false)
    }

    /// Notes all that the leaf holds; returns how many bytes that are.
    fn note_all(&self) -> Result<u64, DeviceError> {
        let (mut at, mut held) = (0, 0);
        while at < self.leaf.disk_size() {
            let span = self.leaf.resolve_read(VirtualOffset(at), self.leaf.disk_size() - at)?;
            if let ReadSpan::Data { len, .. } = span {
                self.note(ByteRange::new(at, len));
                held += len;
            }
            at += span.len();
        }
        Ok(held)
    }

    /// Copies what was noted; `false` if it was told to stop.
    fn copy_noted(&self, work: &LeafMerge<'_>) -> Result<bool, DeviceError> {
        let mut buffer = Vec::new();
        for (word, bits) in (0..).zip(&self.lacking) {
            let mut noted = bits.swap(0, Ordering::AcqRel);
            while noted != 0 {
                if work.cancel.load(Ordering::Relaxed) {
                    return Ok(false);
                }
                let (first, count) = (
                    noted.trailing_zeros(),
                    (noted >> noted.trailing_zeros()).trailing_ones(),
                );
                noted &= !(u64::MAX >> (64 - count) << first);
                let first = word * 64 + u64::from(first);
                let copied = self.copy_run(first..first + u64::from(count), &mut buffer)?;
                (work.advance)(copied);
            }
        }
        Ok(true)
    }

    /// While nobody mirrors, neighbours are copied at once.
    fn copy_run(&self, granules: std::ops::Range<u64>, buffer: &mut Vec<u8>) -> Result<u64, DeviceError> {
        if !self.mirrors.load(Ordering::Acquire) {
            return self.copy(self.range_of(granules), buffer);
        }
        let len = self.range_of(granules.clone()).len;
        for granule in granules {
            self.copy_granule(granule, buffer)?;
        }
        Ok(len)
    }

    fn has_all(&self) -> bool {
        self.lacking.iter().all(|bits| bits.load(Ordering::Acquire) == 0)
    }

    fn check(&self) -> Result<(), DeviceError> {
        lock(&self.failed).take().map_or(Ok(()), Err)
    }
}

impl LiveDevice {
    /// Merges the leaf into its parent, which is the leaf from then on, while requests go on. `parent` is the image below
    /// the leaf, opened for writing, which nobody reads but this disk. `commit` makes it known that it is the leaf; it is
    /// called after a flush of it, and no flush of the disk succeeds before `commit` has.
    ///
    /// Until then the leaf has all that was flushed, and the parent nothing that the leaf would not hide: whoever opens
    /// the leaf reads the disk.
    ///
    /// # Errors
    /// What could not be read or written: the leaf is what it was, and the parent has some of what it holds.
    ///
    /// # Panics
    /// When the leaf has no parent.
    pub fn merge_leaf(
        &self,
        parent: &Arc<Image>,
        work: &LeafMerge<'_>,
        commit: Commit,
    ) -> Result<LeafMerged, DeviceError> {
        // What an earlier merge owes is paid, and what is below the leaf is durable.
        self.flush()?;
        let present = self.present();
        present.settle()?;
        let leaf = Arc::clone(present.leaf_image());
        let merging = Arc::new(Merging::new(
            Arc::clone(&leaf),
            present.with_parent_as_leaf(Arc::clone(parent)),
        ));
        let followed = present.followed_by(Some(Arc::clone(&merging)));
        match self.exchange(&leaf, &Arc::new(followed)) {
            LeafExchange::Done => {}
            LeafExchange::PlaceHeld => return Err(PLACE_HELD),
            LeafExchange::NotReady | LeafExchange::OtherLeaf => return Ok(LeafMerged::Overtaken),
        }
        let next = present
            .with_parent_as_leaf(Arc::clone(parent))
            .owing(Arc::clone(&leaf), commit);
        let merged = self.copy_and_exchange(&merging, work, &Arc::new(next));
        if !matches!(merged, Ok(LeafMerged::Done(_))) {
            self.exchange(&leaf, &Arc::new(present.followed_by(None)));
        }
        merged
    }

    fn copy_and_exchange(
        &self,
        merging: &Merging,
        work: &LeafMerge<'_>,
        next: &Arc<LayeredDevice>,
    ) -> Result<LeafMerged, DeviceError> {
        // What is written from here on is noted anyway.
        (work.begin)(merging.note_all()?);
        for _ in 0..ROUNDS {
            if !merging.copy_noted(work)? {
                return Ok(LeafMerged::Cancelled);
            }
        }
        merging.mirrors.store(true, Ordering::Release);
        loop {
            if !merging.copy_noted(work)? {
                return Ok(LeafMerged::Cancelled);
            }
            // So that the first flush of the new leaf has little to do.
            merging.parent.flush()?;
            merging.check()?;
            let start = Instant::now();
            match self.exchange_leaf(&merging.leaf, next, || merging.has_all()) {
                LeafExchange::Done => return Ok(LeafMerged::Done(start.elapsed())),
                LeafExchange::OtherLeaf => return Ok(LeafMerged::Overtaken),
                LeafExchange::PlaceHeld => return Err(PLACE_HELD),
                LeafExchange::NotReady => {}
            }
        }
    }
}
