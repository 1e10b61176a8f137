//! The leaf of a disk in use is merged into a layer below it, the target, with the layers between, while requests go on.
//!
//! ```text
//!   follow      what is written to the leaf from here on is noted                 requests as before
//!   copy        what the layers hold goes to the target; what was noted, again    requests as before
//!   mirror      each write goes to the target before it returns                   writes take longer
//!   switch      the target becomes the leaf                                       in memory, requests wait
//!   settle      the target is durable, and a record says that it is the leaf: a part of the next flush
//! ```

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::AtomicBool as Cancel;
use std::time::{Duration, Instant};

use vhd_block::{BlockDevice as _, ByteRange, DeviceError, ZeroOptions};

use super::layered::Follower;
use super::live::LeafExchange;
use super::owed::Commit;
use super::{Layer, LayeredDevice, LiveDevice};
use crate::image::{Image, IoContext, ReadSpan};
use crate::storage::is_zero;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};
use crate::units::{FileOffset, VirtualOffset, u64_from, usize_from};

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
    /// How many layers are merged: 1 for the leaf alone, which is the first of them.
    pub layers: usize,
    /// Told of bytes that are to be copied, and that are; it may take its time, to slow the merge down.
    pub begin: &'a dyn Fn(u64),
    /// Bytes were copied.
    pub advance: &'a dyn Fn(u64),
    /// Set to stop.
    pub cancel: &'a Cancel,
}

/// How a merge of the leaf ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafMerged {
    /// What became of the disk.
    pub end: LeafMergeEnd,
    /// What was copied, what was written meanwhile included.
    pub copied: LeafCopied,
}

/// What became of a disk whose leaf was to be merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeafMergeEnd {
    /// The target is the leaf; requests had to wait so long. The next flush makes that durable.
    Switched(Duration),
    /// It was told to stop: the leaf is what it was, and the target has some of what the layers hold.
    Cancelled,
    /// The disk has gone on in another leaf meanwhile, and the target has some of what the layers hold.
    Overtaken,
}

/// Bytes that were copied into the target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LeafCopied {
    /// Written to it.
    pub written: u64,
    /// Zero, and made so without writing them where that is possible.
    pub zeroed: u64,
}

/// The copying of a leaf, and layers below it, into their target.
pub(crate) struct Merging {
    /// What is merged, the leaf first.
    sources: Vec<Layer>,
    /// What it goes into, over its own parents.
    target: LayeredDevice,
    size: u64,
    granule: u64,
    /// A bit per granule: the target lacks something that the sources hold there.
    lacking: Box<[AtomicU64]>,
    written: AtomicU64,
    zeroed: AtomicU64,
    /// Writes are copied before they return.
    mirrors: AtomicBool,
    stripes: Box<[Mutex<()>]>,
    failed: Mutex<Option<DeviceError>>,
}

/// Bytes that lie together.
struct Found<'a> {
    /// The layer that holds them, and where in its file; `None` if none does.
    place: Option<(&'a Layer, FileOffset)>,
    len: u64,
}

impl Merging {
    fn new(sources: Vec<Layer>, target: LayeredDevice) -> Self {
        let size = target.size_bytes();
        let granule = GRANULE.max((size / MOST_GRANULES).next_power_of_two());
        let words = size.div_ceil(granule).div_ceil(64);
        Self {
            sources,
            target,
            size,
            granule,
            written: AtomicU64::new(0),
            zeroed: AtomicU64::new(0),
            lacking: (0..words).map(|_| AtomicU64::new(0)).collect(),
            mirrors: AtomicBool::new(false),
            stripes: (0..STRIPES).map(|_| Mutex::new(())).collect(),
            failed: Mutex::new(None),
        }
    }

    /// What a request that is refused says may be anywhere.
    fn granules(&self, range: ByteRange) -> std::ops::Range<u64> {
        let end = range.start.saturating_add(range.len).min(self.size);
        range.start.min(self.size) / self.granule..end.div_ceil(self.granule)
    }

    fn range_of(&self, granules: std::ops::Range<u64>) -> ByteRange {
        let start = granules.start * self.granule;
        let end = (granules.end * self.granule).min(self.size);
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

    /// Where the topmost source that holds the first bytes of a range has them.
    fn find(&self, at: u64, len: u64) -> Result<Found<'_>, DeviceError> {
        let mut len = len;
        for layer in &self.sources {
            let span = layer.resolve_read(VirtualOffset(at), len)?;
            len = span.len();
            if let ReadSpan::Data { file_offset, .. } = span {
                let place = Some((layer, file_offset));
                return Ok(Found { place, len });
            }
        }
        Ok(Found { place: None, len })
    }

    /// Copies what the sources hold of a range, and returns how many bytes that are.
    fn copy(&self, range: ByteRange, buffer: &mut Vec<u8>) -> Result<u64, DeviceError> {
        let (mut at, mut copied) = (range.start, 0);
        while at < range.end() {
            let Found { place, len } = self.find(at, (range.end() - at).min(PIECE))?;
            if let Some((layer, FileOffset(offset))) = place {
                buffer.resize(usize_from(len).max(buffer.len()), 0);
                let bytes = &mut buffer[..usize_from(len)];
                layer.file().read_exact_at(bytes, offset).io_context("read", offset)?;
                self.put(bytes, at)?;
                copied += len;
            }
            at += len;
        }
        Ok(copied)
    }

    /// INV-08: what is zero in the sources is zero in the target, whatever is below that.
    fn put(&self, bytes: &[u8], at: u64) -> Result<(), DeviceError> {
        let len = u64_from(bytes.len());
        if is_zero(bytes) {
            let options = ZeroOptions {
                may_unmap: true,
                ..ZeroOptions::default()
            };
            self.zeroed.fetch_add(len, Ordering::Relaxed);
            return self.target.write_zeroes(ByteRange::new(at, len), options);
        }
        self.written.fetch_add(len, Ordering::Relaxed);
        self.target.write_vectored_at(&[IoSlice::new(bytes)], at, false)
    }

    /// Notes all that the sources hold; returns how many bytes that are.
    fn note_all(&self) -> Result<u64, DeviceError> {
        let (mut at, mut held) = (0, 0);
        while at < self.size {
            let Found { place, len } = self.find(at, self.size - at)?;
            if place.is_some() {
                self.note(ByteRange::new(at, len));
                held += len;
            }
            at += len;
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

    fn copied(&self) -> LeafCopied {
        LeafCopied {
            written: self.written.load(Ordering::Relaxed),
            zeroed: self.zeroed.load(Ordering::Relaxed),
        }
    }
}

impl Follower for Merging {
    fn written(&self, range: ByteRange) {
        if self.mirrors.load(Ordering::Acquire) {
            match self.mirror(range) {
                Ok(()) => return,
                // The merge fails and not the write, which is in the leaf.
                Err(error) => drop(lock(&self.failed).get_or_insert(error)),
            }
        }
        self.note(range);
    }
}

impl LiveDevice {
    /// Merges the leaf, and as many layers below it as are asked for, into the layer below them, which is the leaf from then
    /// on, while requests go on. `target` is that layer's image, opened for writing; nobody reads it, or the layers between,
    /// but this disk. `commit` makes it known that it is the leaf; it is called after a flush of it, and no flush of the
    /// disk succeeds before `commit` has.
    ///
    /// Until then the leaf has all that was flushed, and the target nothing that the layers above would not hide: whoever
    /// opens the leaf reads the disk.
    ///
    /// # Errors
    /// What could not be read or written: the leaf is what it was, and the target has some of what the layers hold.
    ///
    /// # Panics
    /// When the disk does not have so many layers and one below them.
    pub fn merge_leaf(
        &self,
        target: &Arc<Image>,
        work: &LeafMerge<'_>,
        commit: Commit,
    ) -> Result<LeafMerged, DeviceError> {
        // What an earlier merge owes is paid, and what is below the leaf is durable.
        self.flush()?;
        let present = self.present();
        present.settle()?;
        let leaf = Arc::clone(present.leaf_image());
        let over = || present.with_layer_as_leaf(work.layers, Arc::clone(target));
        let merging = Arc::new(Merging::new(present.layers()[..work.layers].to_vec(), over()));
        let followed = present.followed_by(Some(Arc::clone(&merging) as _));
        match self.exchange(&leaf, &Arc::new(followed)) {
            LeafExchange::Done => {}
            LeafExchange::PlaceHeld => return Err(PLACE_HELD),
            LeafExchange::NotReady | LeafExchange::OtherLeaf => {
                return Ok(LeafMerged {
                    end: LeafMergeEnd::Overtaken,
                    copied: LeafCopied::default(),
                });
            }
        }
        let next = over().owing(Arc::clone(&leaf), commit);
        let end = self.copy_and_exchange(&leaf, &merging, work, &Arc::new(next));
        if !matches!(end, Ok(LeafMergeEnd::Switched(_))) {
            self.exchange(&leaf, &Arc::new(present.followed_by(None)));
        }
        let copied = merging.copied();
        end.map(|end| LeafMerged { end, copied })
    }

    fn copy_and_exchange(
        &self,
        leaf: &Arc<Image>,
        merging: &Merging,
        work: &LeafMerge<'_>,
        next: &Arc<LayeredDevice>,
    ) -> Result<LeafMergeEnd, DeviceError> {
        // What is written from here on is noted anyway.
        (work.begin)(merging.note_all()?);
        for _ in 0..ROUNDS {
            if !merging.copy_noted(work)? {
                return Ok(LeafMergeEnd::Cancelled);
            }
        }
        merging.mirrors.store(true, Ordering::Release);
        loop {
            if !merging.copy_noted(work)? {
                return Ok(LeafMergeEnd::Cancelled);
            }
            // So that the first flush of the new leaf has little to do.
            merging.target.flush()?;
            merging.check()?;
            let start = Instant::now();
            match self.exchange_leaf(leaf, next, || merging.has_all()) {
                LeafExchange::Done => return Ok(LeafMergeEnd::Switched(start.elapsed())),
                LeafExchange::OtherLeaf => return Ok(LeafMergeEnd::Overtaken),
                LeafExchange::PlaceHeld => return Err(PLACE_HELD),
                LeafExchange::NotReady => {}
            }
        }
    }
}
