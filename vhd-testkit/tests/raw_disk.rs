//! All tools together on the simplest disk: the bytes of a file. A pattern for tests of real ones.

use std::io::{IoSlice, IoSliceMut};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use vhd_core::device::{
    BlockDevice, ByteRange, Capabilities, DeviceError, DeviceInfo, Extent, ExtentKind, ExtentVisitor, ZeroOptions,
};
use vhd_core::storage::StorageFile;
use vhd_testkit::conformance::read_all;
use vhd_testkit::{
    Conformance, CrashFile, CrashLimits, CrashModel, CrashSnapshot, Fault, FaultFile, Geometry, OperationKind,
    RecordingFile, Workload, each_operation_fails,
};

const SIZE: u64 = 16 << 10;
const GEOMETRY: Geometry = Geometry::new(SIZE, 2048);

/// What a raw disk may do wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    FlushDoesNothing,
    FuaIsIgnored,
}

/// A disk that is the bytes of its file.
struct RawDisk {
    file: Box<dyn StorageFile>,
    info: DeviceInfo,
    size: u64,
    bug: Bug,
}

fn failed(operation: &'static str, offset: u64) -> impl Fn(std::io::Error) -> DeviceError {
    move |source| DeviceError::Io {
        operation,
        offset,
        source,
    }
}

impl RawDisk {
    fn open(file: impl StorageFile + 'static, bug: Bug) -> Result<Self, DeviceError> {
        let size = file.len().map_err(failed("measure", 0))?;
        let mut info = DeviceInfo::new(Some([1; 16]), 4096, Capabilities::of_disk(true));
        info.physical_block_size = 512;
        info.maximum_transfer = 1 << 20;
        Ok(Self {
            file: Box::new(file),
            info,
            size,
            bug,
        })
    }

    fn check(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        if !(offset | len).is_multiple_of(512) {
            return Err(DeviceError::Misaligned {
                offset,
                len,
                block: 512,
            });
        }
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.size);
        if inside {
            Ok(())
        } else {
            Err(DeviceError::OutOfRange {
                offset,
                len,
                size: self.size,
            })
        }
    }

    fn durable(&self, fua: bool) -> Result<(), DeviceError> {
        if fua && self.bug != Bug::FuaIsIgnored {
            self.file.sync().map_err(failed("sync", 0))
        } else {
            Ok(())
        }
    }
}

impl BlockDevice for RawDisk {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> Result<(), DeviceError> {
        self.check(offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        self.file
            .read_exact_vectored_at(bufs, offset)
            .map_err(failed("read", offset))
    }

    fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64, fua: bool) -> Result<(), DeviceError> {
        self.check(offset, bufs.iter().map(|buf| buf.len() as u64).sum())?;
        self.file
            .write_all_vectored_at(bufs, offset)
            .map_err(failed("write", offset))?;
        self.durable(fua)
    }

    fn flush(&self) -> Result<(), DeviceError> {
        self.durable(self.bug != Bug::FlushDoesNothing)
    }

    fn write_zeroes(&self, range: ByteRange, options: ZeroOptions) -> Result<(), DeviceError> {
        self.check(range.start, range.len)?;
        self.file
            .zero_range(range.start, range.len)
            .map_err(failed("zero", range.start))?;
        self.durable(options.fua)
    }

    fn discard(&self, range: ByteRange) -> Result<(), DeviceError> {
        self.check(range.start, range.len)?;
        self.file
            .punch_hole(range.start, range.len)
            .map_err(failed("punch", range.start))
    }

    fn extents(&self, range: ByteRange, visitor: ExtentVisitor<'_>) -> Result<(), DeviceError> {
        self.check(range.start, range.len)?;
        if range.len > 0 {
            let extent = Extent {
                range,
                kind: ExtentKind::Data,
                depth: 0,
                file_offset: Some(range.start),
            };
            let _: ControlFlow<()> = visitor(extent);
        }
        Ok(())
    }

    fn resize(&self, _size: u64) -> Result<(), DeviceError> {
        Err(DeviceError::Unsupported("be resized"))
    }
}

/// Checks every crash state at every operation of a file while a workload runs on the disk in it.
fn crash_at_every_step(seed: u64, bug: Bug) -> usize {
    let model = Arc::new(Mutex::new(CrashModel::new(SIZE)));
    let states = Arc::new(Mutex::new(0));
    let check = {
        let (model, states, limits) = (Arc::clone(&model), Arc::clone(&states), limits(seed));
        move |snapshot: &CrashSnapshot| {
            for state in snapshot.crash_states(&limits) {
                let disk = RawDisk::open(state.file(), Bug::None).expect("a disk after a crash");
                let checked = model.lock().unwrap().check(&read_all(&disk));
                checked.unwrap_or_else(|violation| panic!("seed {seed:#x}: {violation}\n{state}"));
                *states.lock().unwrap() += 1;
            }
        }
    };
    let file = CrashFile::from_bytes(&[0; SIZE as usize]).with_observer(Box::new(check.clone()));
    let disk = RawDisk::open(file.clone(), bug).unwrap();
    for op in Workload::new(seed, GEOMETRY).take(40) {
        let begun = op.begin(&mut model.lock().unwrap());
        op.run(&disk).unwrap();
        op.end(&mut model.lock().unwrap(), begun);
        // What is promised got stricter here without a change of the file.
        check(&file.snapshot());
        model.lock().unwrap().check_now(&read_all(&disk)).unwrap();
    }
    *states.lock().unwrap()
}

fn limits(seed: u64) -> CrashLimits {
    CrashLimits {
        exhaustive_bits: 6,
        random: 20,
        seed,
        newest_only: false,
    }
}

#[test]
fn a_raw_disk_keeps_what_it_promised() {
    let states: usize = (0..20).map(|seed| crash_at_every_step(seed, Bug::None)).sum();
    assert!(states > 10_000, "only {states} states");
}

#[test]
fn broken_promises_are_caught() {
    for bug in [Bug::FlushDoesNothing, Bug::FuaIsIgnored] {
        let caught = (0..5).any(|seed| catch_unwind(AssertUnwindSafe(|| crash_at_every_step(seed, bug))).is_err());
        assert!(caught, "{bug:?} was not caught");
    }
}

#[test]
fn a_raw_disk_conforms() {
    let options = Conformance {
        size: 512 << 10,
        steps: 60,
        ..Conformance::default()
    };
    options.run(&|_, content| Arc::new(RawDisk::open(CrashFile::from_bytes(content), Bug::None).unwrap()));
}

#[test]
fn faults_surface_and_leave_what_the_model_allows() {
    let struck = each_operation_fails(Fault::nth, |control, n| {
        let (content, mut model) = (CrashFile::from_bytes(&[0; SIZE as usize]), CrashModel::new(SIZE));
        let disk = RawDisk::open(FaultFile::with_control(content.clone(), control), Bug::None).unwrap();
        for op in Workload::new(3, GEOMETRY).take(30) {
            let begun = op.begin(&mut model);
            if op.run(&disk).is_err() {
                assert_eq!(control.hits(), 1, "an error without a fault, n = {n}");
                model.check(&content.bytes()).unwrap();
                return;
            }
            op.end(&mut model, begun);
        }
        assert_eq!(control.hits(), 0, "fault {n} was swallowed");
    });
    assert!(struck >= 30, "{struck}");
}

#[test]
fn a_flush_is_one_sync() {
    let file = RecordingFile::new(CrashFile::from_bytes(&[0; SIZE as usize]));
    let recorder = file.recorder();
    let disk = RawDisk::open(file, Bug::None).unwrap();
    recorder.clear();
    disk.flush().unwrap();
    assert_eq!(recorder.changes(), [OperationKind::Sync]);
}
