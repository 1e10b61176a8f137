//! Failing files, and what each request costs: errors surface, nothing flushed is lost, a failed sync is the
//! last thing that an image does, and no request makes more system calls than it must.
#![cfg(not(loom))]

mod support;

use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use support::forge::{Forge, damage_copy, damage_tail};
use support::subject::Subject;
use support::view::View;
use vhd_block::ErrorKind;
use vhd_core::device::{BlockDevice, ByteRange, DeviceError, RawDevice, ZeroOptions};
use vhd_core::image::{OpenMode, PublishFence};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::{BlockIndex, usize_from};
use vhd_testkit::OperationKind::{PunchHole, Read, Sync, Write};
use vhd_testkit::bytes::{assert_same, is_zero, pattern};
use vhd_testkit::conformance::read_all;
use vhd_testkit::rng::mix;
use vhd_testkit::{
    CrashFile, CrashLimits, CrashModel, Fault, FaultControl, FaultError, FaultFile, Op, OperationKind, Recorder,
    RecordingFile, Workload, each_operation_fails,
};

const SECTOR: u64 = 512;
const BLOCK: u64 = 4096;

/// What a parent holds: a pattern, every third 6 KiB zero.
fn parent_content(size: usize) -> Vec<u8> {
    let mut bytes = pattern(0, size, 0xFFF);
    bytes.chunks_mut(6 << 10).step_by(3).for_each(|part| part.fill(0));
    bytes
}

fn dynamic() -> Subject {
    Subject::new("dynamic", &Forge::dynamic(10 * BLOCK, 4096))
}

fn differencing() -> Subject {
    Subject::new("differencing", &Forge::differencing(10 * BLOCK, 4096)).over_raw(parent_content(40 << 10))
}

fn fixed() -> Subject {
    Subject::new("fixed", &Forge::fixed(10 * BLOCK))
}

/// A disk over a file that can be made to fail; the record is of what reached the file.
struct Bench {
    device: View,
    file: CrashFile,
    faults: FaultControl,
    recorder: Recorder,
}

impl Bench {
    fn new(subject: &Subject) -> Self {
        Self::with_mode(subject, &OpenMode::read_write())
    }

    fn with_mode(subject: &Subject, mode: &OpenMode) -> Self {
        Self::open(
            subject,
            CrashFile::from_bytes(&subject.file),
            FaultControl::default(),
            mode,
        )
    }

    fn open(subject: &Subject, file: CrashFile, faults: FaultControl, mode: &OpenMode) -> Self {
        let recording = RecordingFile::new(file.clone());
        let recorder = recording.recorder();
        Self {
            device: subject.open(FaultFile::with_control(recording, &faults), mode),
            file,
            faults,
            recorder,
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        self.device.write_vectored_at(&[IoSlice::new(bytes)], offset, false)
    }

    fn read(&self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0xAA; usize_from(len)];
        let read = self.device.read_vectored_at(&mut [IoSliceMut::new(&mut bytes)], offset);
        read.expect("reads go on");
        bytes
    }

    /// The kinds of changes since the last call.
    fn changes(&self) -> Vec<OperationKind> {
        let changes = self.recorder.changes();
        self.recorder.clear();
        changes
    }
}

/// Nothing that is tried on `device`, its end included, changes its file any more.
fn assert_poisoned(bench: Bench) {
    let Bench {
        device,
        file,
        faults,
        recorder,
    } = bench;
    faults.heal();
    recorder.clear();
    let range = ByteRange::new(0, BLOCK);
    let content = pattern(0, 512, 77);
    let mut refused = vec![
        device.flush(),
        device.discard(range),
        device.write_zeroes(range, ZeroOptions::default()),
    ];
    for block in 0..10 {
        refused.push(device.write_vectored_at(&[IoSlice::new(&content)], block * BLOCK, block % 2 == 0));
    }
    for result in refused {
        assert!(
            !matches!(&result, Err(error) if error.kind() != ErrorKind::Poisoned),
            "{result:?}"
        );
    }
    assert!(matches!(device.flush(), Err(DeviceError::Poisoned)));
    let _ = read_all(&device);
    let before = file.operations();
    assert!(matches!(device.close(), Err(DeviceError::Poisoned)));
    assert_eq!((recorder.changes(), file.operations()), (vec![], before), "INV-05");
}

/// INV-05, for each of the operations of a flush in turn.
#[test]
fn inv_05_nothing_follows_a_failed_sync() {
    for subject in [dynamic(), differencing()] {
        for failing in 0.. {
            let bench = Bench::new(&subject);
            bench.write(0, &pattern(0, 512, 1)).unwrap();
            bench.device.flush().unwrap();
            // A new block, and a bit of a published one.
            bench.write(2 * BLOCK, &pattern(2 * BLOCK, 512, 2)).unwrap();
            bench.write(1024, &pattern(1024, 512, 3)).unwrap();
            let until_here = bench.file.operations();
            bench.faults.inject(Fault {
                kinds: vec![Sync],
                ..Fault::nth(failing)
            });
            let flushed = bench.device.flush();
            if bench.faults.hits() == 0 {
                assert_eq!(failing, 2, "a flush with something to publish has two syncs");
                flushed.unwrap();
                break;
            }
            assert_eq!(flushed.unwrap_err().kind(), ErrorKind::Io);
            if failing == 0 {
                let staged = bench.file.operations() - until_here;
                assert_eq!(
                    staged, 1,
                    "only the bitmap of the new block was written before the failed sync"
                );
            }
            assert_poisoned(bench);
        }
    }
}

/// The write of a table entry or of a bit that fails leaves the file's metadata unknown.
#[test]
fn inv_05_nothing_follows_a_failed_publish() {
    let subject = differencing();
    for failing in 1..4 {
        let bench = Bench::new(&subject);
        bench.write(0, &pattern(0, 512, 1)).unwrap();
        bench.device.flush().unwrap();
        bench.write(2 * BLOCK, &pattern(2 * BLOCK, 512, 2)).unwrap();
        bench.write(1024, &pattern(1024, 512, 3)).unwrap();
        // Write 0 is the bitmap of the new block: that one may be tried again.
        bench.faults.inject(Fault {
            kinds: vec![Write],
            ..Fault::nth(failing)
        });
        match bench.device.flush() {
            Ok(()) => assert_eq!((failing, bench.faults.hits()), (3, 0)),
            Err(_) => assert_poisoned(bench),
        }
    }
}

/// A fixed image has no metadata to publish, but its failed sync may have dropped data: a later flush that
/// succeeds must not say that everything is durable.
#[test]
fn inv_05_fixed_and_raw_disks_too() {
    let bench = Bench::new(&fixed());
    bench.write(0, &pattern(0, 512, 1)).unwrap();
    bench.faults.inject(Fault {
        kinds: vec![Sync],
        ..Fault::nth(0)
    });
    assert_eq!(bench.device.flush().unwrap_err().kind(), ErrorKind::Io);
    assert_poisoned(bench);

    let faulty = FaultFile::new(CrashFile::from_bytes(&[0; 4096]));
    let control = faulty.control();
    let raw = RawDevice::new(Arc::new(faulty), true).unwrap();
    control.inject(Fault {
        kinds: vec![Sync],
        ..Fault::nth(0)
    });
    assert_eq!(raw.flush().unwrap_err().kind(), ErrorKind::Io);
    let content = pattern(0, 512, 1);
    for result in [raw.flush(), raw.write_vectored_at(&[IoSlice::new(&content)], 0, false)] {
        assert!(matches!(result, Err(DeviceError::Poisoned)), "{result:?}");
    }
}

/// Every change of a random script fails once: errors surface; what goes on keeps every promise; whatever
/// crash comes then, the image opens with what was flushed.
fn each_fault_is_survived(make_fault: impl Fn(u64) -> Fault, seed: u64) {
    for subject in [dynamic(), differencing()] {
        let struck = each_operation_fails(&make_fault, |control, n| {
            let (file, mut model) = (CrashFile::from_bytes(&subject.file), subject.model());
            let open = || Bench::open(&subject, file.clone(), control.clone(), &OpenMode::read_write());
            let mut bench = open();
            for op in Workload::new(seed, subject.geometry()).take(40) {
                let begun = op.begin(&mut model);
                let hits = control.hits();
                let result = if op == Op::Reopen {
                    let closed = bench.device.close();
                    bench = open();
                    closed
                } else {
                    op.run(&bench.device)
                };
                match result {
                    Ok(()) => op.end(&mut model, begun),
                    Err(error) => {
                        assert_eq!(hits + 1, control.hits(), "an error without a fault at {n}: {error:?}");
                        let poisoned = bench.device.flush().is_err();
                        failed(&op, &mut model, &read_all(&bench.device));
                        crashes(&subject, &file, &model, mix(seed, n));
                        if poisoned {
                            assert_poisoned(bench);
                            return;
                        }
                    }
                }
                model
                    .check_now(&read_all(&bench.device))
                    .unwrap_or_else(|violation| panic!("{n}: {violation}"));
            }
            bench
                .device
                .close()
                .map_or_else(|_| assert_eq!(control.hits(), 1), |()| model.flushed());
            crashes(&subject, &file, &model, mix(seed, n));
        });
        assert!(struck >= 60, "{}: {struck}", subject.name);
    }
}

/// An operation that failed did any part of what it was to do: its sectors are what they are now.
fn failed(op: &Op, model: &mut CrashModel, now: &[u8]) {
    model.check(now).unwrap();
    if *op == Op::Reopen {
        // The image was dropped, with what it had not published.
        model.write(0, now);
    }
    if let Op::Write { offset, len, .. } | Op::FuaWrite { offset, len, .. } | Op::WriteZeroes { offset, len, .. } = *op
    {
        model.write(offset, &now[usize_from(offset)..usize_from(offset + len)]);
    }
}

/// Every crash state of this moment opens and holds what it must.
fn crashes(subject: &Subject, file: &CrashFile, model: &CrashModel, seed: u64) {
    let limits = CrashLimits {
        exhaustive_bits: 4,
        random: 4,
        seed,
        newest_only: false,
    };
    for state in file.crash_states(&limits) {
        let file = state.file();
        subject.check_footers(&file);
        subject.check_crashed(&file);
        let found = read_all(&subject.open(file, &OpenMode::read_write()));
        model
            .check(&found)
            .unwrap_or_else(|violation| panic!("{}: {violation}\n{state}", subject.name));
    }
}

#[test]
fn each_change_fails_with_an_io_error() {
    each_fault_is_survived(Fault::nth, 1);
}

#[test]
fn each_change_fails_for_lack_of_space() {
    each_fault_is_survived(|n| Fault::nth(n).with_error(FaultError::ENOSPC), 2);
}

#[test]
fn each_write_is_short() {
    for short in [512, 1536] {
        each_fault_is_survived(|n| Fault::nth(n).with_short(short), 3);
    }
}

/// A failed first write of a block gives its space back, and whoever gets that finds it zero (INV-04).
#[test]
fn inv_04_space_of_a_failed_write_is_zeroed_and_used_again() {
    for subject in [dynamic(), differencing()] {
        let bench = Bench::new(&subject);
        bench.write(0, &pattern(0, 512, 1)).unwrap();
        let before = bench.read(2 * BLOCK, BLOCK);
        bench
            .faults
            .inject(Fault::nth(0).with_error(FaultError::ENOSPC).with_short(2048));
        let error = bench.write(2 * BLOCK, &pattern(2 * BLOCK, 4096, 2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert_same(
            &bench.read(2 * BLOCK, BLOCK),
            &before,
            "a block whose first write failed",
        );
        bench.faults.heal();
        bench.changes();
        // The last sector of another block: the garbage lies in its first ones.
        bench
            .write(6 * BLOCK - SECTOR, &pattern(6 * BLOCK - SECTOR, 512, 3))
            .unwrap();
        assert_eq!(
            bench.changes(),
            [PunchHole, Write],
            "the space is cleared and used again"
        );
        bench
            .device
            .write_zeroes(ByteRange::new(5 * BLOCK, 1024), ZeroOptions::default())
            .unwrap();
        assert!(is_zero(&bench.read(5 * BLOCK, 1024)), "new space reads zero");
        if subject.name == "dynamic" {
            assert!(is_zero(&bench.read(5 * BLOCK, BLOCK - SECTOR)), "new space reads zero");
        }
        let now = read_all(&bench.device);
        bench.device.close().unwrap();
        let length = bench.file.len().unwrap();
        assert!(
            length < 7 * 8192,
            "three blocks at most are in a file of {length:#x} bytes"
        );
        assert_same(
            &read_all(&subject.open(bench.file, &OpenMode::read_only())),
            &now,
            "after a close",
        );
    }
}

/// A flush that finds no room for a bitmap loses nothing: with room again, the next one succeeds.
#[test]
fn a_flush_without_space_is_repeated() {
    let subject = differencing();
    for failing in 0..3 {
        let bench = Bench::new(&subject);
        bench.write(0, &pattern(0, 512, 1)).unwrap();
        bench.device.flush().unwrap();
        for block in [2, 3, 4] {
            bench.write(block * BLOCK, &pattern(block * BLOCK, 512, 2)).unwrap();
        }
        bench.write(1024, &pattern(1024, 512, 3)).unwrap();
        let now = read_all(&bench.device);
        bench.faults.inject(Fault {
            times: 2,
            ..Fault::nth(failing).with_error(FaultError::ENOSPC)
        });
        while let Err(error) = bench.device.flush() {
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            assert_same(&read_all(&bench.device), &now, "after a flush without space");
        }
        assert_eq!(bench.faults.hits(), 2);
        let survivor = subject.open(bench.file.snapshot().durable(), &OpenMode::read_write());
        assert_same(&read_all(&survivor), &now, "what was flushed at last");
    }
}

/// The first flush that fails after the file has grown leaves the former footer; a later one still clears it.
#[test]
fn a_former_footer_is_cleared_by_the_flush_that_succeeds() {
    let subject = dynamic();
    let former = subject.file.len() - 512;
    let bench = Bench::new(&subject);
    bench.write(0, &pattern(0, 512, 1)).unwrap();
    bench.faults.inject(Fault::nth(0).with_error(FaultError::ENOSPC));
    bench.device.flush().unwrap_err();
    assert_eq!(&bench.file.bytes()[former..former + 8], b"conectix");
    bench.device.flush().unwrap();
    assert!(is_zero(&bench.file.bytes()[former..former + 512]));
}

/// A file system that fills up, at every number of bytes: the writes that were accepted are there.
#[test]
fn a_file_system_that_fills_up() {
    for subject in [dynamic(), differencing()] {
        for room in (0..40).map(|step| step * 512) {
            let bench = Bench::new(&subject);
            let mut model = subject.model();
            bench.faults.limit_bytes(room);
            for op in Workload::new(9, subject.geometry())
                .filter(|op| *op != Op::Reopen)
                .take(25)
            {
                let begun = op.begin(&mut model);
                match op.run(&bench.device) {
                    Ok(()) => op.end(&mut model, begun),
                    // The limit counts overwrites too: it may have struck a publish.
                    Err(DeviceError::Poisoned) => break,
                    Err(_) => failed(&op, &mut model, &read_all(&bench.device)),
                }
            }
            crashes(&subject, &bench.file, &model, room);
            bench.faults.heal();
            if bench.device.flush().is_ok() {
                model.flushed();
            }
            crashes(&subject, &bench.file, &model, room);
        }
    }
}

#[test]
fn what_writes_cost() {
    for subject in [dynamic(), differencing()] {
        let bench = Bench::new(&subject);
        bench.changes();
        bench.write(0, &pattern(0, 512, 1)).unwrap();
        assert_eq!(
            bench.changes(),
            [Write, Write],
            "the first block: the footer behind a chunk, and the payload"
        );
        bench.recorder.clear();
        bench.write(BLOCK, &pattern(BLOCK, 1024, 2)).unwrap();
        assert_eq!(bench.recorder.operations().len(), 1, "a new block costs its payload");
        bench.changes();
        bench.write(BLOCK, &pattern(BLOCK, 1024, 3)).unwrap();
        assert_eq!(bench.recorder.operations().len(), 1, "an overwrite is one write");
        bench.changes();
        bench.write(BLOCK + 1024, &pattern(BLOCK, 512, 3)).unwrap();
        assert_eq!(bench.recorder.operations().len(), 1, "more of a block is one write");
        bench.changes();
        let bytes = pattern(3 * BLOCK, 4096, 4);
        let bufs: Vec<_> = bytes.chunks(100).map(IoSlice::new).collect();
        bench.device.write_vectored_at(&bufs, 3 * BLOCK, false).unwrap();
        assert_eq!(bench.changes(), [Write], "many buffers are one write");
        bench.write(4 * BLOCK - 512, &pattern(0, 1024, 5)).unwrap();
        assert_eq!(bench.changes(), [Write, Write], "one write for each block");
        bench.device.flush().unwrap();
        bench.changes();
        bench.write(0, &pattern(0, 512, 6)).unwrap();
        assert_eq!(bench.changes(), [Write], "an overwrite of a published block");
        bench.device.flush().unwrap();
        assert_eq!(bench.changes(), [Sync], "data alone needs one sync");
    }
}

#[test]
fn what_flushes_cost() {
    let subject = Subject::new("400 blocks", &Forge::differencing(400 * SECTOR, 512)).over_raw(parent_content(204_800));
    let bench = Bench::new(&subject);
    bench.changes();
    bench.device.flush().unwrap();
    assert_eq!(bench.changes(), [Sync], "nothing pending");
    bench.write(0, &pattern(0, 512, 1)).unwrap();
    bench.device.flush().unwrap();
    bench.changes();
    // Seven blocks in neighbouring sectors of the table, one in another.
    for block in [1, 2, 3, 4, 130, 131, 132] {
        bench.write(block * SECTOR, &pattern(block * SECTOR, 512, 1)).unwrap();
    }
    bench.changes();
    bench.device.flush().unwrap();
    assert_eq!(
        bench.changes(),
        [vec![Write; 7], vec![Sync, Write, Sync]].concat(),
        "seven bitmaps; two table sectors in one write"
    );
    bench.write(10 * SECTOR, &pattern(10 * SECTOR, 512, 1)).unwrap();
    bench.write(390 * SECTOR, &pattern(390 * SECTOR, 512, 1)).unwrap();
    bench.changes();
    bench.device.flush().unwrap();
    assert_eq!(
        bench.changes(),
        [Write, Write, Sync, Write, Write, Sync],
        "two bitmaps; two table sectors apart"
    );
}

#[test]
fn what_bits_and_fua_cost() {
    let bench = Bench::new(&differencing());
    bench.write(0, &pattern(0, 512, 1)).unwrap();
    bench.device.flush().unwrap();
    bench.write(512, &pattern(512, 512, 2)).unwrap();
    bench.write(2048, &pattern(2048, 512, 3)).unwrap();
    bench.changes();
    bench.device.flush().unwrap();
    assert_eq!(bench.changes(), [Sync, Write, Sync], "one bitmap after the data");
    let fua = |offset, generation| {
        let bytes = pattern(offset, 512, generation);
        bench
            .device
            .write_vectored_at(&[IoSlice::new(&bytes)], offset, true)
            .unwrap();
        bench.changes()
    };
    assert_eq!(fua(0, 4), [Write, Sync]);
    assert_eq!(fua(1024, 5), [Write, Sync, Write, Sync], "a new bit");
    assert_eq!(fua(3 * BLOCK, 6), [Write, Write, Sync, Write, Sync], "a new block");
}

#[test]
fn reads_change_nothing() {
    for subject in [dynamic(), differencing(), fixed()] {
        let bench = Bench::new(&subject);
        bench.write(512, &pattern(512, 1024, 1)).unwrap();
        bench.device.flush().unwrap();
        bench.changes();
        let _ = read_all(&bench.device);
        bench
            .device
            .extents(
                ByteRange::new(0, 40 << 10),
                &mut |_| std::ops::ControlFlow::Continue(()),
            )
            .unwrap();
        assert_eq!(bench.changes(), []);
    }
}

/// A full block is read with one request and without its bitmap.
#[test]
fn what_reads_cost() {
    let bench = Bench::new(&dynamic());
    bench.write(0, &pattern(0, 8192, 1)).unwrap();
    bench.recorder.clear();
    bench.read(512, 1024);
    assert_eq!(bench.recorder.operations().len(), 1);
    bench.recorder.clear();
    bench.read(8 * BLOCK, 1024);
    assert_eq!(bench.recorder.count(Read), 0, "what no layer has is not read");
}

/// An image that is opened for reading is never changed, damaged or not, whatever is tried.
#[test]
fn read_only_changes_nothing() {
    let forge = Forge::dynamic(10 * BLOCK, 4096).with_block(BlockIndex(2), |_| true, &pattern(2 * BLOCK, 4096, 1));
    for file in [
        forge.build(),
        damage_tail(forge.build()),
        damage_copy(forge.build()),
        damage_copy(forge.build_legacy()),
        forge.build_truncated(),
        forge.build_with_copy(|copy| copy.current_size -= BLOCK),
    ] {
        let subject = Subject::new("read-only", &forge).with_file(file);
        let bench = Bench::with_mode(&subject, &OpenMode::read_only());
        let _ = read_all(&bench.device);
        bench.device.flush().unwrap();
        assert!(matches!(bench.write(0, &[0; 512]), Err(DeviceError::ReadOnly)));
        let Bench { device, recorder, .. } = bench;
        device.close().unwrap();
        assert_eq!(recorder.changes(), []);
    }
}

/// A lease that can be taken away.
#[derive(Default)]
struct Lease {
    lost: AtomicBool,
}

impl PublishFence for Lease {
    fn check(&self) -> Result<(), String> {
        if self.lost.load(Ordering::Relaxed) {
            Err("epoch 7 was fenced off".to_owned())
        } else {
            Ok(())
        }
    }
}

fn leased(subject: &Subject) -> (Bench, Arc<Lease>) {
    let lease = Arc::new(Lease::default());
    let mode = OpenMode::read_write().with_fence(Arc::clone(&lease) as Arc<dyn PublishFence>);
    (Bench::with_mode(subject, &mode), lease)
}

#[test]
fn inv_06_nothing_is_published_without_the_lease() {
    for subject in [dynamic(), differencing()] {
        let (bench, lease) = leased(&subject);
        bench.write(0, &pattern(0, 512, 1)).unwrap();
        bench.device.flush().unwrap();
        let published = read_all(&bench.device);
        bench.write(2 * BLOCK, &pattern(2 * BLOCK, 512, 2)).unwrap();
        bench.write(1024, &pattern(1024, 512, 3)).unwrap();
        bench.changes();
        lease.lost.store(true, Ordering::Relaxed);
        match bench.device.flush() {
            Err(DeviceError::FenceLost { reason }) => assert_eq!(reason, "epoch 7 was fenced off"),
            other => panic!("{other:?}"),
        }
        assert_eq!(
            bench.changes(),
            [Write, Sync],
            "the bitmap of a block that no one knows"
        );
        let mut now = read_all(&subject.open(bench.file.snapshot().current(), &OpenMode::read_only()));
        if subject.name == "dynamic" {
            // Written in place in a block that is full.
            now[1024..1536].fill(0);
        }
        assert_same(&now, &published, "what others see");
        assert_poisoned(bench);
    }
}

/// The end of the file may be the next owner's: a close without the lease does not cut it off.
#[test]
fn inv_06_nothing_is_cut_off_without_the_lease() {
    let (bench, lease) = leased(&dynamic());
    bench.write(0, &pattern(0, 512, 1)).unwrap();
    bench.device.flush().unwrap();
    let Bench {
        device, file, recorder, ..
    } = bench;
    let length = file.len().unwrap();
    recorder.clear();
    lease.lost.store(true, Ordering::Relaxed);
    assert!(matches!(device.close(), Err(DeviceError::FenceLost { .. })));
    assert_eq!((recorder.changes(), file.len().unwrap()), (vec![Sync], length));
}

/// Past what a table entry can address no block fits: the write is refused, and all else goes on.
#[test]
fn an_image_that_is_full() {
    /// The highest place of a bitmap.
    const LAST: u64 = 0xFFFF_FFFE * SECTOR;
    let forge = Forge::dynamic(10 * BLOCK, 4096);
    let subject = Subject::new("almost full", &forge);
    let file = MemoryFile::from_bytes(forge.build_truncated());
    // Room for two blocks: each takes 8 KiB here.
    file.write_all_at(&forge.footer().encode(), LAST - 3 * 8192).unwrap();
    let file = Arc::new(file);
    let open = || subject.try_open(file.clone(), &OpenMode::read_write()).unwrap();
    let device = open();
    let mut model = subject.model();
    let mut refused = 0;
    for block in 0..10 {
        let content = pattern(block * BLOCK, 512, 1);
        match device.write_vectored_at(&[IoSlice::new(&content)], block * BLOCK, block % 2 == 0) {
            Ok(()) => model.write(block * BLOCK, &content),
            Err(DeviceError::ImageFull { offset }) => {
                assert!(offset > LAST, "{offset:#x}");
                refused += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!((7..10).contains(&refused), "{refused} blocks were refused");
    model.check_now(&read_all(&device)).unwrap();
    device.close().unwrap();
    subject.check_opened(&*file);
    model.check_now(&read_all(&open())).unwrap();
}

/// What a file system without holes gets instead, and what it costs nothing to promise.
#[test]
fn new_blocks_need_no_zeroes() {
    let file = RecordingFile::new(MemoryFile::from_bytes(dynamic().file));
    let recorder = file.recorder();
    let device = dynamic().open(file, &OpenMode::read_write());
    recorder.clear();
    let may_unmap = ZeroOptions {
        may_unmap: true,
        ..ZeroOptions::default()
    };
    device.write_zeroes(ByteRange::new(0, 10 * BLOCK), may_unmap).unwrap();
    assert_eq!(
        recorder.changes(),
        [],
        "absent blocks of a dynamic image read zero as they are"
    );
    // Zeroes that are to keep their space need some.
    let kept = ByteRange::new(6 * BLOCK + 512, 1024);
    device.write_zeroes(kept, ZeroOptions::default()).unwrap();
    assert_ne!(recorder.changes(), []);
    let mut read = vec![1; 1024];
    device.read_at(&mut read, kept.start).unwrap();
    assert_eq!(read, [0; 1024]);
}
