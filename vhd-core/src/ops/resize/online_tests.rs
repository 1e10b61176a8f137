//! What becomes of a disk whose resize fails in each of its steps.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;

use super::*;
use crate::device::{Disk, RawDevice};
use crate::ops::resize::subject::Job;
use crate::storage::{MemoryFile, StorageFile};

const SIZE: u64 = 64 << 10;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Nothing,
    Prepare,
    Job { sync_failed: bool },
    Reopen,
    Panic,
}

/// A raw disk in memory.
struct Scripted {
    file: Arc<MemoryFile>,
    trouble: Mutex<Trouble>,
}

fn error() -> ResizeError {
    ResizeError::Device(DeviceError::Unsupported("do what the test forbids"))
}

impl Subject for Arc<Scripted> {
    fn open(&self, write: bool) -> Result<OpenedDisk, ResizeError> {
        if *self.trouble.lock().unwrap() == Trouble::Reopen {
            return Err(error());
        }
        let device = RawDevice::new(Arc::clone(&self.file) as _, write).unwrap();
        Ok(OpenedDisk::from_device(Arc::new(device), "memory"))
    }

    fn prepare(&self, size: u64) -> Result<Job<'_>, ResizeError> {
        let trouble = *self.trouble.lock().unwrap();
        match trouble {
            Trouble::Prepare => Err(error()),
            Trouble::Job { sync_failed } => Ok(Box::new(move || {
                Err(Failed {
                    error: error(),
                    sync_failed,
                })
            })),
            Trouble::Panic => Ok(Box::new(|| panic!("a job that panics"))),
            Trouble::Nothing | Trouble::Reopen => Ok(Box::new(move || {
                self.file.set_len(size).unwrap();
                Ok(())
            })),
        }
    }
}

/// A disk of ones, and what is to go wrong with it.
fn disk() -> (Disk, Arc<ResizableDisk>, Arc<Scripted>) {
    let subject = Arc::new(Scripted {
        file: Arc::new(MemoryFile::from_bytes(vec![1; 64 << 10])),
        trouble: Mutex::new(Trouble::Nothing),
    });
    let opened = subject.open(true).unwrap();
    let device = Arc::new(ResizableDisk::new(Box::new(Arc::clone(&subject)), opened));
    (Disk::new(Arc::clone(&device) as _), device, subject)
}

fn reads(disk: &Disk) -> Result<(), DeviceError> {
    let mut bytes = [0; 512];
    disk.read_at(&mut bytes, SIZE - 512)?;
    assert_eq!(bytes, [1; 512]);
    disk.extents(ByteRange::new(0, SIZE), &mut |_| ControlFlow::Continue(()))
}

/// Every request that changes the disk, or says that changes are durable.
fn changes(disk: &Disk) -> Vec<Result<(), DeviceError>> {
    let range = ByteRange::new(512, 512);
    vec![
        disk.write_at(&[1; 512], 0),
        disk.flush(),
        disk.write_zeroes(range, ZeroOptions::default()),
        disk.discard(range),
        disk.write_at(&[1; 512], 512),
    ]
}

fn set(subject: &Scripted, trouble: Trouble) {
    *subject.trouble.lock().unwrap() = trouble;
}

#[test]
fn after_a_resize_that_failed_the_disk_goes_on() {
    let (disk, device, subject) = disk();
    assert!(disk.info().capabilities.resize);
    for trouble in [Trouble::Prepare, Trouble::Job { sync_failed: false }] {
        set(&subject, trouble);
        let refused = disk.resize(2 * SIZE).unwrap_err();
        assert!(matches!(refused, DeviceError::NotResized { .. }), "{refused:?}");
        assert_eq!(
            (ErrorKind::from(refused.kind()), disk.size()),
            (ErrorKind::Unsupported, SIZE)
        );
        reads(&disk).unwrap();
        changes(&disk).into_iter().collect::<Result<(), _>>().unwrap();
    }
    set(&subject, Trouble::Nothing);
    disk.resize(2 * SIZE).unwrap();
    assert_eq!(disk.size(), 2 * SIZE);
    disk.write_at(&[7; 512], 2 * SIZE - 512).unwrap();
    device.close().unwrap();
    assert!(matches!(reads(&disk), Err(DeviceError::Gone { .. })));
}

#[test]
fn inv_32_after_a_failed_sync_nothing_is_written() {
    let (disk, device, subject) = disk();
    set(&subject, Trouble::Job { sync_failed: true });
    disk.resize(2 * SIZE).unwrap_err();
    assert_eq!(disk.size(), SIZE);
    reads(&disk).unwrap();
    set(&subject, Trouble::Nothing);
    let refused = changes(&disk)
        .into_iter()
        .chain([disk.resize(SIZE * 2), device.close()]);
    for result in refused {
        assert!(matches!(result, Err(DeviceError::Poisoned)), "{result:?}");
    }
}

#[test]
fn inv_32_a_disk_that_cannot_be_opened_again_serves_nothing() {
    for trouble in [Trouble::Reopen, Trouble::Panic] {
        let (disk, _, subject) = disk();
        set(&subject, trouble);
        let resized = catch_unwind(AssertUnwindSafe(|| disk.resize(2 * SIZE)));
        assert_eq!(resized.is_err(), trouble == Trouble::Panic);
        set(&subject, Trouble::Nothing);
        let all = changes(&disk).into_iter().chain([reads(&disk), disk.resize(SIZE * 2)]);
        for result in all {
            assert!(matches!(result, Err(DeviceError::Gone { .. })), "{result:?}");
        }
        assert_eq!(disk.size(), SIZE);
    }
}

#[test]
fn inv_31_a_visitor_of_extents_may_wait_for_a_resize() {
    let (disk, ..) = disk();
    let mut visited = 0;
    disk.extents(ByteRange::new(0, SIZE), &mut |extent| {
        visited += extent.range.len;
        thread::scope(|scope| {
            let resized = scope.spawn(|| disk.resize(2 * SIZE)).join();
            resized.unwrap().unwrap();
        });
        reads(&disk).unwrap();
        ControlFlow::Continue(())
    })
    .unwrap();
    assert_eq!(visited, SIZE);
}
