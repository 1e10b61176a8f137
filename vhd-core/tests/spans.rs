//! Spans: the places in files that a disk names are the bytes that it reads and writes, as long as somebody holds them,
//! whatever is done to the disk meanwhile.

mod common;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use common::disk::{assert_reads, assert_same, create, open, open_alone, random_operation, read_all};
use common::rng::{Rng, random_bytes, seeded};
use common::temp_dir;
use common::tree::random_tree;
use vhd_core::ErrorKind;
use vhd_core::chain::{Closed, OpenOptions};
use vhd_core::check::Severity;
use vhd_core::device::{ByteRange, DeviceError, Disk, LiveDevice, ReadSpan, ReadTarget, WriteSource};
use vhd_core::image::create_dynamic;
use vhd_core::ops::resize::{Opening, ResizableDisk};
use vhd_core::snapshot::{CreatedInUse, SnapshotTree, Work};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::StopOnDrop;

const MIB: u64 = 1 << 20;
const SECTOR: u64 = 512;

static GO_ON: AtomicBool = AtomicBool::new(false);

fn work() -> Work<'static> {
    Work {
        steps: &(),
        progress: &(),
        cancel: &GO_ON,
    }
}

/// Memory of a caller's that is never lent as a slice: by calls on the file where there is one.
#[derive(Default)]
struct Memory {
    bytes: Vec<u8>,
    /// Transfers by a descriptor.
    direct: usize,
}

impl Memory {
    fn part(at: u64, len: u64) -> Range<usize> {
        usize_from(at)..usize_from(at + len)
    }
}

impl ReadTarget for Memory {
    fn read_from(&mut self, file: BorrowedFd<'_>, offset: u64, at: u64, len: u64) -> io::Result<u64> {
        self.direct += 1;
        // Short now and then, as the system may be.
        let len = if len > 4 * SECTOR { len / 2 } else { len };
        let part = &mut self.bytes[Self::part(at, len)];
        Ok(rustix::io::pread(file, part, offset).map(u64_from)?)
    }

    fn fill(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.bytes[Self::part(at, u64_from(bytes.len()))].copy_from_slice(bytes);
        Ok(())
    }
}

impl WriteSource for Memory {
    fn write_to(&self, file: BorrowedFd<'_>, offset: u64, at: u64, len: u64) -> io::Result<u64> {
        let len = if len > 4 * SECTOR { len / 2 } else { len };
        Ok(rustix::io::pwrite(file, &self.bytes[Self::part(at, len)], offset).map(u64_from)?)
    }

    fn take(&self, at: u64, bytes: &mut [u8]) -> io::Result<()> {
        bytes.copy_from_slice(&self.bytes[Self::part(at, u64_from(bytes.len()))]);
        Ok(())
    }
}

/// The bytes of a span, by the descriptor of its file.
fn bytes_of(span: &ReadSpan) -> Vec<u8> {
    let mut bytes = vec![0; usize_from(span.len())];
    if let ReadSpan::Data { file, offset, len } = span {
        match file.descriptor(*offset, *len) {
            Some(found) => assert_eq!(rustix::io::pread(found, &mut bytes, *offset).unwrap(), bytes.len()),
            None => file.read_exact_at(&mut bytes, *offset).unwrap(),
        }
    }
    bytes
}

/// All spans of a range, held at once.
fn spans(disk: &Disk, range: ByteRange) -> Vec<ReadSpan> {
    let mut spans = Vec::new();
    let mut at = range.start;
    while at < range.end() {
        let span = disk.resolve_read(ByteRange::new(at, range.end() - at)).unwrap();
        at += span.len();
        spans.push(span);
    }
    spans
}

fn read_by_spans(disk: &Disk, range: ByteRange) -> Vec<u8> {
    spans(disk, range).iter().flat_map(bytes_of).collect()
}

fn some_range(rng: &mut Rng, size: u64, grid: u64) -> ByteRange {
    let start = rng.u64(..size / grid) * grid;
    let len = rng.u64(1..=(600 << 10) / grid) * grid;
    ByteRange::new(start, len.min(size - start))
}

/// Random chains: what the spans name is what is read, in any range of bytes.
#[test]
fn bytes_through_spans_are_the_bytes_that_are_read() {
    let dir = temp_dir();
    let mut rng = seeded(0, "spans that are read");
    for node in random_tree(dir.path(), &mut rng, 8).iter().rev() {
        for write in [false, true] {
            let opened = open(&node.path, write);
            let disk = opened.disk();
            assert!(disk.info().capabilities.resolve);
            let whole = ByteRange::new(0, disk.size());
            assert_same(&read_by_spans(&disk, whole), &node.content, "all of it");
            for _ in 0..40 {
                let range = some_range(&mut rng, disk.size(), 1);
                let expected = &node.content[Memory::part(range.start, range.len)];
                assert_same(&read_by_spans(&disk, range), expected, "a part");
                let mut memory = Memory::default();
                memory.bytes.resize(expected.len(), 0x5A);
                disk.read_into(range, &mut memory).unwrap();
                assert_same(&memory.bytes, expected, "into memory");
            }
            assert!(disk.resolve_read(ByteRange::new(0, 0)).unwrap().is_empty());
            for range in [ByteRange::new(disk.size(), 1), ByteRange::new(u64::MAX, 2)] {
                assert!(matches!(disk.resolve_read(range), Err(DeviceError::OutOfRange { .. })));
            }
            drop(disk);
            assert_eq!(opened.close().unwrap(), Closed::Now);
        }
    }
}

/// Random work through guards that are completed or dropped, beside the usual requests; the images stay sound.
#[test]
fn what_is_put_into_a_span_and_completed_is_written() {
    let dir = temp_dir();
    let mut rng = seeded(1, "spans that are written");
    for node in random_tree(dir.path(), &mut rng, 6).iter().rev() {
        let opened = open(&node.path, true);
        let disk = opened.disk();
        let mut content = node.content.clone();
        for _ in 0..30 {
            let range = some_range(&mut rng, disk.size(), SECTOR);
            match rng.u32(..4) {
                0 => random_operation(&disk, &mut content, &mut rng),
                1 => {
                    // Given up before anything was put there: nothing has changed.
                    let held = disk.resolve_write(range).unwrap();
                    assert!(held.len() <= range.len);
                }
                2 => {
                    let memory = Memory {
                        bytes: random_bytes(&mut rng, usize_from(range.len)),
                        direct: 0,
                    };
                    disk.write_from(range, &memory, rng.bool()).unwrap();
                    content[Memory::part(range.start, range.len)].copy_from_slice(&memory.bytes);
                }
                _ => {
                    // Several at once, completed in another order.
                    let bytes = random_bytes(&mut rng, usize_from(range.len));
                    let (mut held, mut at) = (VecDeque::new(), 0);
                    while at < range.len {
                        let span = disk
                            .resolve_write(ByteRange::new(range.start + at, range.len - at))
                            .unwrap();
                        let part = &bytes[Memory::part(at, span.len())];
                        span.file().write_all_at(part, span.offset()).unwrap();
                        at += span.len();
                        held.push_front(span);
                    }
                    if rng.bool() {
                        disk.flush().unwrap();
                    }
                    held.into_iter().for_each(|span| span.complete().unwrap());
                    content[Memory::part(range.start, range.len)].copy_from_slice(&bytes);
                }
            }
        }
        assert_same(&read_all(&disk), &content, "open");
        for range in [ByteRange::new(0, 0), ByteRange::new(1, 511), ByteRange::new(0, 700)] {
            assert!(matches!(disk.resolve_write(range), Err(DeviceError::Misaligned { .. })));
        }
        drop(disk);
        assert_eq!(opened.close().unwrap(), Closed::Now);
        assert_reads(&node.path, &content);
        let report = vhd_core::check::check(&**open_alone(&node.path).file()).unwrap();
        let wrong = report.findings.iter().find(|finding| finding.severity > Severity::Note);
        assert!(wrong.is_none(), "{wrong:?}");
        let reader = open(&node.path, false);
        assert!(matches!(
            reader.disk().resolve_write(ByteRange::new(0, SECTOR)),
            Err(DeviceError::ReadOnly)
        ));
    }
}

/// A raw disk whose last sector is not whole reads zero behind its file, through spans too.
#[test]
fn the_end_of_a_raw_file_reads_zero() {
    let dir = temp_dir();
    let path = dir.path().join("odd.raw");
    std::fs::write(&path, [7; 1300]).unwrap();
    let disk = open(&path, false).disk();
    let mut expected = vec![7; 1300];
    expected.resize(1536, 0);
    assert_eq!(read_by_spans(&disk, ByteRange::new(0, 1536)), expected);
    let mut memory = Memory::default();
    memory.bytes.resize(1536, 1);
    disk.read_into(ByteRange::new(0, 1536), &mut memory).unwrap();
    assert_eq!(memory.bytes, expected);
    disk.read_into(ByteRange::new(0, 512), &mut memory).unwrap();
    assert!(memory.direct > 0, "what is in the file is read from it");
}

fn live_disk(dir: &Path) -> (PathBuf, Arc<LiveDevice>, Disk) {
    let path = dir.join("vm.vhd");
    create(&path, |file| create_dynamic(file, 8 * MIB, 512 << 10));
    let device = Arc::new(open(&path, true).into_live().unwrap());
    let disk = Disk::new(Arc::clone(&device) as _);
    (path, device, disk)
}

fn take(path: &Path, device: &LiveDevice, name: &str) -> CreatedInUse {
    let mut tree = SnapshotTree::open_in_use(path, device, work()).unwrap();
    tree.create_in_use(name).unwrap()
}

fn delete(path: &Path, device: &LiveDevice, name: &str) {
    let mut tree = SnapshotTree::open_in_use(path, device, work()).unwrap();
    tree.give_up(name, false).unwrap();
    let settled = tree.settle_in_use().unwrap();
    assert_eq!((settled.merged.len(), settled.waiting.len()), (1, 0), "{settled:?}");
}

/// A sector with a number at both ends.
fn numbered(number: u64) -> [u8; 512] {
    let mut bytes = [0; 512];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes[504..].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The number of a sector; it is not torn.
fn number_of(bytes: &[u8]) -> u64 {
    let at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!(at(0), at(504), "a torn sector");
    at(0)
}

/// INV-80, INV-81: threads that write and read through spans, and hold them, while snapshots are taken and merged away. A span
/// never reads less than what had been written when it was made, and never what belongs to nobody; a snapshot never changes.
#[test]
fn inv_80_spans_are_held_while_snapshots_come_and_go() {
    const THREADS: usize = 2;
    const SECTORS: u64 = 1500;
    let dir = temp_dir();
    let (path, device, disk) = live_disk(dir.path());
    let newest: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    let over = AtomicBool::new(false);
    let sector_of = |thread: usize, number: u64| u64_from(thread) * SECTORS + number % SECTORS;
    thread::scope(|scope| {
        let _stop = StopOnDrop(&over);
        for (thread, newest) in newest.iter().enumerate() {
            let (disk, over) = (&disk, &over);
            scope.spawn(move || {
                for number in 1.. {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let range = ByteRange::new(sector_of(thread, number) * SECTOR, SECTOR);
                    let span = disk.resolve_write(range).unwrap();
                    span.file().write_all_at(&numbered(number), span.offset()).unwrap();
                    span.complete().unwrap();
                    newest.store(number, Ordering::SeqCst);
                    if number % 61 == 0 {
                        disk.flush().unwrap();
                    }
                }
            });
        }
        scope.spawn(|| {
            let mut rng = seeded(2, "held spans");
            let mut held: VecDeque<(ReadSpan, u64)> = VecDeque::new();
            while !over.load(Ordering::Relaxed) {
                let thread = rng.usize(..THREADS);
                let number = newest[thread].load(Ordering::SeqCst);
                let range = ByteRange::new(sector_of(thread, number) * SECTOR, SECTOR);
                held.push_back((disk.resolve_read(range).unwrap(), number));
                if held.len() > 100 {
                    let (span, number) = held.pop_front().unwrap();
                    let found = number_of(&bytes_of(&span));
                    let of_sector = found >= number && (found - number).is_multiple_of(SECTORS);
                    assert!(of_sector, "{found} where {number} had been written");
                }
            }
        });
        for _ in 0..10 {
            let created = take(&path, &device, "backup");
            let frozen = Disk::new(Arc::clone(&created.frozen) as _);
            let content = read_all(&frozen);
            thread::sleep(Duration::from_millis(5));
            assert_same(
                &read_by_spans(&frozen, ByteRange::new(0, frozen.size())),
                &content,
                "the snapshot",
            );
            drop((created, frozen));
            delete(&path, &device, "backup");
        }
    });
    let last = read_all(&disk);
    for (thread, newest) in newest.iter().enumerate() {
        let newest = newest.load(Ordering::SeqCst);
        for number in newest.saturating_sub(SECTORS - 1).max(1)..=newest {
            let at = sector_of(thread, number) * SECTOR;
            assert_eq!(number_of(&last[Memory::part(at, SECTOR)]), number);
        }
    }
    drop(disk);
    Arc::into_inner(device).unwrap().close().unwrap();
    assert_reads(&path, &last);
}

/// INV-80: the file of a span stays, though it has no name any more, and what a snapshot's reader holds is not merged into.
#[test]
fn inv_80_a_span_keeps_its_file_and_a_snapshot_its_content() {
    let dir = temp_dir();
    let (path, device, disk) = live_disk(dir.path());
    let range = ByteRange::new(0, SECTOR);
    disk.write_at(&numbered(1), 0).unwrap();
    let created = take(&path, &device, "monday");
    disk.write_at(&numbered(2), 0).unwrap();
    let of_leaf = disk.resolve_read(range).unwrap();
    let of_snapshot = Disk::new(Arc::clone(&created.frozen) as _).resolve_read(range).unwrap();
    drop(created);
    // The merge waits for who reads the snapshot, and this is a reader.
    thread::scope(|scope| {
        let deletion = scope.spawn(|| delete(&path, &device, "monday"));
        thread::sleep(Duration::from_millis(100));
        assert_eq!(number_of(&bytes_of(&of_snapshot)), 1);
        assert!(!deletion.is_finished());
        drop(of_snapshot);
        deletion.join().unwrap();
    });
    disk.write_at(&numbered(3), 0).unwrap();
    assert_eq!(number_of(&bytes_of(&of_leaf)), 2, "of the leaf that is gone");
    assert_eq!(number_of(&bytes_of(&disk.resolve_read(range).unwrap())), 3);
}

/// INV-81: a switch waits for who holds a place to write to, and lets requests on meanwhile, for he may need one. The write is
/// in the snapshot.
#[test]
fn inv_81_a_snapshot_waits_for_a_place_that_is_held() {
    let dir = temp_dir();
    let (path, device, disk) = live_disk(dir.path());
    let range = ByteRange::new(0, SECTOR);
    let span = disk.resolve_write(range).unwrap();
    let created = thread::scope(|scope| {
        let taking = scope.spawn(|| take(&path, &device, "monday"));
        thread::sleep(Duration::from_millis(60));
        assert!(!taking.is_finished());
        // Other requests go on, of this thread too.
        disk.write_at(&numbered(5), SECTOR).unwrap();
        let other = disk.resolve_write(ByteRange::new(2 * SECTOR, SECTOR)).unwrap();
        drop(other);
        span.file().write_all_at(&numbered(7), span.offset()).unwrap();
        span.complete().unwrap();
        taking.join().unwrap()
    });
    disk.write_at(&numbered(8), 0).unwrap();
    let frozen = Disk::new(created.frozen);
    assert_eq!(number_of(&read_by_spans(&frozen, range)), 7);
    assert!(
        created.paused < Duration::from_secs(5),
        "{:?}: requests went on",
        created.paused
    );
}

/// INV-82: blocks move in a resize, so it waits for every span, and gives up rather than wait for ever.
#[test]
fn inv_82_a_resize_waits_for_spans_or_gives_up() {
    let dir = temp_dir();
    let path = dir.path().join("disk.vhd");
    create(&path, |file| create_dynamic(file, 8 * MIB, 512 << 10));
    let Opening::Resizable(device) = ResizableDisk::open(&path, &OpenOptions::new()).unwrap() else {
        panic!("one image can be resized");
    };
    let disk = Disk::new(Arc::clone(&device) as _);
    disk.write_at(&numbered(1), 0).unwrap();
    let range = ByteRange::new(0, SECTOR);
    let span = disk.resolve_read(range).unwrap();
    let refused = disk.resize(4096 * MIB).unwrap_err();
    assert_eq!(ErrorKind::from(refused.kind()), ErrorKind::Locked, "{refused}");
    assert_eq!(disk.size(), 8 * MIB);
    assert_eq!(number_of(&bytes_of(&span)), 1);
    let written = disk.resolve_write(range).unwrap();
    thread::scope(|scope| {
        // The table grows by far: the first block has to make room.
        let resizing = scope.spawn(|| disk.resize(64 * 1024 * MIB));
        thread::sleep(Duration::from_millis(50));
        assert!(!resizing.is_finished());
        written.file().write_all_at(&numbered(2), written.offset()).unwrap();
        written.complete().unwrap();
        drop(span);
        resizing.join().unwrap().unwrap();
    });
    assert_eq!(disk.size(), 64 * 1024 * MIB);
    assert_eq!(number_of(&read_by_spans(&disk, range)), 2);
    device.close().unwrap();
}

/// A disk that is closed under a span is flushed, and says that somebody has a part of it.
#[test]
fn a_disk_that_is_closed_under_a_span() {
    let dir = temp_dir();
    let path = dir.path().join("disk.vhd");
    create(&path, |file| create_dynamic(file, 8 * MIB, 512 << 10));
    let opened = open(&path, true);
    opened.disk().write_at(&numbered(1), 0).unwrap();
    let read = opened.disk().resolve_read(ByteRange::new(0, SECTOR)).unwrap();
    assert_eq!(opened.close().unwrap(), Closed::StillInUse);
    assert!(OpenOptions::new().write(true).open(&path).is_err(), "it is locked");
    assert_eq!(number_of(&bytes_of(&read)), 1);
    drop(read);
    let opened = open(&path, true);
    let written = opened.disk().resolve_write(ByteRange::new(MIB, SECTOR)).unwrap();
    assert_eq!(opened.close().unwrap(), Closed::StillInUse);
    written.file().write_all_at(&numbered(2), written.offset()).unwrap();
    written.complete().unwrap();
    let opened = open(&path, false);
    assert_eq!(
        number_of(&read_by_spans(&opened.disk(), ByteRange::new(MIB, SECTOR))),
        2
    );
}
