//! Resizing: the disk reads the same up to the smaller size and zero behind it, whatever the layout of the image is,
//! wherever power fails and whatever the file system refuses. Test names cite the invariants of docs/resize.md.
//!
//! VHD_RESIZE_IMAGES says on how many random images the crash enumeration runs (default 30); a failure prints its
//! seed, VHD_TEST_SEED replaces the first one.

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::build::{Laid, Locator, Parent, Sparse, TablePlace, id, utf16le};
use common::disk::{assert_same, parent_layer, read_all};
use common::rng::{Rng, chance, random_bytes, seeded};
use vhd_core::ErrorKind;
use vhd_core::check::{FindingCode, Severity, check};
use vhd_core::device::{Disk, LayeredDevice};
use vhd_core::image::{FooterSource, Footers, Image, OpenMode};
use vhd_core::ops::resize::resize_file;
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::{CrashFile, CrashLimits, CrashSnapshot, Fault, FaultError, FaultFile, each_operation_fails};

/// An image, what is below it, and what it must read.
#[derive(Clone)]
struct Subject {
    laid: Laid,
    /// The content of the parent, if there is one.
    parent: Option<Vec<u8>>,
    flat: Vec<u8>,
    layout: String,
    block_size: u64,
    /// Blocks behind the end of `flat` may be stored: they hold zeroes.
    has_zeroes: bool,
}

impl Subject {
    /// An image as no program would leave it: any block size, order, gaps, place of the table, surplus entries, last
    /// blocks cut short or with bytes behind the end of the disk, locators everywhere.
    fn random(rng: &mut Rng) -> Self {
        let block_size = 512_u64 << rng.u32(0..6);
        let blocks = match rng.u8(..4) {
            0 => rng.u64(120..140),
            _ => rng.u64(1..14),
        };
        let size = blocks * block_size - rng.u64(0..block_size / 512) * 512;
        let parent = chance(rng, 50).then(|| random_bytes(rng, usize_from(size)));
        let size_of_block = usize_from(block_size);
        let mut image = match &parent {
            None => Sparse::new(size, size_of_block),
            Some(_) => Sparse::child(size, size_of_block, id(2), random_parent(rng)),
        };
        let share = rng.u8(0..90);
        image = image.fill_randomly(rng, share);
        if chance(rng, 30) {
            // The last block is the last in the file, where it can be cut short.
            let last = u64_from(image.blocks() - 1);
            image.stored.retain(|stored| u64_from(stored.index) != last);
            image = image.store_whole(rng, usize_from(last));
        }
        image.gap = if chance(rng, 50) { 0 } else { rng.usize(1..12) };
        image.padding = if chance(rng, 50) { 0xFF } else { 0 };
        image.entries = chance(rng, 25).then(|| image.blocks() + rng.usize(0..300));
        image.table = match rng.u8(..5) {
            0 => TablePlace::AtEnd,
            1 => TablePlace::FarAway(rng.usize(0..9) * 512),
            _ => TablePlace::BehindHeader,
        };
        let cut = chance(rng, 50);
        let layout = format!(
            "{blocks} blocks of {block_size}, {size} bytes, gap {}, parent {}, entries {:?}, cut {cut}",
            image.gap,
            parent.is_some(),
            image.entries
        );
        let mut laid = image.lay();
        if cut && matches!(image.table, TablePlace::BehindHeader) {
            cut_last_block(&image, &mut laid);
        }
        if chance(rng, 15) {
            // As Virtual PC wrote it before 2004.
            laid.bytes.pop();
        }
        Self {
            laid,
            flat: image.flat(parent.as_deref().unwrap_or_default()),
            parent,
            layout,
            block_size,
            has_zeroes: false,
        }
    }

    fn size(&self) -> u64 {
        u64_from(self.flat.len())
    }

    /// A size that has something to do with this one.
    fn other_size(&self, rng: &mut Rng) -> u64 {
        let sectors = self.size() / 512;
        let block = self.block_size / 512;
        let wanted = match rng.u8(..6) {
            0 => sectors + rng.u64(1..=block),
            1 => sectors + rng.u64(1..200) * block,
            2 => sectors + rng.u64(1..40) * 128 * block,
            3 => sectors.next_multiple_of(block) + 128 * block,
            _ => sectors + rng.u64(1..20) * block + rng.u64(0..block),
        };
        wanted * 512
    }

    fn read(&self, file: Arc<dyn StorageFile>) -> Vec<u8> {
        let image = Image::open(file, &OpenMode::read_only()).unwrap_or_else(|e| panic!("{}: {e:?}", self.layout));
        let ancestors = self.parent.iter().map(|content| {
            let fixed = common::build::fixed(content, id(1));
            parent_layer(fixed)
        });
        read_all(&Disk::new(Arc::new(LayeredDevice::new(image, ancestors.collect()))))
    }

    /// What the disk reads with `size` bytes.
    fn flat_of(&self, size: u64) -> Vec<u8> {
        let mut flat = self.flat.clone();
        flat.resize(usize_from(size), 0);
        flat
    }

    /// The image reads as with one of the sizes, nothing is corrupt, and the locators are what they were.
    fn check(&self, file: &Arc<dyn StorageFile>, sizes: &[u64], what: &str) -> u64 {
        let report = check(&**file).unwrap();
        let bad = |finding: &&vhd_core::check::Finding| finding.severity == Severity::Corrupt;
        assert_eq!(report.findings.iter().find(bad), None, "{what}, {}", self.layout);
        let read = self.read(Arc::clone(file));
        let size = u64_from(read.len());
        assert!(
            sizes.contains(&size),
            "{what}: {size} is none of {sizes:?}, {}",
            self.layout
        );
        assert_same(&read, &self.flat_of(size), &format!("{what}, {}", self.layout));
        self.check_locators(file, what);
        size
    }

    fn check_locators(&self, file: &Arc<dyn StorageFile>, what: &str) {
        let original: Arc<dyn StorageFile> = Arc::new(MemoryFile::from_bytes(self.laid.bytes.clone()));
        let paths = |file: &Arc<dyn StorageFile>| {
            let image = Image::open(Arc::clone(file), &OpenMode::read_only()).unwrap();
            image.parent_paths().unwrap()
        };
        assert_eq!(paths(file), paths(&original), "{what}, {}", self.layout);
    }

    /// As [`check`](Self::check), of an image that is done: both footers agree, and there are as many entries as blocks.
    fn check_done(&self, file: &Arc<dyn StorageFile>, size: u64, what: &str) {
        self.check(file, &[size], what);
        let footers = Footers::read(&**file).unwrap();
        assert!(footers.agree(), "{what}");
        assert!(matches!(footers.source, FooterSource::Tail(_)), "{what}");
        let report = check(&**file).unwrap();
        let bad = |finding: &&vhd_core::check::Finding| {
            finding.severity == Severity::Repairable && finding.code != FindingCode::StaleSectors
        };
        assert_eq!(report.findings.iter().find(bad), None, "{what}, {}", self.layout);
        let image = Image::open(Arc::clone(file), &OpenMode::read_only()).unwrap();
        let header = image.header().unwrap();
        assert_eq!(
            u64::from(header.max_table_entries),
            size.div_ceil(self.block_size),
            "{what}"
        );
        self.check_unused(file, header.table_offset, size);
    }

    /// Nothing is stored of what became part of the disk, and the surplus of the table's last sector is unused.
    fn check_unused(&self, file: &Arc<dyn StorageFile>, table: u64, size: u64) {
        let (old, new) = (self.size().div_ceil(self.block_size), size.div_ceil(self.block_size));
        let mut entries = vec![0; usize_from((new * 4).next_multiple_of(512))];
        file.read_exact_at(&mut entries, table).unwrap();
        let first = if self.has_zeroes { new } else { old.min(new) };
        let behind = &entries[usize_from(first * 4)..];
        assert!(behind.iter().all(|&byte| byte == 0xFF), "{}", self.layout);
    }
}

fn random_parent(rng: &mut Rng) -> Parent {
    let mut parent = Parent::name_only(id(1), "parent.vhd");
    for slot in 0..rng.usize(0..4) {
        let (code, text) = match rng.u8(..3) {
            0 => (b"W2ru", ".\\parent.vhd".to_owned()),
            1 => (b"W2ku", format!("C:\\{}\\parent.vhd", "d".repeat(rng.usize(1..300)))),
            _ => (b"W2ku", "/srv/parent.vhd".to_owned()),
        };
        parent.locators.push(Locator::new(slot, code, utf16le(&text)));
    }
    parent
}

/// Takes from the file what its last block has behind the end of the disk, if that is the end of the file.
fn cut_last_block(image: &Sparse, laid: &mut Laid) {
    let Some(&(block, bitmap)) = laid.blocks.last() else {
        return;
    };
    let behind = (block + 1) * image.block_size;
    let size = usize_from(image.size);
    if behind > size {
        let start = bitmap + (image.block_size / 512).div_ceil(8).next_multiple_of(512) + image.block_size;
        let removed = behind - size;
        laid.bytes.drain(start - removed..start);
        laid.tail -= removed;
    }
}

fn memory(bytes: &[u8]) -> Arc<dyn StorageFile> {
    Arc::new(MemoryFile::from_bytes(bytes.to_vec()))
}

#[test]
fn images_of_any_layout_grow_and_shrink_again() {
    let mut rng = seeded(0x26, "layouts");
    for _ in 0..400 {
        let subject = Subject::random(&mut rng);
        let file = memory(&subject.laid.bytes);
        let size = subject.other_size(&mut rng);
        resize_file(&file, None, size).unwrap_or_else(|error| panic!("{error:?}: {} to {size}", subject.layout));
        subject.check_done(&file, size, "grown");
        let more = size + 512 * rng.u64(1..400);
        resize_file(&file, None, more).unwrap();
        subject.check_done(&file, more, "grown again");
        let less = subject.size() + 512 * rng.u64(0..(more - subject.size()) / 512);
        if less < more {
            resize_file(&file, None, less).unwrap();
            subject.check_done(&file, less, "shrunk");
        }
    }
}

fn image_count() -> u64 {
    let asked = std::env::var("VHD_RESIZE_IMAGES").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(30)
}

/// Crashes at each operation; in some of the crashed images the resize goes on, and crashes again.
fn crash_everywhere(subject: &Subject, file: CrashFile, sizes: [u64; 2], depth: u32, states: &Arc<AtomicU64>) {
    let (watched, counter) = (subject.clone(), Arc::clone(states));
    let one_at_a_time = Arc::new(Mutex::new(()));
    file.set_observer(Some(Box::new(move |snapshot: &CrashSnapshot| {
        let _one = one_at_a_time.lock();
        let limits = CrashLimits {
            exhaustive_bits: 6,
            random: 10,
            seed: counter.load(Ordering::Relaxed),
            newest_only: true,
        };
        for state in snapshot.crash_states(&limits) {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            let crashed: Arc<dyn StorageFile> = Arc::new(state.file());
            watched.check(&crashed, &sizes, &state.to_string());
            if depth > 0 && number.is_multiple_of(29) {
                crash_everywhere(&watched, state.file(), sizes, depth - 1, &counter);
            }
        }
    })));
    let storage: Arc<dyn StorageFile> = Arc::new(file.clone());
    resize_file(&storage, None, sizes[1]).unwrap();
    file.set_observer(None);
    subject.check_done(&storage, sizes[1], "at the end");
}

#[test]
fn inv_26_power_fails_while_images_grow() {
    let mut rng = seeded(0x126, "growing");
    let states = Arc::new(AtomicU64::new(0));
    for _ in 0..image_count() {
        let subject = Subject::random(&mut rng);
        let size = subject.other_size(&mut rng);
        let file = CrashFile::from_bytes(&subject.laid.bytes);
        crash_everywhere(&subject, file, [subject.size(), size], 1, &states);
    }
    let states = states.load(Ordering::Relaxed);
    common::announce(&format!("growing: {states} crash states checked"));
}

#[test]
fn inv_27_power_fails_while_images_shrink() {
    let mut rng = seeded(0x127, "shrinking");
    let states = Arc::new(AtomicU64::new(0));
    for _ in 0..image_count() {
        let mut subject = Subject::random(&mut rng);
        let file = memory(&subject.laid.bytes);
        let size = subject.other_size(&mut rng);
        resize_file(&file, None, size).unwrap();
        if subject.parent.is_none() {
            subject.has_zeroes = true;
            store_zeroes(&file, subject.size(), size, &mut rng);
        }
        let mut bytes = vec![0; usize_from(file.len().unwrap())];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let less = subject.size() + 512 * rng.u64(0..(size - subject.size()) / 512);
        subject.layout = format!("{}, from {size} to {less}", subject.layout);
        crash_everywhere(&subject, CrashFile::from_bytes(&bytes), [size, less], 1, &states);
    }
    let states = states.load(Ordering::Relaxed);
    common::announce(&format!("shrinking: {states} crash states checked"));
}

/// Gives blocks behind `start` space, in which there is nothing but zeroes in the end.
fn store_zeroes(file: &Arc<dyn StorageFile>, start: u64, end: u64, rng: &mut Rng) {
    let image = Image::open(Arc::clone(file), &OpenMode::read_write()).unwrap();
    let device = LayeredDevice::new(image, Vec::new());
    let disk = Disk::new(Arc::new(device));
    for _ in 0..rng.u8(..6) {
        let at = start + 512 * rng.u64(0..(end - start) / 512);
        disk.write_at(&[7; 512], at).unwrap();
        disk.write_at(&[0; 512], at).unwrap();
    }
}

#[test]
fn each_operation_fails_and_the_next_run_finishes() {
    let mut rng = seeded(0xFA26, "faults");
    let mut struck = 0;
    for (error, kind) in [
        (FaultError::EIO, ErrorKind::Io),
        (FaultError::ENOSPC, ErrorKind::NoSpace),
    ] {
        for round in 0..12 {
            let subject = Subject::random(&mut rng);
            let grown = subject.other_size(&mut rng);
            let (bytes, from, to) = if round % 3 == 0 {
                let file = memory(&subject.laid.bytes);
                resize_file(&file, None, grown).unwrap();
                let mut bytes = vec![0; usize_from(file.len().unwrap())];
                file.read_exact_at(&mut bytes, 0).unwrap();
                (bytes, grown, subject.size())
            } else {
                (subject.laid.bytes.clone(), subject.size(), grown)
            };
            let fault = |n| Fault {
                error,
                ..Fault::nth(n).with_short(700)
            };
            struck += each_operation_fails(fault, |control, n| {
                let crash = CrashFile::from_bytes(&bytes);
                let file: Arc<dyn StorageFile> = Arc::new(FaultFile::with_control(crash.clone(), control));
                let result = resize_file(&file, None, to);
                assert_eq!(
                    result.is_err(),
                    control.hits() > 0,
                    "{}, operation {n}: {result:?}",
                    subject.layout
                );
                if let Err(failure) = &result {
                    assert_eq!(failure.kind(), kind, "{failure:?}");
                }
                let healed: Arc<dyn StorageFile> = Arc::new(crash);
                subject.check(&healed, &[from, to], "after a fault");
                resize_file(&healed, None, to).unwrap();
                subject.check_done(&healed, to, "done again");
            });
        }
    }
    assert!(struck > 150, "{struck}");
}
