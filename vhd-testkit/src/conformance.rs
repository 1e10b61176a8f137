//! What every disk must do, as one suite: run it on each implementation of `BlockDevice`.
//!
//! A check panics at the first violation, with its seed. Each gets a fresh device with known content, of
//! which parts are zero, so that a device over an image has blocks of every kind to show.

mod concurrency;
mod extents;
mod limits;
mod transfer;
mod zeroes;

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;

use vhd_core::device::{BlockDevice, ByteRange, DeviceError};
use vhd_core::units::{u64_from, usize_from};

use crate::bytes::{SECTOR, assert_same, fill};
use crate::rng::{SeedOnPanic, mix, rng, seed};

/// Makes a device of a size, with this initial content (as long as the size).
pub type Make<'a> = &'a dyn Fn(u64, &[u8]) -> Arc<dyn BlockDevice>;

/// The options of the suite.
#[derive(Clone, Copy, Debug)]
pub struct Conformance {
    /// Bytes of the disk; at least 256 KiB, and a multiple of 512 and of the logical block size.
    pub size: u64,
    /// The devices are read-only: their changes must be refused.
    pub read_only: bool,
    /// Run the checks with several threads.
    pub concurrency: bool,
    /// A read beside a write may see a part of a sector old and a part new, as host file systems allow.
    pub torn_reads: bool,
    /// Steps of each random check.
    pub steps: u32,
    /// The seed; the environment can replace it.
    pub seed: u64,
}

impl Default for Conformance {
    fn default() -> Self {
        // Over two blocks of 2 MiB, and the last block is not whole.
        Self {
            size: (5 << 20) + (12 << 10),
            read_only: false,
            concurrency: true,
            torn_reads: false,
            steps: 300,
            seed: 0x7e57,
        }
    }
}

/// Runs the whole suite on writable devices.
///
/// # Panics
/// When a device breaks the contract.
pub fn conformance(make: Make<'_>) {
    Conformance::default().run(make);
}

impl Conformance {
    /// The suite for devices that were opened read-only.
    #[must_use]
    pub fn read_only() -> Self {
        Self {
            read_only: true,
            ..Self::default()
        }
    }

    /// Runs the suite.
    ///
    /// # Panics
    /// When a device breaks the contract.
    pub fn run(&self, make: Make<'_>) {
        let reading: [Check; 4] = [
            ("info", limits::info),
            ("reads", transfer::reads),
            ("range errors", limits::range_errors),
            ("extents", extents::extents),
        ];
        let writing: [Check; 7] = [
            ("writes", transfer::writes),
            ("a random script", transfer::script),
            ("zeroes", zeroes::zeroes),
            ("discards", zeroes::discards),
            ("extents after changes", extents::extents_after_changes),
            ("flush and fua", transfer::flush_and_fua),
            ("resize", limits::resize),
        ];
        let threads: [Check; 3] = [
            ("threads on disjoint sectors", concurrency::disjoint),
            ("threads on overlapping ranges", concurrency::overlapping),
            ("readers racing a writer", concurrency::racing),
        ];
        self.each(&reading, make);
        if self.read_only {
            self.each(&[("refused changes", limits::refuses_changes)], make);
        } else {
            self.each(&writing, make);
            if self.concurrency {
                self.each(&threads, make);
            }
        }
    }

    fn each(&self, checks: &[Check], make: Make<'_>) {
        for (name, check) in checks {
            let base = seed(self.seed);
            let _guard = SeedOnPanic::new(name, base);
            check(&mut Bench::new(self, make, mix(base, u64_from(name.len()))));
        }
    }
}

type Check = (&'static str, fn(&mut Bench));

/// One device under test, with what it must hold.
struct Bench {
    device: Arc<dyn BlockDevice>,
    /// What the device must read.
    shadow: Vec<u8>,
    /// The logical block size.
    block: u64,
    read_only: bool,
    torn_reads: bool,
    steps: u32,
    random: fastrand::Rng,
    /// The generation of the next write; the initial content has 1.
    generation: u64,
}

impl Bench {
    fn new(options: &Conformance, make: Make<'_>, seed: u64) -> Self {
        let shadow = initial(options.size);
        let device = make(options.size, &shadow);
        let block = u64::from(device.info().logical_block_size);
        assert!(block.is_power_of_two(), "logical block size {block} is no power of two");
        let random = rng(seed);
        Self {
            device,
            shadow,
            block,
            read_only: options.read_only,
            torn_reads: options.torn_reads,
            steps: options.steps,
            random,
            generation: 1,
        }
    }

    fn size(&self) -> u64 {
        u64_from(self.shadow.len())
    }

    fn blocks(&self) -> u64 {
        self.size() / self.block
    }

    /// A range inside the disk, of at most `most` blocks and at least one.
    fn range(&mut self, most: u64) -> ByteRange {
        let start = self.random.u64(..self.blocks());
        let len = self.random.u64(1..=most.min(self.blocks() - start));
        ByteRange::new(start * self.block, len * self.block)
    }

    /// Bytes of a new generation for the range.
    fn new_content(&mut self, range: ByteRange) -> Vec<u8> {
        self.generation += 1;
        crate::bytes::pattern(range.start, usize_from(range.len), self.generation)
    }

    fn part(&mut self, range: ByteRange) -> &mut [u8] {
        &mut self.shadow[usize_from(range.start)..usize_from(range.end())]
    }

    /// Writes new content to device and shadow, in pieces of random sizes.
    fn write(&mut self, range: ByteRange, fua: bool) {
        let content = self.new_content(range);
        self.part(range).copy_from_slice(&content);
        let cuts = self.cuts(content.len());
        let bufs: Vec<IoSlice<'_>> = cuts
            .windows(2)
            .map(|cut| IoSlice::new(&content[cut[0]..cut[1]]))
            .collect();
        self.device
            .write_vectored_at(&bufs, range.start, fua)
            .unwrap_or_else(|error| panic!("write {range:?}: {error}"));
    }

    /// Places to cut `len` bytes: often not aligned, and some twice, for empty pieces.
    fn cuts(&mut self, len: usize) -> Vec<usize> {
        let mut cuts: Vec<usize> = (0..self.random.usize(..6)).map(|_| self.random.usize(..=len)).collect();
        if self.random.bool() {
            // As a guest's pages come: whole sectors each.
            cuts.iter_mut().for_each(|cut| *cut = *cut / SECTOR * SECTOR);
        }
        cuts.extend(cuts.first().copied());
        cuts.extend([0, len]);
        cuts.sort_unstable();
        cuts
    }

    /// Reads the range in pieces of random sizes and compares it with the shadow.
    #[track_caller]
    fn verify(&mut self, range: ByteRange, what: &str) {
        let mut found = vec![0xAA; usize_from(range.len)];
        let cuts = self.cuts(found.len());
        let mut rest = &mut found[..];
        let mut bufs = Vec::new();
        for cut in cuts.windows(2) {
            let (now, later) = rest.split_at_mut(cut[1] - cut[0]);
            bufs.push(IoSliceMut::new(now));
            rest = later;
        }
        let result = self.device.read_vectored_at(&mut bufs, range.start);
        result.unwrap_or_else(|error| panic!("{what}: read {range:?}: {error}"));
        assert_same(&found, self.part(range), &format!("{what}: {range:x?}"));
    }

    /// Compares the whole disk with the shadow.
    #[track_caller]
    fn verify_all(&mut self, what: &str) {
        let found = read_all(&*self.device);
        assert_same(&found, &self.shadow, what);
    }
}

/// Thirds of each 64 KiB are pattern, zero, pattern; every fourth 64 KiB and the whole third megabyte are zero.
fn initial(size: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize_from(size)];
    fill(&mut bytes, 0, 1);
    for (index, part) in bytes.chunks_mut(64 << 10).enumerate() {
        let zeroes = if index % 4 == 3 || index / 16 == 2 {
            0..part.len()
        } else {
            20 << 10..44 << 10
        };
        part.get_mut(zeroes).into_iter().for_each(|zeroes| zeroes.fill(0));
    }
    bytes
}

/// The content of a whole device, in transfers of at most its maximum.
///
/// # Panics
/// When a read fails.
#[must_use]
pub fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0; usize_from(device.size_bytes())];
    let step = usize_from(transfer_limit(device));
    for (index, part) in bytes.chunks_mut(step).enumerate() {
        let offset = u64_from(index * step);
        let result = device.read_vectored_at(&mut [IoSliceMut::new(part)], offset);
        result.unwrap_or_else(|error| panic!("reading {offset:#x}: {error}"));
    }
    bytes
}

/// The longest transfer in whole blocks that a frontend may ask for.
fn transfer_limit(device: &dyn BlockDevice) -> u64 {
    let info = device.info();
    let block = u64::from(info.logical_block_size);
    (u64::from(info.maximum_transfer) / block * block).clamp(block, 1 << 20)
}

/// Whether the result is an error that `wanted` accepts.
#[track_caller]
fn assert_error(result: Result<(), DeviceError>, wanted: impl Fn(&DeviceError) -> bool, what: &str) {
    match result {
        Ok(()) => panic!("{what} was accepted"),
        Err(error) => assert!(wanted(&error), "{what} failed with the wrong error: {error:?}"),
    }
}
