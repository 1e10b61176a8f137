//! Disks that are resized while they are in use: what requests see, what is refused, and who may have the file. Test names
//! cite the invariants of docs/resize.md. The crashes and failures of the resize itself are in `resize.rs` and
//! `resize_disks.rs`: it is the same job.

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use common::disk::{assert_same, create, open, options_for, random_operation, read_all};
use common::rng::{Rng, random_bytes, seeded};
use common::temp_dir;
use vhd_core::ErrorKind;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::device::{BlockDevice, ByteRange, DeviceError, Disk, ExtentKind, ZeroOptions};
use vhd_core::image::{Preallocate, create_dynamic, create_fixed};
use vhd_core::ops::Progress;
use vhd_core::ops::resize::{Opening, Request, ResizableDisk, Resize};
use vhd_core::storage::{Access, HostFile, Sharing, StorageError};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::Conformance;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Dynamic,
    Fixed,
    Raw,
}

const KINDS: [Kind; 3] = [Kind::Dynamic, Kind::Fixed, Kind::Raw];

impl Kind {
    /// A new image of zeroes.
    fn create(self, dir: &Path, size: u64) -> PathBuf {
        let path = dir.join(if self == Self::Raw { "disk.raw" } else { "disk.vhd" });
        match self {
            Self::Dynamic => create(&path, |file| create_dynamic(file, size, 512 << 10)),
            Self::Fixed => create(&path, |file| create_fixed(file, size, Preallocate::Off)),
            Self::Raw => fs::File::create(&path).unwrap().set_len(size).unwrap(),
        }
        path
    }
}

fn resizable(path: &Path) -> (Disk, Arc<ResizableDisk>) {
    match ResizableDisk::open(path, &options_for(path)).unwrap() {
        Opening::Resizable(device) => (Disk::new(Arc::clone(&device) as _), device),
        Opening::Plain { reason, .. } => panic!("{reason}"),
    }
}

/// Why the disk can't be resized; it is open for writing all the same.
fn refusal(path: &Path) -> String {
    match ResizableDisk::open(path, &options_for(path)).unwrap() {
        Opening::Resizable(_) => panic!("{} can be resized", path.display()),
        Opening::Plain { disk, reason } => {
            disk.disk().write_at(&[1; 512], 0).unwrap();
            assert!(!disk.disk().info().capabilities.resize);
            let refused = disk.disk().resize(2 * SIZE).unwrap_err();
            assert_eq!(ErrorKind::from(refused.kind()), ErrorKind::Unsupported);
            reason.to_string()
        }
    }
}

fn is_sound(path: &Path) {
    if path.extension().is_some_and(|name| name == "raw") {
        return;
    }
    let report = check(&HostFile::open(path, Access::ReadOnly, Sharing::Exclusive).unwrap()).unwrap();
    let bad =
        |finding: &&vhd_core::check::Finding| matches!(finding.severity, Severity::Corrupt | Severity::Repairable);
    assert_eq!(report.findings.iter().find(bad), None, "{}", path.display());
    assert!(!path.with_extension("vhd.resize").exists());
}

/// No resize that succeeded has left space that nothing uses.
fn leaks_nothing(path: &Path) {
    let report = check(&HostFile::open(path, Access::ReadOnly, Sharing::Exclusive).unwrap()).unwrap();
    assert_eq!(report.leaked_bytes, 0, "{}: {:?}", path.display(), report.findings);
}

fn zero(disk: &Disk, range: ByteRange) {
    let options = ZeroOptions {
        may_unmap: true,
        ..ZeroOptions::default()
    };
    disk.write_zeroes(range, options).unwrap();
}

#[test]
fn the_contract_is_kept_by_disks_that_can_be_resized() {
    for kind in KINDS {
        let dirs = std::sync::Mutex::new(Vec::new());
        let suite = Conformance {
            torn_reads: true,
            steps: 100,
            ..Conformance::default()
        };
        suite.run(&|size, content| {
            let dir = temp_dir();
            let (disk, device) = resizable(&kind.create(dir.path(), size));
            for (index, part) in content.chunks(64 << 10).enumerate() {
                if part.iter().any(|&byte| byte != 0) {
                    disk.write_at(part, u64_from(index << 16)).unwrap();
                }
            }
            dirs.lock().unwrap().push(dir);
            device as Arc<dyn BlockDevice>
        });
    }
}

#[test]
fn what_was_there_stays_and_what_is_new_reads_zero() {
    let mut rng = seeded(0x31, "up and down");
    for kind in KINDS {
        let dir = temp_dir();
        let path = kind.create(dir.path(), SIZE);
        let (disk, device) = resizable(&path);
        let mut model = vec![0; usize_from(SIZE)];
        for size in [SIZE + 512, 3 * SIZE, 3 * SIZE - 512, 5 * MIB, 64 * MIB, SIZE] {
            for _ in 0..20 {
                random_operation(&disk, &mut model, &mut rng);
            }
            if size < u64_from(model.len()) {
                // What is not zero is not cut off.
                disk.write_at(&[9; 512], disk.size() - 512).unwrap();
                let refused = disk.resize(size).unwrap_err();
                assert_eq!(ErrorKind::from(refused.kind()), ErrorKind::TailInUse, "{refused}");
                assert!(refused.to_string().contains("data at 0x"), "{refused}");
                assert_eq!(disk.size(), u64_from(model.len()));
                zero(&disk, ByteRange::new(size, disk.size() - size));
            }
            disk.resize(size)
                .unwrap_or_else(|error| panic!("{kind:?} to {size}: {error}"));
            assert_eq!(disk.size(), size);
            model.resize(usize_from(size), 0);
            assert_same(&read_all(&disk), &model, &format!("{kind:?} with {size} bytes"));
            let end = disk.read_at(&mut [0; 512], size).unwrap_err();
            assert_eq!(ErrorKind::from(end.kind()), ErrorKind::OutOfRange);
        }
        disk.write_at(&[3; 512], SIZE - 512).unwrap();
        model[usize_from(SIZE) - 512..].fill(3);
        device.close().unwrap();
        is_sound(&path);
        assert_same(&read_all(&open(&path, false).disk()), &model, "opened again");
    }
}

#[test]
fn blocks_that_are_cut_off_leave_no_hole() {
    let dir = temp_dir();
    let path = Kind::Dynamic.create(dir.path(), SIZE);
    let (disk, device) = resizable(&path);
    for _ in 0..3 {
        disk.resize(2 * SIZE).unwrap();
        // The space of the part that goes lies before that of the part that stays.
        disk.write_at(&[1; 4096], SIZE + 4 * MIB).unwrap();
        disk.write_at(&[1; 4096], SIZE + 6 * MIB).unwrap();
        disk.write_at(&[2; 4096], 0).unwrap();
        disk.write_at(&[3; 4096], 4 * MIB).unwrap();
        zero(&disk, ByteRange::new(SIZE, SIZE));
        disk.resize(SIZE).unwrap();
        let mut read = [0; 4096];
        disk.read_at(&mut read, 4 * MIB).unwrap();
        assert_eq!(read, [3; 4096]);
    }
    device.close().unwrap();
    is_sound(&path);
    leaks_nothing(&path);
}

#[test]
fn a_raw_disk_with_a_last_sector_that_is_not_whole() {
    let dir = temp_dir();
    let path = dir.path().join("odd.raw");
    fs::write(&path, [7; 700]).unwrap();
    let (disk, device) = resizable(&path);
    assert_eq!(disk.size(), 1024);
    disk.resize(2048).unwrap();
    device.close().unwrap();
    let mut expected = vec![0; 2048];
    expected[..700].fill(7);
    assert_same(&fs::read(&path).unwrap(), &expected, "the file");
}

#[test]
fn a_raw_disk_stays_raw_whatever_its_guest_writes() {
    let dir = temp_dir();
    let path = Kind::Raw.create(dir.path(), MIB);
    let (disk, device) = resizable(&path);
    let vhd = dir.path().join("inner.vhd");
    create(&vhd, |file| create_fixed(file, MIB - 512, Preallocate::Off));
    let bytes = fs::read(&vhd).unwrap();
    disk.write_at(&bytes, 0).unwrap();
    disk.resize(2 * MIB).unwrap();
    disk.resize(MIB).unwrap();
    assert_eq!(disk.size(), MIB);
    assert_same(&read_all(&disk), &bytes, "a raw disk with an image on it");
    device.close().unwrap();
}

#[test]
fn sizes_that_no_disk_can_have() {
    for kind in KINDS {
        let dir = temp_dir();
        let path = kind.create(dir.path(), SIZE);
        let (disk, device) = resizable(&path);
        let mut sizes = vec![0, 1, SIZE + 1, u64::MAX, u64::MAX - 511];
        if kind != Kind::Raw {
            sizes.push((2040 << 30) + 512);
        }
        for size in sizes {
            let refused = disk.resize(size).unwrap_err();
            assert_eq!(
                ErrorKind::from(refused.kind()),
                ErrorKind::InvalidArgument,
                "{kind:?} {size}: {refused}"
            );
            assert_eq!(disk.size(), SIZE);
        }
        disk.resize(2040 << 30).unwrap();
        disk.write_at(&[5; 512], (2040 << 30) - 512).unwrap();
        device.close().unwrap();
        is_sound(&path);
        let mut read = [0; 512];
        let opened = open(&path, false);
        opened.disk().read_at(&mut read, (2040 << 30) - 512).unwrap();
        assert_eq!(read, [5; 512]);
    }
}

#[test]
fn images_that_are_tied_to_others() {
    let dir = temp_dir();
    let path = Kind::Dynamic.create(dir.path(), SIZE);
    let child = dir.path().join("child.avhd");
    // A child that is there beforehand, one that appears, and the child itself.
    let (disk, device) = resizable(&path);
    let stranger = dir.path().join("copy.vhd");
    disk.flush().unwrap();
    fs::copy(&path, &stranger).unwrap();
    create_child(&child, &stranger, None, &OpenOptions::new()).unwrap();
    let refused = disk.resize(2 * SIZE).unwrap_err();
    assert_eq!(ErrorKind::from(refused.kind()), ErrorKind::HasChildren);
    assert!(refused.to_string().contains("child.avhd"), "{refused}");
    disk.write_at(&[1; 512], 0).unwrap();
    device.close().unwrap();
    let refused = ResizableDisk::open(&path, &OpenOptions::new()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::HasChildren);
    assert!(refused.to_string().contains("child.avhd"), "{refused}");
    assert!(refusal(&child).contains("copy.vhd: images of one tree"));
    fs::remove_file(&child).unwrap();
    resizable(&path).0.resize(2 * SIZE).unwrap();
}

#[test]
fn partitions_are_not_cut_off() {
    let dir = temp_dir();
    let path = Kind::Dynamic.create(dir.path(), SIZE);
    let (disk, _) = resizable(&path);
    let mut mbr = [0; 512];
    mbr[446 + 4] = 0x83;
    mbr[446 + 8..446 + 12].copy_from_slice(&2048_u32.to_le_bytes());
    mbr[446 + 12..446 + 16].copy_from_slice(&8192_u32.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    disk.write_at(&mbr, 0).unwrap();
    let refused = disk.resize(4 * MIB).unwrap_err();
    assert_eq!(ErrorKind::from(refused.kind()), ErrorKind::TailInUse);
    assert!(refused.to_string().contains("partition 1 at 0x100000"), "{refused}");
    disk.resize(5 * MIB).unwrap();
}

#[test]
fn a_file_that_was_given_another_name() {
    let dir = temp_dir();
    let path = Kind::Fixed.create(dir.path(), SIZE);
    let elsewhere = dir.path().join("elsewhere.vhd");
    let (disk, _) = resizable(&path);
    fs::rename(&path, &elsewhere).unwrap();
    // The record of the resize would be beside nothing, or beside another image.
    for stranger in [false, true] {
        if stranger {
            Kind::Fixed.create(dir.path(), SIZE);
        }
        let refused = disk.resize(2 * SIZE).unwrap_err();
        assert_eq!(ErrorKind::from(refused.kind()), ErrorKind::Changed, "{refused}");
        disk.write_at(&[1; 512], 0).unwrap();
    }
    fs::rename(&elsewhere, &path).unwrap();
    disk.resize(2 * SIZE).unwrap();
}

/// Nobody else may open the file, not for a moment.
#[test]
fn inv_31_the_file_stays_locked() {
    for kind in KINDS {
        let dir = temp_dir();
        let path = kind.create(dir.path(), SIZE);
        let (disk, _) = resizable(&path);
        let done = AtomicBool::new(false);
        let attempts = AtomicU32::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let opened = HostFile::open(&path, Access::ReadOnly, Sharing::Exclusive);
                    assert!(matches!(opened, Err(StorageError::Locked { .. })), "{opened:?}");
                    attempts.fetch_add(1, Ordering::Relaxed);
                }
            });
            let mut resizes = 0;
            while resizes < 20 || attempts.load(Ordering::Relaxed) < 20 {
                disk.resize(SIZE * (1 + resizes % 3)).unwrap();
                resizes += 1;
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}

/// Does random things to its part of a disk until told to stop, and knows what that must read.
fn work(disk: &Disk, start: u64, len: u64, rng: &mut Rng, stop: &AtomicBool) -> Vec<u8> {
    let mut model = vec![0; usize_from(len)];
    while !stop.load(Ordering::Relaxed) {
        let at = rng.usize(..model.len() - 512);
        let most = if rng.u8(..10) == 0 { 300_000 } else { 5000 };
        let count = rng.usize(1..most).min(model.len() - at);
        let place = start + u64_from(at);
        match rng.u8(..10) {
            0..5 => {
                let bytes = random_bytes(rng, count);
                disk.write_at(&bytes, place).unwrap();
                model[at..at + count].copy_from_slice(&bytes);
            }
            5 => {
                zero(disk, ByteRange::new(place, u64_from(count)));
                model[at..at + count].fill(0);
            }
            6 => disk.flush().unwrap(),
            7 => {
                let range = ByteRange::new(start, len);
                let mut stored = 0;
                let told = disk.extents(range, &mut |extent| {
                    stored += u64::from(extent.kind == ExtentKind::Data) * extent.range.len;
                    ControlFlow::Continue(())
                });
                told.unwrap();
                let used = model.chunks(512).filter(|sector| sector.iter().any(|&byte| byte != 0));
                assert!(stored >= u64_from(used.count()) * 512);
            }
            _ => {
                let mut read = vec![0xEE; count];
                disk.read_at(&mut read, place).unwrap();
                assert_same(&read, &model[at..at + count], "beside resizes");
            }
        }
    }
    model
}

/// Grows the disk, uses the new end at once, and makes it smaller again.
fn resize_and_use(disk: &Disk, rng: &mut Rng) {
    let size = SIZE + rng.u64(1..=4096) * 512 * if rng.bool() { 1 } else { 1000 };
    disk.resize(size).unwrap();
    assert_eq!(disk.size(), size);
    let mut read = [0xEE; 512];
    disk.read_at(&mut read, size - 512).unwrap();
    assert_eq!(read, [0; 512]);
    disk.write_at(&[8; 512], size - 512).unwrap();
    disk.read_at(&mut read, size - 512).unwrap();
    assert_eq!(read, [8; 512]);
    assert_eq!(
        ErrorKind::from(disk.resize(SIZE).unwrap_err().kind()),
        ErrorKind::TailInUse
    );
    zero(disk, ByteRange::new(size - 512, 512));
    disk.resize(SIZE).unwrap();
    assert_eq!(
        ErrorKind::from(disk.read_at(&mut read, size - 512).unwrap_err().kind()),
        ErrorKind::OutOfRange
    );
}

#[test]
fn inv_31_threads_that_use_a_disk_while_it_is_resized() {
    const THREADS: u64 = 4;
    const RESIZES: u32 = 40;
    for kind in KINDS {
        let mut rng = seeded(0x3131, &format!("{kind:?}"));
        let dir = temp_dir();
        let path = kind.create(dir.path(), SIZE);
        let (disk, device) = resizable(&path);
        let stop = AtomicBool::new(false);
        let model: Vec<u8> = thread::scope(|scope| {
            let (disk, stop) = (&disk, &stop);
            let workers: Vec<_> = (0..THREADS)
                .map(|thread| {
                    let mut rng = rng.fork();
                    let len = SIZE / THREADS;
                    scope.spawn(move || work(disk, thread * len, len, &mut rng, stop))
                })
                .collect();
            let resized = catch_unwind(AssertUnwindSafe(|| {
                (0..RESIZES).for_each(|_| resize_and_use(disk, &mut rng));
            }));
            stop.store(true, Ordering::Relaxed);
            let parts = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
            resized.unwrap();
            parts
        });
        assert_same(&read_all(&disk), &model, "the disk in use");
        device.close().unwrap();
        is_sound(&path);
        assert_same(&read_all(&open(&path, false).disk()), &model, "opened again");
    }
}

/// Dies when the record of a resize is there, and nothing of it is done yet.
struct DiesAtFirst;

impl Progress for DiesAtFirst {
    fn begin(&self, _total: u64) {
        panic!("killed");
    }

    fn advance(&self, _bytes: u64) {}
}

#[test]
fn what_a_killed_server_left_unfinished_is_finished() {
    let dir = temp_dir();
    let path = Kind::Fixed.create(dir.path(), SIZE);
    let request = Request {
        image: &path,
        size: 2 * SIZE,
        shrink: false,
        tree: false,
        fix_gpt: false,
        options: &OpenOptions::new(),
        cancel: &AtomicBool::new(false),
    };
    let resize = Resize::prepare(&request, true).unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| resize.run(&DiesAtFirst))).is_err());
    let record = dir.path().join("disk.vhd.resize");
    assert!(record.exists());
    let (disk, _) = resizable(&path);
    assert_eq!((disk.size(), record.exists()), (2 * SIZE, false));
    // A record of a whole tree is another matter.
    fs::write(&record, "{}").unwrap();
    let refused = disk.resize(SIZE).unwrap_err();
    assert_eq!(ErrorKind::from(refused.kind()), ErrorKind::RecordDamaged, "{refused}");
    disk.write_at(&[1; 512], 2 * SIZE - 512).unwrap();
}

/// A file system of 16 MiB, unmounted when dropped; `None` without the right to mount.
struct SmallMount(tempfile::TempDir);

impl SmallMount {
    fn new() -> Option<Self> {
        let dir = temp_dir();
        let mount = ["-t", "tmpfs", "-o", "size=16m", "tmpfs"];
        let mounted = std::process::Command::new("mount").args(mount).arg(dir.path()).status();
        if !mounted.is_ok_and(|status| status.success()) {
            common::announce("NOT TESTED: a full file system: no right to mount one");
            return None;
        }
        Some(Self(dir))
    }
}

impl Drop for SmallMount {
    fn drop(&mut self) {
        std::process::Command::new("umount").arg(self.0.path()).status().ok();
    }
}

#[test]
fn a_full_file_system_leaves_the_disk_in_use_as_it_was() {
    let Some(mount) = SmallMount::new() else { return };
    let path = Kind::Dynamic.create(mount.0.path(), SIZE);
    let (disk, device) = resizable(&path);
    let content = random_bytes(&mut seeded(0xF1, "full"), usize_from(SIZE));
    disk.write_at(&content, 0).unwrap();
    disk.flush().unwrap();
    let filler = mount.0.path().join("filler");
    let free = rustix::fs::statvfs(mount.0.path()).unwrap();
    fs::write(&filler, vec![1; usize_from(free.f_bavail * free.f_bsize)]).unwrap();
    // Blocks must make room for a table of 8 MiB.
    for _ in 0..3 {
        let failed = disk.resize(1 << 40).unwrap_err();
        assert_eq!(ErrorKind::from(failed.kind()), ErrorKind::NoSpace, "{failed}");
        assert!(matches!(failed, DeviceError::NotResized { .. }));
        assert_eq!(disk.size(), SIZE);
        assert_same(&read_all(&disk), &content, "after a failed resize");
        disk.write_at(&content[..4096], 0).unwrap();
        disk.flush().unwrap();
    }
    fs::remove_file(&filler).unwrap();
    disk.resize(2 * SIZE).unwrap();
    device.close().unwrap();
    is_sound(&path);
}
