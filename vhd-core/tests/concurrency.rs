//! Threads that write, zero, discard, flush and read one disk at once. Each writes its own sectors, of which every
//! block has some of every thread, and reads those of all.
//!
//! The content of a sector says which write it is from. A reader may find what was complete when it began, or
//! anything begun before it ended: never older, never another sector's, and in memory never parts of two.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::build::{Parent, SECTOR, Sparse, fixed, id};
use common::disk::{assert_same, parent_layer, read_all};
use common::rng::{Rng, seeded};
use common::temp_dir;
use vhd_core::check::{Severity, check};
use vhd_core::device::{ByteRange, Disk, LayeredDevice, ZeroOptions};
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::{Access, HostFile, MemoryFile, Sharing, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::bytes::is_zero;

const BLOCK: usize = 16 << 10;
const SECTORS: usize = 64 * BLOCK / SECTOR - 5;
const THREADS: usize = 4;
/// Neighbouring sectors of one thread.
const RUN: usize = 4;

/// A number that grows with every change of a sector; the lowest bit says that the sector reads zero.
type Version = u64;
const ZERO: Version = 1;

/// What readers may expect of a sector.
struct Sector {
    begun: AtomicU64,
    done: AtomicU64,
}

/// A disk and the versions of its sectors.
struct Shared {
    disk: Disk,
    sectors: Vec<Sector>,
    /// No sector is ever seen half written.
    whole_sectors: bool,
}

fn word(sector: usize, version: Version) -> u64 {
    if version & ZERO != 0 {
        0
    } else {
        (u64_from(sector) + 1) << 32 | version
    }
}

fn content(sector: usize, version: Version) -> Vec<u8> {
    word(sector, version).to_be_bytes().repeat(SECTOR / 8)
}

fn bytes_of(sector: usize, count: usize) -> ByteRange {
    ByteRange::new(u64_from(sector * SECTOR), u64_from(count * SECTOR))
}

impl Shared {
    fn new(disk: Disk, initial: Version, whole_sectors: bool) -> Self {
        let sector = || Sector {
            begun: AtomicU64::new(initial),
            done: AtomicU64::new(initial),
        };
        Self {
            disk,
            sectors: (0..SECTORS).map(|_| sector()).collect(),
            whole_sectors,
        }
    }

    /// Some sectors of one thread, next to each other.
    fn pick(&self, thread: usize, rng: &mut Rng) -> (usize, usize) {
        let runs = SECTORS / (RUN * THREADS);
        let first = (rng.usize(..runs) * THREADS + thread) * RUN + rng.usize(..RUN);
        (first, 1 + rng.usize(..RUN - first % RUN))
    }

    /// Changes sectors of the calling thread.
    fn change(&self, first: usize, count: usize, zero: bool, action: impl FnOnce(Version)) {
        let latest = (first..first + count).map(|sector| self.sectors[sector].done.load(Ordering::Relaxed));
        let version = (latest.max().unwrap() & !ZERO) + 2 + if zero { ZERO } else { 0 };
        for sector in first..first + count {
            self.sectors[sector].begun.store(version, Ordering::SeqCst);
        }
        action(version);
        for sector in first..first + count {
            self.sectors[sector].done.store(version, Ordering::SeqCst);
        }
    }

    fn write(&self, first: usize, count: usize) {
        self.change(first, count, false, |version| {
            let bytes: Vec<u8> = (first..first + count)
                .flat_map(|sector| content(sector, version))
                .collect();
            self.disk.write_at(&bytes, bytes_of(first, count).start).unwrap();
        });
    }

    fn zero(&self, first: usize, count: usize, may_unmap: bool) {
        let options = ZeroOptions {
            may_unmap,
            ..ZeroOptions::default()
        };
        self.change(first, count, true, |_| {
            self.disk.write_zeroes(bytes_of(first, count), options).unwrap()
        });
    }

    /// Where the sectors can't be freed they stay as they are: then they are zeroed, so that all know what they read.
    fn discard(&self, first: usize, count: usize) {
        self.change(first, count, true, |_| {
            let range = bytes_of(first, count);
            self.disk.discard(range).unwrap();
            let mut now = vec![1; count * SECTOR];
            self.disk.read_at(&mut now, range.start).unwrap();
            if !is_zero(&now) {
                self.disk.write_zeroes(range, ZeroOptions::default()).unwrap();
            }
        });
    }

    fn read(&self, rng: &mut Rng) {
        let first = rng.usize(..SECTORS);
        let count = 1 + rng.usize(..(SECTORS - first).min(100));
        let range = first..first + count;
        let oldest: Vec<Version> = range
            .clone()
            .map(|sector| self.sectors[sector].done.load(Ordering::SeqCst))
            .collect();
        let mut bytes = vec![0x5A; count * SECTOR];
        self.disk.read_at(&mut bytes, bytes_of(first, count).start).unwrap();
        for ((sector, oldest), bytes) in range.zip(oldest).zip(bytes.chunks(SECTOR)) {
            let newest = self.sectors[sector].begun.load(Ordering::SeqCst);
            let (words, _) = bytes.as_chunks::<8>();
            for found in words {
                self.assert_allowed(sector, u64::from_be_bytes(*found), oldest, newest);
            }
            assert!(
                !self.whole_sectors || words.iter().all(|found| *found == words[0]),
                "sector {sector} is torn"
            );
        }
    }

    fn assert_allowed(&self, sector: usize, found: u64, oldest: Version, newest: Version) {
        // Between the two there may have been others, of which any may have been zeroes.
        let several = newest / 2 > oldest / 2 + 1;
        let allowed = match found {
            0 => oldest & ZERO != 0 || newest & ZERO != 0 || several,
            _ => {
                let version = found & 0xFFFF_FFFF;
                found == word(sector, version) && (oldest..=newest).contains(&version)
            }
        };
        assert!(
            allowed,
            "sector {sector}: {found:#x} between {oldest:#x} and {newest:#x}"
        );
    }

    /// What the disk must read when all threads have ended.
    fn expected(&self) -> Vec<u8> {
        let versions = self.sectors.iter().map(|sector| sector.done.load(Ordering::SeqCst));
        versions
            .enumerate()
            .flat_map(|(sector, version)| content(sector, version))
            .collect()
    }

    fn work(&self, thread: usize, mut rng: Rng, operations: usize) {
        for _ in 0..operations {
            let (first, count) = self.pick(thread, &mut rng);
            match rng.u8(..100) {
                0..45 => self.write(first, count),
                45..55 => self.zero(first, count, rng.bool()),
                55..65 => self.discard(first, count),
                65..98 => self.read(&mut rng),
                _ => self.disk.flush().unwrap(),
            }
        }
    }
}

/// What lies below the disk, and what it reads at first.
#[derive(Clone, Copy)]
enum Kind {
    Dynamic,
    Differencing,
}

impl Kind {
    fn image(self) -> Vec<u8> {
        let size = u64_from(SECTORS * SECTOR);
        let spec = match self {
            Self::Dynamic => Sparse::new(size, BLOCK),
            Self::Differencing => Sparse::child(size, BLOCK, id(2), Parent::named(id(1), "base.vhd")),
        };
        spec.lay().bytes
    }

    fn open(self, file: Arc<dyn StorageFile>, mode: &OpenMode) -> LayeredDevice {
        let parent = match self {
            Self::Dynamic => None,
            Self::Differencing => {
                let content: Vec<u8> = (0..SECTORS).flat_map(|sector| content(sector, 0)).collect();
                Some(parent_layer(fixed(&content, id(1))))
            }
        };
        LayeredDevice::new(Image::open(file, mode).unwrap(), parent.into_iter().collect())
    }

    fn initial(self) -> Version {
        match self {
            Self::Dynamic => ZERO,
            Self::Differencing => 0,
        }
    }
}

/// Lets the threads loose on the image in `file`.
fn torture(kind: Kind, file: &Arc<dyn StorageFile>, whole_sectors: bool, seed: u64, operations: usize) {
    let device = Arc::new(kind.open(Arc::clone(file), &OpenMode::read_write()));
    let shared = Shared::new(Disk::new(Arc::clone(&device) as _), kind.initial(), whole_sectors);
    let mut rng = seeded(seed, "threads");
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (rng, shared) = (rng.fork(), &shared);
            scope.spawn(move || shared.work(thread, rng, operations));
        }
    });
    let expected = shared.expected();
    assert_same(&read_all(&shared.disk), &expected, "when all have ended");
    drop(shared);
    Arc::into_inner(device).expect("the only handle").close().unwrap();
    let again = kind.open(Arc::clone(file), &OpenMode::read_only());
    assert_same(&read_all(&Disk::new(Arc::new(again))), &expected, "opened again");
    let report = check(&**file).unwrap();
    assert!(report.worst() <= Some(Severity::Note), "{report:?}");
    assert!(
        usize_from(report.allocated_blocks) > 32,
        "most blocks were used: {report:?}"
    );
}

fn torture_memory(kind: Kind) {
    for seed in 0..12 {
        let file: Arc<dyn StorageFile> = Arc::new(MemoryFile::from_bytes(kind.image()));
        torture(kind, &file, true, seed, 1500);
    }
}

fn torture_host_file(kind: Kind) {
    let dir = temp_dir();
    let path = dir.path().join("image.vhd");
    for seed in 0..4 {
        std::fs::write(&path, kind.image()).unwrap();
        let file: Arc<dyn StorageFile> =
            Arc::new(HostFile::open(&path, Access::ReadWrite, Sharing::Exclusive).unwrap());
        torture(kind, &file, false, seed, 1000);
    }
}

#[test]
fn a_dynamic_image_in_memory() {
    torture_memory(Kind::Dynamic);
}

#[test]
fn a_differencing_image_in_memory() {
    torture_memory(Kind::Differencing);
}

#[test]
fn a_dynamic_image_in_a_file() {
    torture_host_file(Kind::Dynamic);
}

#[test]
fn a_differencing_image_in_a_file() {
    torture_host_file(Kind::Differencing);
}
