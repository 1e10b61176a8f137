//! The copying itself, layer by layer: power fails at each operation on the target, operations fail, bytes are
//! counted. Only the target changes while layers are copied.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::chains::GO_ON;
use crate::common::announce;
use crate::common::build::{Parent, SECTOR, Sparse, Stored, fixed, id};
use crate::common::disk::{assert_same, parent_layer, read_all};
use crate::common::rng::{Rng, chance, random_bytes, seeded};
use vhd_core::ErrorKind;
use vhd_core::check::{FindingCode, Severity, check};
use vhd_core::device::{Disk, Layer, LayeredDevice};
use vhd_core::image::{Image, OpenMode};
use vhd_core::ops::merge::{CopiedBytes, CopyMode, LayerCopy, MergeError, MergeOptions};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::{
    CrashFile, CrashLimits, CrashSnapshot, Fault, FaultError, FaultFile, OperationKind, RecordingFile,
    each_operation_fails,
};

/// A range of a chain over a target, in bytes.
#[derive(Clone)]
struct Subject {
    /// The topmost first.
    sources: Vec<Vec<u8>>,
    target: Vec<u8>,
    /// What is below a target that is a differencing image.
    below: Option<Vec<u8>>,
    /// What the leaf reads.
    flat: Vec<u8>,
    /// What the target read before.
    before: Vec<u8>,
    /// By sector, whether a layer of the range holds it.
    held: Vec<bool>,
    layout: String,
}

impl Subject {
    fn random(rng: &mut Rng) -> Self {
        let size = rng.u64(20..200) * 512;
        let below = chance(rng, 60).then(|| random_bytes(rng, usize_from(size)));
        let block = |rng: &mut Rng| 512_usize << rng.u32(1..7);
        let mut flat = below.clone().unwrap_or_else(|| vec![0; usize_from(size)]);
        let mut target = match &below {
            None => Sparse::new(size, block(rng)),
            Some(_) => Sparse::child(size, block(rng), id(2), Parent::named(id(1), "0.vhd")),
        };
        target = target.fill_randomly(rng, 60);
        target.gap = rng.usize(..3);
        flat = target.flat(&flat);
        let before = flat.clone();
        let mut held = vec![false; usize_from(size) / SECTOR];
        let depth = rng.usize(1..4);
        let mut sources = Vec::new();
        for level in 0..depth {
            let parent = Parent::named(id(2 + level), "parent.vhd");
            let mut source = Sparse::child(size, block(rng), id(3 + level), parent).fill_randomly(rng, 50);
            for stored in &mut source.stored {
                if chance(rng, 20) {
                    stored.data.fill(0);
                }
            }
            flat = source.flat(&flat);
            for stored in &source.stored {
                let first = stored.index * source.block_size / SECTOR;
                let sectors = held[first..].iter_mut().zip(&stored.present);
                sectors.for_each(|(held, present)| *held |= present);
            }
            sources.insert(0, source.lay().bytes);
        }
        Self {
            layout: format!("{size} bytes, {depth} layers, over another: {}", below.is_some()),
            sources,
            target: target.lay().bytes,
            below,
            flat,
            before,
            held,
        }
    }

    fn source_layers(&self) -> Vec<Layer> {
        self.sources.iter().map(|bytes| parent_layer(bytes.clone())).collect()
    }

    fn below(&self) -> Vec<Layer> {
        let below = self.below.iter().map(|content| parent_layer(fixed(content, id(1))));
        below.collect()
    }

    fn target(&self, file: Arc<dyn StorageFile>, mode: &OpenMode) -> Result<Arc<LayeredDevice>, ErrorKind> {
        let image = Image::open(file, mode).map_err(|error| error.kind())?;
        Ok(Arc::new(LayeredDevice::new(image, self.below())))
    }

    /// What the leaf reads over this target.
    fn leaf_reads(&self, target: Arc<dyn StorageFile>) -> Vec<u8> {
        let leaf = Image::open(
            Arc::new(MemoryFile::from_bytes(self.sources[0].clone())),
            &OpenMode::read_only(),
        );
        let mut ancestors: Vec<Layer> = self.source_layers().drain(1..).collect();
        let target = Image::open(target, &OpenMode::ancestor()).unwrap();
        ancestors.push(Layer::Vhd(Arc::new(target)));
        ancestors.extend(self.below());
        read_all(&Disk::new(Arc::new(LayeredDevice::new(leaf.unwrap(), ancestors))))
    }

    fn target_reads(&self, target: Arc<dyn StorageFile>) -> Vec<u8> {
        read_all(&Disk::new(self.target(target, &OpenMode::read_only()).unwrap()))
    }

    /// The leaf reads the same, and the target is no worse than a crash may leave it.
    fn check(&self, target: Arc<dyn StorageFile>, what: &str) {
        let report = check(&*target).unwrap();
        let bad = |finding: &&vhd_core::check::Finding| {
            let footers = [
                FindingCode::FooterDamaged,
                FindingCode::FooterCopyDamaged,
                FindingCode::FootersDiffer,
            ];
            let restorable = finding.code == FindingCode::StaleSectors || footers.contains(&finding.code);
            finding.severity == Severity::Corrupt || finding.severity == Severity::Repairable && !restorable
        };
        assert_eq!(report.findings.iter().find(bad), None, "{what}, {}", self.layout);
        // INV-22: what no layer above holds reads as before.
        let reads = self.target_reads(Arc::clone(&target));
        let kept = (0..self.held.len()).filter(|sector| !self.held[*sector]);
        for at in kept.map(|sector| sector * SECTOR..(sector + 1) * SECTOR) {
            assert!(
                reads[at.clone()] == self.before[at.clone()],
                "{at:x?}, {what}, {}",
                self.layout
            );
        }
        assert_same(
            &self.leaf_reads(target),
            &self.flat,
            &format!("the leaf, {what}, {}", self.layout),
        );
    }

    /// Copies from byte `start` on and closes the target; `checkpoint` learns up to where all is durable.
    fn copy(
        &self,
        target: Arc<dyn StorageFile>,
        start: u64,
        mode: CopyMode,
        checkpoint: &mut dyn FnMut(u64),
    ) -> Result<CopiedBytes, ErrorKind> {
        let device = self.target(target, &OpenMode::read_write())?;
        let disk = Disk::new(Arc::clone(&device) as _);
        let sources = self.source_layers();
        let copied = copy(&sources, &disk, start, mode, 1024, checkpoint).map_err(|error| error.kind());
        drop(disk);
        let closed = Arc::into_inner(device).expect("the only handle").close();
        let copied = copied?;
        closed.map_err(|error| error.kind())?;
        Ok(copied)
    }
}

fn copy(
    sources: &[Layer],
    disk: &Disk,
    start: u64,
    mode: CopyMode,
    batch_bytes: u64,
    checkpoint: &mut dyn FnMut(u64),
) -> Result<CopiedBytes, MergeError> {
    let paths: Vec<PathBuf> = (0..sources.len()).map(|n| format!("source {n}").into()).collect();
    let job = LayerCopy {
        sources,
        paths: &paths,
        target: disk,
        target_path: "target".as_ref(),
        mode,
        options: &MergeOptions {
            cancel: &GO_ON,
            threads: 1,
            batch_bytes,
        },
        progress: &(),
    };
    let (end, copied) = job.run(start, &mut |at| {
        checkpoint(at);
        Ok(())
    })?;
    assert_eq!(end, disk.size());
    Ok(copied)
}

fn chain_count() -> usize {
    let asked = std::env::var("VHD_MERGE_CHAINS").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(150)
}

#[test]
fn inv_20_22_power_fails_at_every_operation_and_the_merge_goes_on() {
    let mut rng = seeded(0x20, "merges that crash");
    let (states, resumed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for _ in 0..chain_count() {
        let subject = Subject::random(&mut rng);
        let file = CrashFile::from_bytes(&subject.target);
        let durable = Arc::new(AtomicU64::new(0));
        let (watched, counter, again, known) = (
            subject.clone(),
            Arc::clone(&states),
            Arc::clone(&resumed),
            Arc::clone(&durable),
        );
        let one = Mutex::new(());
        file.set_observer(Some(Box::new(move |snapshot: &CrashSnapshot| {
            let _one = one.lock();
            let limits = CrashLimits {
                exhaustive_bits: 6,
                random: 8,
                seed: counter.load(Ordering::Relaxed),
                newest_only: true,
            };
            // What a record would say at this moment.
            let start = known.load(Ordering::SeqCst);
            for state in snapshot.crash_states(&limits) {
                let number = counter.fetch_add(1, Ordering::Relaxed);
                watched.check(Arc::new(state.file()), &state.to_string());
                if number.is_multiple_of(29) {
                    again.fetch_add(1, Ordering::Relaxed);
                    let file = Arc::new(state.file());
                    let (from, mode) = match number % 2 {
                        0 => (start, CopyMode::Write),
                        _ => (0, CopyMode::Compare),
                    };
                    watched.copy(Arc::clone(&file) as _, from, mode, &mut |_| {}).unwrap();
                    let what = format!("gone on from {from} of {}, {state}", watched.layout);
                    assert_same(&watched.target_reads(file), &watched.flat, &what);
                }
            }
        })));
        let told = Arc::clone(&durable);
        let checkpoint = &mut |at| told.store(at, Ordering::SeqCst);
        subject
            .copy(Arc::new(file.clone()), 0, CopyMode::Write, checkpoint)
            .unwrap();
        file.set_observer(None);
        assert_same(
            &subject.target_reads(Arc::new(file.clone())),
            &subject.flat,
            &subject.layout,
        );
        // Everything is there: nothing is written again, and a check for that finds no difference.
        let copied = subject
            .copy(Arc::new(file.clone()), 0, CopyMode::Verify, &mut |_| {})
            .unwrap();
        assert_eq!((copied.written, copied.zeroed), (0, 0));
    }
    let (states, resumed) = (states.load(Ordering::Relaxed), resumed.load(Ordering::Relaxed));
    announce(&format!(
        "merging: {states} crash states checked, gone on from {resumed} of them"
    ));
}

#[test]
fn inv_22_a_difference_is_found_where_there_must_be_none() {
    let mut rng = seeded(0x22, "differences");
    for _ in 0..50 {
        let subject = Subject::random(&mut rng);
        let file = Arc::new(CrashFile::from_bytes(&subject.target));
        let before = file.bytes();
        let result = subject.copy(Arc::clone(&file) as _, 0, CopyMode::Verify, &mut |_| {});
        if subject.target_reads(Arc::clone(&file) as _) == subject.flat {
            result.unwrap();
        } else {
            assert_eq!(result.unwrap_err(), ErrorKind::Changed);
        }
        assert_same(&file.bytes(), &before, "a target that is only looked at");
    }
}

#[test]
fn each_operation_fails_and_the_next_run_finishes() {
    let mut rng = seeded(0xFB, "faults");
    let mut struck = 0;
    for error in [FaultError::EIO, FaultError::ENOSPC] {
        for _ in 0..8 {
            let subject = Subject::random(&mut rng);
            let fault = |n| Fault {
                error,
                ..Fault::nth(n).with_short(700)
            };
            struck += each_operation_fails(fault, |control, n| {
                let crash = CrashFile::from_bytes(&subject.target);
                let file = Arc::new(FaultFile::with_control(crash.clone(), control));
                let mut durable = 0;
                let result = subject.copy(file, 0, CopyMode::Write, &mut |at| durable = at);
                // Zeroes over what reads zero anyway need no space.
                let needs_none = error == FaultError::ENOSPC && result.is_ok();
                assert!(
                    result.is_err() == (control.hits() > 0) || needs_none,
                    "{}, {n}: {result:?}",
                    subject.layout
                );
                if let Err(kind) = result {
                    let wanted = [ErrorKind::Io, ErrorKind::NoSpace][usize::from(error == FaultError::ENOSPC)];
                    assert_eq!(kind, wanted);
                }
                subject.check(Arc::new(crash.clone()), "after a fault");
                subject
                    .copy(Arc::new(crash.clone()), durable, CopyMode::Write, &mut |_| {})
                    .unwrap();
                let reads = subject.target_reads(Arc::new(crash));
                assert_same(&reads, &subject.flat, "after the next run");
            });
        }
    }
    assert!(struck > 100, "{struck}");
    announce(&format!("merging: {struck} operations failed"));
}

/// Every second sector of a block: they go in one write, with what the target has between them, and only if it has all
/// of that itself.
#[test]
fn inv_22_dense_pieces_are_written_with_what_lies_between() {
    const BLOCK: usize = 64 << 10;
    let size = u64_from(4 * BLOCK);
    let mut rng = seeded(0xDE, "dense pieces");
    let below = random_bytes(&mut rng, 4 * BLOCK);
    let mut block = |index, present: fn(usize) -> bool| Stored {
        index,
        present: (0..BLOCK / SECTOR).map(present).collect(),
        data: random_bytes(&mut rng, BLOCK),
    };
    let mut source = Sparse::child(size, BLOCK, id(3), Parent::named(id(2), "1.vhd"));
    source.stored = (0..4).map(|index| block(index, |sector| sector % 2 == 0)).collect();
    // All sectors, those that are not written, all but one of these, no space.
    let mut target = Sparse::child(size, BLOCK, id(2), Parent::named(id(1), "0.vhd"));
    target.stored.push(block(0, |_| true));
    target.stored.push(block(1, |sector| sector % 2 == 1));
    target.stored.push(block(2, |sector| sector != 5));
    let flat = source.flat(&target.flat(&below));
    let file = RecordingFile::new(MemoryFile::from_bytes(target.lay().bytes));
    let writes = file.recorder();
    let image = Image::open(Arc::new(file), &OpenMode::read_write()).unwrap();
    let disk = Disk::new(Arc::new(LayeredDevice::new(
        image,
        vec![parent_layer(fixed(&below, id(1)))],
    )));
    writes.clear();
    let sources = [parent_layer(source.lay().bytes)];
    let copied = copy(&sources, &disk, 0, CopyMode::Write, 1 << 30, &mut |_| {}).unwrap();
    assert_same(&read_all(&disk), &flat, "dense pieces");
    assert_eq!(copied.written, size / 2);
    // The first block in one write, from its first piece to its last; in the others nothing but the pieces. The block
    // without space makes the file grow: a footer.
    let data = u64_from(BLOCK - SECTOR) + 3 * u64_from(BLOCK / 2);
    assert_eq!(writes.bytes(OperationKind::Write), data + u64_from(SECTOR));
}

/// A chain of 200 layers goes into one image in one pass: each sector that is held is copied once, whatever lies
/// below it in other layers.
#[test]
fn two_hundred_layers_are_copied_in_one_pass() {
    const LAYERS: usize = 200;
    const BLOCK: usize = 64 << 10;
    let size = 4 << 20;
    let mut rng = seeded(200, "depth");
    let mut flat = vec![0; size];
    let mut held = vec![false; size / SECTOR];
    let mut bytes_held = 0;
    let mut layers = Vec::new();
    for level in 0..LAYERS {
        let parent = Parent::named(id(level), "parent.vhd");
        let layer = Sparse::child(u64_from(size), BLOCK, id(level + 1), parent).fill_randomly(&mut rng, 30);
        for stored in &layer.stored {
            for sector in (0..BLOCK / SECTOR).filter(|&sector| stored.present[sector]) {
                held[stored.index * BLOCK / SECTOR + sector] = true;
                bytes_held += u64_from(SECTOR);
            }
        }
        flat = layer.flat(&flat);
        layers.insert(0, RecordingFile::new(MemoryFile::from_bytes(layer.lay().bytes)));
    }
    let recorders: Vec<_> = layers.iter().map(RecordingFile::recorder).collect();
    let open = |file| Layer::Vhd(Arc::new(Image::open(Arc::new(file), &OpenMode::ancestor()).unwrap()));
    let sources: Vec<Layer> = layers.into_iter().map(open).collect();
    let target = RecordingFile::new(MemoryFile::from_bytes(Sparse::new(u64_from(size), BLOCK).lay().bytes));
    let writes = target.recorder();
    let image = Image::open(Arc::new(target), &OpenMode::read_write()).unwrap();
    let disk = Disk::new(Arc::new(LayeredDevice::new(image, Vec::new())));
    recorders.iter().for_each(|recorder| recorder.clear());
    let copied = copy(&sources, &disk, 0, CopyMode::Write, 1 << 30, &mut |_| {}).unwrap();
    assert_same(&read_all(&disk), &flat, "200 layers");
    let live = u64_from(held.iter().filter(|held| **held).count() * SECTOR);
    assert_eq!(copied.written + copied.zeroed, live);
    // In the files themselves: bitmaps are read as well, and the few sectors between two pieces.
    let read: u64 = recorders
        .iter()
        .map(|recorder| recorder.bytes(OperationKind::Read))
        .sum();
    let bitmaps = u64_from(LAYERS * (size / BLOCK) * SECTOR);
    assert!(
        copied.read < live * 3 / 2 && read <= copied.read + bitmaps,
        "{read} for {live}"
    );
    let written = writes.bytes(OperationKind::Write);
    assert!(written <= live + (1 << 16), "{written} for {live}");
    announce(&format!(
        "200 layers hold {bytes_held} bytes, {live} of them live: {read} read, {written} written"
    ));
}
