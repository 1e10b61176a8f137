//! Compaction: the disk reads the same before, during and after, whatever the layout of the image is, wherever
//! power fails and whatever the file system refuses. Test names cite the invariants of docs/compact.md.
//!
//! VHD_COMPACT_IMAGES says on how many random images the crash enumeration runs (default 300); a failure prints
//! its seed, VHD_TEST_SEED replaces the first one.

mod common;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::build::{Laid, Parent, SECTOR, Sparse, Stored, TablePlace, id};
use common::disk::{assert_same, parent_layer};
use common::rng::{Rng, chance, random_bytes, seeded};
use vhd_core::ErrorKind;
use vhd_core::check::{FindingCode, Severity, check};
use vhd_core::device::{ByteRange, Disk, LayeredDevice};
use vhd_core::image::{FooterSource, Footers, Image, OpenMode};
use vhd_core::ops::compact::{
    BlockCause, CompactError, CompactOptions, CompactPlan, CompactReport, FreeSpace, Survey, compact,
};
use vhd_core::storage::{MemoryFile, Segment, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::{CrashFile, CrashLimits, CrashSnapshot, Fault, FaultError, FaultFile, each_operation_fails};

static GO_ON: AtomicBool = AtomicBool::new(false);

/// Checks what a disk reads.
type Reads = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// An image, what is below it, and what it must read.
#[derive(Clone)]
struct Subject {
    laid: Laid,
    /// The content of the parent, if there is one.
    parent: Option<Vec<u8>>,
    flat: Vec<u8>,
    layout: String,
}

impl Subject {
    fn new(image: &Sparse, parent: Option<Vec<u8>>, layout: String) -> Self {
        Self {
            laid: image.lay(),
            flat: image.flat(parent.as_deref().unwrap_or_default()),
            parent,
            layout,
        }
    }

    /// An image as no program would leave it: any block size, order, gaps, place of the table, zeroes everywhere.
    fn random(rng: &mut Rng) -> Self {
        let block_size = 512 << rng.u32(0..7);
        let blocks = rng.u64(1..14);
        let size = blocks * block_size - rng.u64(0..block_size / 512) * 512;
        let parent = chance(rng, 50).then(|| parent_content(rng, usize_from(size)));
        let size_of_block = usize_from(block_size);
        let mut image = match &parent {
            None => Sparse::new(size, size_of_block),
            Some(_) => Sparse::child(size, size_of_block, id(2), Parent::named(id(1), "parent.vhd")),
        };
        image = image.fill_randomly(rng, 80);
        for stored in &mut image.stored {
            vary(rng, stored);
        }
        image.gap = if chance(rng, 50) { 0 } else { rng.usize(1..12) };
        image.table = match rng.u8(..4) {
            0 => TablePlace::AtEnd,
            1 => TablePlace::FarAway(rng.usize(0..9) * 512),
            _ => TablePlace::BehindHeader,
        };
        let layout = format!(
            "{blocks} blocks of {block_size}, gap {}, parent {}",
            image.gap,
            parent.is_some()
        );
        Self::new(&image, parent, layout)
    }

    fn open(&self, file: Arc<dyn StorageFile>, mode: &OpenMode) -> LayeredDevice {
        let image = Image::open(file, mode).unwrap_or_else(|error| panic!("{}: {error:?}", self.layout));
        let ancestors = self.parent.iter().map(|content| {
            let fixed = common::build::fixed(content, id(1));
            parent_layer(fixed)
        });
        LayeredDevice::new(image, ancestors.collect())
    }

    fn read(&self, file: Arc<dyn StorageFile>) -> Vec<u8> {
        let disk = Disk::new(Arc::new(self.open(file, &OpenMode::read_only())));
        common::disk::read_all(&disk)
    }

    /// The image reads the same, nothing is corrupt, and both footers are there.
    fn check(&self, file: Arc<dyn StorageFile>, reads: &dyn Fn(&[u8]), what: &str) {
        assert!(
            matches!(Footers::read(&*file).unwrap().source, FooterSource::Tail(_)),
            "{what}: no tail footer"
        );
        let report = check(&*file).unwrap();
        let bad = |finding: &&vhd_core::check::Finding| {
            finding.severity == Severity::Corrupt
                || finding.severity == Severity::Repairable && finding.code != FindingCode::StaleSectors
        };
        assert_eq!(report.findings.iter().find(bad), None, "{what}, {}", self.layout);
        reads(&self.read(file));
    }
}

/// Every third 3 KiB is zero.
fn parent_content(rng: &mut Rng, size: usize) -> Vec<u8> {
    let mut bytes = random_bytes(rng, size);
    bytes.chunks_mut(3 << 10).step_by(3).for_each(|part| part.fill(0));
    bytes
}

/// Zero blocks, absent blocks, blocks of which only what is absent has bytes.
fn vary(rng: &mut Rng, stored: &mut Stored) {
    match rng.u8(..5) {
        0 => stored.data.fill(0),
        1 => stored.present.fill(false),
        2 => {
            let sectors = stored.data.chunks_mut(SECTOR).zip(&stored.present);
            sectors
                .filter(|(_, present)| **present)
                .for_each(|(data, _)| data.fill(0));
        }
        _ => {}
    }
}

fn options(free: &dyn FreeSpace) -> CompactOptions<'_> {
    CompactOptions {
        free,
        cancel: &GO_ON,
        threads: 1,
        batch_bytes: 10_000,
    }
}

fn run(
    subject: &Subject,
    file: Arc<dyn StorageFile>,
    options: &CompactOptions<'_>,
) -> Result<CompactReport, CompactError> {
    let device = subject.open(file, &OpenMode::read_write());
    let plan = CompactPlan::new(&Survey::new(&device, options, &())?, true);
    compact(device, &plan, options, &())
}

fn memory(bytes: &[u8]) -> Arc<MemoryFile> {
    Arc::new(MemoryFile::from_bytes(bytes.to_vec()))
}

#[test]
fn images_of_any_layout_read_the_same_and_are_as_short_as_they_can_be() {
    let mut rng = seeded(0xC0, "layouts");
    for _ in 0..600 {
        let subject = Subject::random(&mut rng);
        let file = memory(&subject.laid.bytes);
        let before = file.len().unwrap();
        let report = run(&subject, Arc::clone(&file) as _, &options(&())).unwrap();
        assert_eq!(report.planned.file_bytes, before);
        assert_eq!(report.planned.file_bytes_after, report.file_bytes, "{}", subject.layout);
        assert_eq!(report.file_bytes, file.len().unwrap());
        subject.check(
            Arc::clone(&file) as _,
            &|read| assert_same(read, &subject.flat, &subject.layout),
            "compacted",
        );
        assert_no_block_can_go(&subject, &file);
        // Nothing is left to be done, and nothing is touched then.
        let bytes = file.to_vec();
        let again = run(&subject, Arc::clone(&file) as _, &options(&())).unwrap();
        assert_eq!((again.dropped_blocks, again.moved_blocks), (0, 0), "{}", subject.layout);
        assert_same(&file.to_vec(), &bytes, "compacted twice");
    }
}

/// INV-12 by its plain meaning: of the blocks that are left, each changes what is read if it goes.
fn assert_no_block_can_go(subject: &Subject, file: &Arc<MemoryFile>) {
    let table = usize_from(
        Image::open(Arc::clone(file) as _, &OpenMode::read_only())
            .unwrap()
            .header()
            .unwrap()
            .table_offset,
    );
    let bytes = file.to_vec();
    for index in 0..subject.laid.entries {
        let at = table + index * 4;
        if bytes[at..at + 4] != [0xFF; 4] {
            let without = file.duplicate();
            without.write_all_at(&[0xFF; 4], u64_from(at)).unwrap();
            let read = subject.read(Arc::new(without));
            assert_ne!(read, subject.flat, "block {index} could go: {}", subject.layout);
        }
    }
}

fn image_count() -> usize {
    let asked = std::env::var("VHD_COMPACT_IMAGES")
        .ok()
        .and_then(|count| count.parse().ok());
    asked.unwrap_or(300)
}

/// Crashes at each operation; in some of the crashed images the compaction goes on, and crashes again.
fn crash_everywhere(
    subject: &Subject,
    file: CrashFile,
    free: Arc<dyn FreeSpace + Send>,
    reads: Reads,
    depth: u32,
    states: &Arc<AtomicU64>,
) -> u64 {
    let (watched, counter) = (subject.clone(), Arc::clone(states));
    let (free_again, reads_again) = (Arc::clone(&free), Arc::clone(&reads));
    let failure = Arc::new(Mutex::new(()));
    file.set_observer(Some(Box::new(move |snapshot: &CrashSnapshot| {
        let _one = failure.lock();
        let limits = CrashLimits {
            exhaustive_bits: 6,
            random: 10,
            seed: counter.load(Ordering::Relaxed),
            newest_only: true,
        };
        for state in snapshot.crash_states(&limits) {
            let number = counter.fetch_add(1, Ordering::Relaxed);
            watched.check(Arc::new(state.file()), &*reads_again, &state.to_string());
            if depth > 0 && number.is_multiple_of(23) {
                let (free, reads) = (Arc::clone(&free_again), Arc::clone(&reads_again));
                crash_everywhere(&watched, state.file(), free, reads, depth - 1, &counter);
            }
        }
    })));
    run(subject, Arc::new(file.clone()), &options(&*free)).unwrap();
    file.set_observer(None);
    subject.check(Arc::new(file.clone()), &*reads, "at the end");
    file.len().unwrap()
}

fn unchanged(subject: &Subject) -> Reads {
    let (flat, layout) = (subject.flat.clone(), subject.layout.clone());
    Arc::new(move |read| assert_same(read, &flat, &layout))
}

#[test]
fn inv_09_10_11_power_fails_at_every_operation() {
    let mut rng = seeded(0x09, "crashes");
    let states = Arc::new(AtomicU64::new(0));
    for _ in 0..image_count() {
        let subject = Subject::random(&mut rng);
        let file = CrashFile::from_bytes(&subject.laid.bytes);
        crash_everywhere(&subject, file, Arc::new(()), unchanged(&subject), 1, &states);
    }
    common::announce(&format!(
        "compaction: {} crash states checked",
        states.load(Ordering::Relaxed)
    ));
}

/// Free where a random list says so.
#[derive(Clone)]
struct RandomFree(Vec<bool>);

impl RandomFree {
    fn new(rng: &mut Rng, size: usize) -> Self {
        let mut sectors = Vec::new();
        let mut free = rng.bool();
        while sectors.len() < size / SECTOR {
            sectors.extend(std::iter::repeat_n(free, rng.usize(1..200)));
            free = !free;
        }
        Self(sectors)
    }

    fn is_free(&self, sector: usize) -> bool {
        self.0.get(sector).copied().unwrap_or(false)
    }
}

impl FreeSpace for RandomFree {
    fn run(&self, offset: u64) -> (bool, u64) {
        let first = usize_from(offset) / SECTOR;
        let free = self.is_free(first);
        let same = self.0[first..].iter().take_while(|&&other| other == free).count();
        (free, u64_from(same * SECTOR) - offset % u64_from(SECTOR))
    }
}

#[test]
fn inv_09_to_13_power_fails_while_free_space_goes() {
    let mut rng = seeded(0x13, "crashes with free space");
    let states = Arc::new(AtomicU64::new(0));
    for _ in 0..image_count() {
        let mut subject = Subject::random(&mut rng);
        // Holes inside blocks are for large ranges.
        if chance(&mut rng, 30) {
            let image = Sparse::new(4 * (256 << 10), 256 << 10).fill_randomly(&mut rng, 90);
            subject = Subject::new(&image, None, "256 KiB blocks".to_owned());
        }
        let free = RandomFree::new(&mut rng, subject.flat.len());
        let (flat, known) = (subject.flat.clone(), free.clone());
        let reads = move |read: &[u8]| {
            for (sector, (now, before)) in read.chunks(SECTOR).zip(flat.chunks(SECTOR)).enumerate() {
                let zero = known.is_free(sector) && now.iter().all(|&byte| byte == 0);
                assert!(zero || now == before, "INV-13: sector {sector} changed");
            }
        };
        let file = CrashFile::from_bytes(&subject.laid.bytes);
        crash_everywhere(&subject, file, Arc::new(free), Arc::new(reads), 1, &states);
    }
    common::announce(&format!(
        "compaction with free space: {} crash states checked",
        states.load(Ordering::Relaxed)
    ));
}

#[test]
fn each_operation_fails_and_the_next_run_finishes() {
    let mut rng = seeded(0xFA, "faults");
    let mut struck = 0;
    for error in [FaultError::EIO, FaultError::ENOSPC] {
        for _ in 0..12 {
            let subject = Subject::random(&mut rng);
            let expected = {
                let file = memory(&subject.laid.bytes);
                run(&subject, Arc::clone(&file) as _, &options(&())).unwrap();
                file.len().unwrap()
            };
            let fault = |n| Fault {
                error,
                ..Fault::nth(n).with_short(700)
            };
            struck += each_operation_fails(fault, |control, n| {
                let crash = CrashFile::from_bytes(&subject.laid.bytes);
                let file = Arc::new(FaultFile::with_control(crash.clone(), control));
                let result = run(&subject, file, &options(&()));
                assert_eq!(
                    result.is_err(),
                    control.hits() > 0,
                    "{}, operation {n}: {result:?}",
                    subject.layout
                );
                if let Err(failure) = &result {
                    let wanted = if error == FaultError::EIO {
                        ErrorKind::Io
                    } else {
                        ErrorKind::NoSpace
                    };
                    assert_eq!(failure.kind(), wanted);
                }
                subject.check(Arc::new(crash.clone()), &*unchanged(&subject), "after a fault");
                run(&subject, Arc::new(crash.clone()), &options(&())).unwrap();
                subject.check(Arc::new(crash.clone()), &*unchanged(&subject), "done again");
                let stride = u64_from(subject.laid.bytes.len() / 8) + (40 << 10);
                assert!(
                    crash.len().unwrap() <= expected + stride,
                    "{} for {expected}",
                    crash.len().unwrap()
                );
            });
        }
    }
    assert!(struck > 100, "{struck}");
}

/// Sets the flag when the file is written for the `n`th time.
fn cancelling(file: CrashFile, n: u64, flag: &Arc<AtomicBool>) -> CrashFile {
    let (flag, seen) = (Arc::clone(flag), AtomicU64::new(0));
    file.with_observer(Box::new(move |_| {
        if seen.fetch_add(1, Ordering::Relaxed) == n {
            flag.store(true, Ordering::Relaxed);
        }
    }))
}

#[test]
fn what_was_done_before_a_cancellation_stays_done() {
    let mut rng = seeded(0xCA, "cancellations");
    let mut cancelled = 0;
    for n in 0..120 {
        let subject = Subject::random(&mut rng);
        let flag = Arc::new(AtomicBool::new(false));
        let file = cancelling(CrashFile::from_bytes(&subject.laid.bytes), n % 9, &flag);
        let report = run(
            &subject,
            Arc::new(file.clone()),
            &CompactOptions {
                cancel: &flag,
                ..options(&())
            },
        );
        let report = report.unwrap();
        cancelled += u64::from(report.cancelled);
        assert_eq!(report.cancelled, report.moved_blocks < report.planned.moved_blocks);
        subject.check(Arc::new(file.clone()), &*unchanged(&subject), "cancelled");
        assert_eq!(report.file_bytes, file.len().unwrap());
        let finished = run(&subject, Arc::new(file), &options(&())).unwrap();
        assert!(!finished.cancelled && finished.file_bytes <= report.file_bytes);
    }
    assert!(cancelled > 5, "{cancelled}");
    let flag = AtomicBool::new(true);
    let subject = Subject::new(&Sparse::new(8192, 4096).store_whole(&mut rng, 0), None, String::new());
    let result = run(
        &subject,
        memory(&subject.laid.bytes),
        &CompactOptions {
            cancel: &flag,
            ..options(&())
        },
    );
    assert_eq!(result.unwrap_err().kind(), ErrorKind::Cancelled);
}

#[test]
fn inv_12_zeroes_over_a_parent_that_is_not_zero_stay() {
    let mut rng = seeded(0x12, "zeroes");
    let block = 4096;
    let mut parent = random_bytes(&mut rng, 4 * block);
    parent[..block].fill(0);
    let mut image = Sparse::child(u64_from(4 * block), block, id(2), Parent::named(id(1), "parent.vhd"));
    for index in 0..3 {
        image = image.store_whole(&mut rng, index);
    }
    image.stored[0].data.fill(0);
    image.stored[1].data.fill(0);
    let subject = Subject::new(&image, Some(parent), "zeroes".to_owned());
    let file = memory(&subject.laid.bytes);
    let device = subject.open(Arc::clone(&file) as _, &OpenMode::read_write());
    let survey = Survey::new(&device, &options(&()), &()).unwrap();
    let plan = CompactPlan::new(&survey, false);
    let causes: Vec<BlockCause> = survey.findings().iter().map(|finding| finding.cause).collect();
    assert_eq!(causes, [BlockCause::Zero, BlockCause::ParentNotZero, BlockCause::Used]);
    compact(device, &plan, &options(&()), &()).unwrap();
    assert_same(&subject.read(file), &subject.flat, "zeroes");
}

#[test]
fn inv_14_images_that_must_not_be_compacted_are_refused_untouched() {
    let mut rng = seeded(0x14, "refusals");
    let image = Sparse::new(16 << 10, 4096).store_whole(&mut rng, 1);
    let mut saved = image.lay();
    saved.change_footers(|footer| footer[84] = 1);
    let mut batmap = Sparse {
        gap: 2,
        ..image.clone()
    }
    .lay();
    batmap.change_footers(|footer| footer[28..32].copy_from_slice(b"tap\0"));
    let behind_table = batmap.table + 512;
    batmap.bytes[behind_table..behind_table + 8].copy_from_slice(b"tdbatmap");
    let child = Sparse::child(16 << 10, 4096, id(2), Parent::named(id(1), "parent.vhd")).lay();
    for (bytes, kind) in [
        (saved.bytes, ErrorKind::SavedState),
        (batmap.bytes, ErrorKind::ForeignMetadata),
        (common::build::fixed(&[0; 4096], id(3)), ErrorKind::NoBlocks),
        (child.bytes, ErrorKind::ParentMissing),
    ] {
        let file = memory(&bytes);
        let image = Image::open(Arc::clone(&file) as _, &OpenMode::read_write()).unwrap();
        let device = LayeredDevice::new(image, Vec::new());
        let error = Survey::new(&device, &options(&()), &()).unwrap_err();
        assert_eq!(error.kind(), kind);
        drop(device);
        assert_same(&file.to_vec(), &bytes, "refused");
    }
}

#[test]
fn holes_stay_holes_and_barriers_are_few() {
    const BLOCK: u64 = 2 << 20;
    let file = Arc::new(MemoryFile::new());
    vhd_core::image::create_dynamic(&*file, 64 * BLOCK, BLOCK).unwrap();
    let device = LayeredDevice::new(
        Image::open(Arc::clone(&file) as _, &OpenMode::read_write()).unwrap(),
        Vec::new(),
    );
    let disk = Disk::new(Arc::new(device));
    for block in 0..64 {
        let fill = if block % 2 == 0 { 0 } else { 7 };
        disk.write_at(&[fill; 4096], block * BLOCK + 8192).unwrap();
    }
    drop(disk);
    let crash = CrashFile::from_bytes(&file.to_vec());
    let recorder = vhd_testkit::RecordingFile::new(crash.clone());
    let counts = recorder.recorder();
    let image = Image::open(Arc::new(recorder), &OpenMode::read_write()).unwrap();
    let device = LayeredDevice::new(image, Vec::new());
    let options = CompactOptions {
        batch_bytes: 8 * (BLOCK + 512),
        ..options(&())
    };
    let plan = CompactPlan::new(&Survey::new(&device, &options, &()).unwrap(), false);
    assert_eq!(plan.summary().dropped_blocks, 32);
    let report = compact(device, &plan, &options, &()).unwrap();
    assert_eq!((report.moved_blocks, report.file_bytes), (16, crash.len().unwrap()));
    assert!(report.copied_bytes + report.shared_bytes <= 16 * 3 * 4096, "{report:?}");
    // One for the drops, one for each of two batches, two for the cut, one for the table before it, one to close.
    let syncs = counts.count(vhd_testkit::OperationKind::Sync);
    assert_eq!(syncs, 7);
    let mut data = 0;
    let mut at = 0;
    while at < crash.len().unwrap() {
        let (segment, end) = crash.segment_at(at).unwrap();
        data += if segment == Segment::Data { end - at } else { 0 };
        at = end;
    }
    assert!(data < 32 * 4 * 4096, "{data}");
    let image = Image::open(Arc::new(crash), &OpenMode::read_only()).unwrap();
    let mut stored = 0;
    let disk = common::disk::disk_of(image, Vec::new());
    disk.extents(ByteRange::new(0, disk.size()), &mut |extent| {
        // Data of moved blocks stays on the grid of 4 KiB.
        assert!(extent.file_offset.is_none_or(|offset| offset % 4096 == 0));
        stored += u64::from(extent.file_offset.is_some());
        ControlFlow::Continue(())
    })
    .unwrap();
    assert!(stored >= 32);
}
