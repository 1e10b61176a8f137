//! Every interleaving (up to a bound of preemptions) of small cases on the engine as it ships:
//!
//! ```text
//! RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test --release -p vhd-core --test loom
//! ```
//!
//! LOOM_MAX_PREEMPTIONS replaces the bound of each model. The file below the disk knows what is durable, and
//! checks with each write what a crash would leave that keeps this write and no other.
#![cfg(loom)]

mod support;

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use loom::sync::atomic::AtomicUsize;
use loom::thread;
use support::forge::Forge;
use vhd_block::gate::Gate;
use vhd_core::device::{
    BlockDevice, ByteRange, LayeredDevice, LeafMerge, LeafMergeEnd, LiveDevice, ReadSpan, WriteSpan,
};
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::{MemoryFile, Segment, StorageFile};
use vhd_core::units::{VirtualOffset, u64_from, usize_from};

const SECTOR: usize = 512;
const SECTORS_PER_BLOCK: usize = 4;
const BLOCKS: usize = 2;
const SIZE: usize = BLOCKS * SECTORS_PER_BLOCK * SECTOR;
const TABLE_OFFSET: u64 = 1536;
/// What a parent holds, everywhere.
const PARENT: u8 = b'P';

/// What a file says of the sectors of the disk: their first byte, where the image has them.
type Content = [Option<u8>; BLOCKS * SECTORS_PER_BLOCK];

/// Reads an image the way any program does that opens it after a crash.
fn parse(file: &MemoryFile) -> Content {
    let mut content = [None; BLOCKS * SECTORS_PER_BLOCK];
    for (block, sectors) in (0..).zip(content.chunks_mut(SECTORS_PER_BLOCK)) {
        let mut entry = [0; 4];
        read(file, &mut entry, TABLE_OFFSET + 4 * block);
        if entry == [0xFF; 4] {
            continue;
        }
        let bitmap_at = u64::from(u32::from_be_bytes(entry)) * u64_from(SECTOR);
        let mut bitmap = [0];
        read(file, &mut bitmap, bitmap_at);
        for (sector, found) in sectors.iter_mut().enumerate() {
            if bitmap[0] & (0x80 >> sector) != 0 {
                let mut first = [0];
                read(file, &mut first, bitmap_at + u64_from((1 + sector) * SECTOR));
                *found = Some(first[0]);
            }
        }
    }
    content
}

fn read(file: &MemoryFile, buf: &mut [u8], offset: u64) {
    file.read_exact_at(buf, offset)
        .expect("metadata refers to bytes in the file");
}

/// A file that knows what is durable. Its lock is none of loom's: a call is one step.
#[derive(Debug)]
struct OrderedFile {
    state: Mutex<State>,
    /// Counts the calls, so that loom tries them in every order; it orders nothing else.
    clock: AtomicUsize,
    differencing: bool,
}

#[derive(Debug)]
struct State {
    durable: MemoryFile,
    current: MemoryFile,
    syncs: usize,
}

impl OrderedFile {
    fn new(forge: &Forge, differencing: bool) -> Arc<Self> {
        let state = State {
            durable: MemoryFile::from_bytes(forge.build()),
            current: MemoryFile::from_bytes(forge.build()),
            syncs: 0,
        };
        Arc::new(Self {
            state: Mutex::new(state),
            clock: AtomicUsize::new(0),
            differencing,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is locked")
    }

    /// For a call of the engine.
    fn step(&self) -> MutexGuard<'_, State> {
        self.clock.fetch_add(1, Ordering::Relaxed);
        self.lock()
    }

    /// What a crash leaves that loses everything since the last sync.
    fn durable(&self) -> Content {
        parse(&self.lock().durable)
    }

    fn syncs(&self) -> usize {
        self.lock().syncs
    }
}

impl StorageFile for OrderedFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.step().current.read_exact_at(buf, offset)
    }

    fn read_exact_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<()> {
        self.step().current.read_exact_vectored_at(bufs, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let state = self.step();
        state.current.write_all_at(buf, offset)?;
        let crashed = state.durable.duplicate();
        crashed.write_all_at(buf, offset)?;
        for (sector, found) in parse(&crashed).into_iter().enumerate() {
            // A new block of an image without a parent is full, and what was not written in it is zero.
            let garbage = found == Some(0) && self.differencing || found == Some(GARBAGE);
            // A second panic, of a disk that a failed test drops, would hide the first.
            assert!(
                !garbage || std::thread::panicking(),
                "INV-01, INV-02: sector {sector} is there before its data"
            );
        }
        Ok(())
    }

    fn write_all_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<()> {
        let bytes: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.write_all_at(&bytes, offset)
    }

    fn len(&self) -> io::Result<u64> {
        self.step().current.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step().current.set_len(len)
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.step();
        state.durable = state.current.duplicate();
        state.syncs += 1;
        Ok(())
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.step().current.punch_hole(offset, len)
    }

    fn zero_range(&self, offset: u64, len: u64) -> io::Result<()> {
        self.punch_hole(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.step().current.allocate(offset, len)
    }

    fn segment_at(&self, offset: u64) -> io::Result<(Segment, u64)> {
        self.step().current.segment_at(offset)
    }

    fn share_range_from(&self, _: &dyn StorageFile, _: u64, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Bytes of a write that was given up.
const GARBAGE: u8 = 0xEE;

/// A disk of two blocks and the file below it. Clones are the same disk.
#[derive(Clone)]
struct Disk {
    device: Arc<LayeredDevice>,
    file: Arc<OrderedFile>,
}

impl Disk {
    fn differencing() -> Self {
        let parent: Arc<dyn StorageFile> = Arc::new(MemoryFile::from_bytes(vec![PARENT; SIZE]));
        Self::new(&Forge::differencing(u64_from(SIZE), 2048), &[parent])
    }

    fn dynamic() -> Self {
        Self::new(&Forge::dynamic(u64_from(SIZE), 2048), &[])
    }

    fn new(forge: &Forge, parents: &[Arc<dyn StorageFile>]) -> Self {
        let file = OrderedFile::new(forge, !parents.is_empty());
        let leaf = Arc::clone(&file) as Arc<dyn StorageFile>;
        let device = support::open(leaf, parents, &OpenMode::read_write()).expect("the image opens");
        Self {
            device: Arc::new(device),
            file,
        }
    }

    fn write(&self, sector: usize, byte: u8) {
        let bytes = [byte; SECTOR];
        self.device
            .write_vectored_at(&[IoSlice::new(&bytes)], offset(sector), false)
            .expect("no fault");
    }

    /// The byte that the whole sector reads.
    fn read(&self, sector: usize) -> u8 {
        let mut bytes = [0; SECTOR];
        self.device
            .read_vectored_at(&mut [IoSliceMut::new(&mut bytes)], offset(sector))
            .expect("no fault");
        assert!(bytes.iter().all(|&byte| byte == bytes[0]));
        bytes[0]
    }

    /// Flushes; a crash from here on keeps what is in `sector`.
    fn flush_and_expect(&self, sector: usize, byte: u8) {
        self.device.flush().expect("no fault");
        assert_eq!(self.file.durable()[sector], Some(byte), "sector {sector} was flushed");
    }
}

fn offset(sector: usize) -> u64 {
    u64_from(sector * SECTOR)
}

/// Runs the works on one disk at once, in every interleaving with at most `preemptions` switches of a thread
/// that could have gone on, and then `end`.
///
/// Loom looks for a conflict in the last access alone, so that it misses a load before another thread's store
/// when that thread loaded too. Both orders of spawning, and the file's clock, make up for that.
fn race<const N: usize>(preemptions: usize, setup: fn() -> Disk, works: [fn(&Disk); N], end: fn(&Disk)) {
    let mut reversed = works;
    reversed.reverse();
    let mut runs = 0;
    for works in [works, reversed] {
        // None of loom's: it counts what loom repeats.
        let counter = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&counter);
        let mut builder = loom::model::Builder::new();
        builder.max_branches = 20_000;
        builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
        builder.check(move || {
            counted.fetch_add(1, Ordering::Relaxed);
            let disk = setup();
            let threads = works.map(|work| {
                let disk = disk.clone();
                thread::spawn(move || work(&disk))
            });
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            end(&disk);
        });
        runs += counter.load(Ordering::Relaxed);
    }
    eprintln!("interleavings: {runs}");
}

/// A block that is published with its first sector.
fn one_block() -> Disk {
    let disk = Disk::differencing();
    disk.write(0, b'a');
    disk.flush_and_expect(0, b'a');
    disk
}

#[test]
fn two_writers_allocate_the_same_block() {
    race(
        5,
        Disk::differencing,
        [|disk| disk.write(0, b'a'), |disk| disk.write(1, b'b')],
        |disk| {
            assert_eq!([disk.read(0), disk.read(1), disk.read(2)], [b'a', b'b', PARENT]);
            assert_eq!(disk.device.leaf().allocated_bytes(), 2048);
            disk.flush_and_expect(0, b'a');
            disk.flush_and_expect(1, b'b');
        },
    );
}

#[test]
fn a_reader_of_a_new_block_sees_its_data_or_the_parents() {
    let reader = |disk: &Disk| {
        let seen = disk.read(1);
        assert!([PARENT, b'a'].contains(&seen), "{seen:#x}");
        assert_eq!(disk.read(2), PARENT);
        if seen == b'a' {
            assert_eq!(disk.read(1), b'a', "seen once, seen ever after");
        }
    };
    race(5, Disk::differencing, [|disk| disk.write(1, b'a'), reader], |disk| {
        assert_eq!(disk.read(1), b'a');
    });
}

#[test]
fn a_reader_of_a_new_block_sees_its_data_or_zeroes() {
    let reader = |disk: &Disk| {
        assert!([0, b'a'].contains(&disk.read(1)));
        assert_eq!(disk.read(2), 0);
    };
    race(5, Disk::dynamic, [|disk| disk.write(1, b'a'), reader], |disk| {
        assert_eq!([disk.read(0), disk.read(1)], [0, b'a']);
    });
}

#[test]
fn a_reader_of_a_new_sector_sees_its_data_or_the_parents() {
    let reader = |disk: &Disk| {
        assert!([PARENT, b'b'].contains(&disk.read(1)));
        assert_eq!([disk.read(0), disk.read(2)], [b'a', PARENT]);
    };
    race(5, one_block, [|disk| disk.write(1, b'b'), reader], |disk| {
        assert_eq!(disk.read(1), b'b');
    });
}

/// INV-02: bits that are set while a flush takes its snapshot.
#[test]
fn inv_02_no_bit_is_lost_beside_a_flush() {
    let setup = || {
        let disk = one_block();
        disk.write(1, b'b');
        disk
    };
    let flusher = |disk: &Disk| disk.flush_and_expect(1, b'b');
    race(5, setup, [|disk| disk.write(2, b'c'), flusher], |disk| {
        disk.flush_and_expect(2, b'c');
        assert_eq!(disk.file.durable()[..4], [Some(b'a'), Some(b'b'), Some(b'c'), None]);
    });
}

/// INV-02: the same in a block that the flush publishes.
#[test]
fn inv_02_no_bit_of_a_new_block_is_lost_beside_a_flush() {
    let setup = || {
        let disk = Disk::differencing();
        disk.write(0, b'a');
        disk
    };
    let flusher = |disk: &Disk| disk.flush_and_expect(0, b'a');
    race(5, setup, [|disk| disk.write(1, b'b'), flusher], |disk| {
        disk.flush_and_expect(1, b'b');
    });
}

/// INV-02: a writer that finds the bits of its block pending already counts on the flush that follows.
#[test]
fn inv_02_a_flush_has_the_bits_of_both_writers_of_a_block() {
    let second = |disk: &Disk| {
        disk.write(2, b'c');
        disk.flush_and_expect(2, b'c');
    };
    race(5, one_block, [|disk| disk.write(1, b'b'), second], |disk| {
        disk.flush_and_expect(1, b'b');
    });
}

/// INV-02: a writer of a sector whose bit another writer has just set, and not listed yet.
#[test]
fn inv_02_a_flush_has_a_bit_that_another_writer_of_the_sector_set() {
    let second = |disk: &Disk| {
        disk.write(1, b'c');
        disk.device.flush().expect("no fault");
        let durable = disk.file.durable()[1];
        assert!([Some(b'b'), Some(b'c')].contains(&durable), "{durable:?}");
    };
    race(5, one_block, [|disk| disk.write(1, b'b'), second], |disk| {
        disk.device.flush().expect("no fault");
    });
}

/// INV-01: a block that is allocated while a flush publishes its neighbour in the table. Were it published
/// too, the bit of its next sector would go to the file like one of an unknown block: before its data.
#[test]
fn inv_01_an_unpublished_entry_never_reaches_the_file() {
    let setup = || {
        let disk = Disk::differencing();
        disk.write(0, b'a');
        disk
    };
    let writer = |disk: &Disk| {
        disk.write(SECTORS_PER_BLOCK, b'b');
        disk.write(SECTORS_PER_BLOCK + 1, b'c');
    };
    race(5, setup, [writer, |disk| disk.flush_and_expect(0, b'a')], |disk| {
        disk.flush_and_expect(SECTORS_PER_BLOCK, b'b');
        disk.flush_and_expect(SECTORS_PER_BLOCK + 1, b'c');
    });
}

/// INV-01: a write to a block that another thread has just allocated.
#[test]
fn inv_01_a_flush_has_a_block_that_someone_else_allocated() {
    let second = |disk: &Disk| {
        disk.write(1, b'b');
        disk.flush_and_expect(1, b'b');
    };
    race(5, Disk::differencing, [|disk| disk.write(0, b'a'), second], |disk| {
        disk.flush_and_expect(0, b'a');
    });
}

/// Flushes at once: none returns before a run that began after it was asked for, and there is a run for each
/// at most.
#[test]
fn flushes_are_coalesced_and_none_returns_early() {
    let setup = || {
        let disk = Disk::dynamic();
        disk.write(0, b'x');
        disk.flush_and_expect(0, b'x');
        disk
    };
    let works: [fn(&Disk); 3] = [
        |disk| {
            disk.write(1, b'a');
            disk.flush_and_expect(1, b'a');
        },
        |disk| {
            disk.write(2, b'b');
            disk.flush_and_expect(2, b'b');
        },
        |disk| {
            disk.write(3, b'c');
            disk.flush_and_expect(3, b'c');
        },
    ];
    race(3, setup, works, |disk| {
        assert!((3..=5).contains(&disk.file.syncs()), "two for the setup")
    });
}

/// INV-04: space whose write was given up, with its bytes in it, goes to whoever comes next as zeroes.
#[test]
fn inv_04_a_reservation_that_is_rolled_back() {
    let gives_up = |disk: &Disk| {
        let span = disk
            .device
            .leaf()
            .resolve_write(VirtualOffset(0), 2048)
            .expect("no fault");
        let bytes = [GARBAGE; 2048];
        span.file()
            .write_all_at(&bytes[..usize_from(span.len())], span.file_offset().0)
            .expect("no fault");
    };
    let other = |disk: &Disk| {
        disk.write(SECTORS_PER_BLOCK, b'b');
        disk.flush_and_expect(SECTORS_PER_BLOCK, b'b');
    };
    race(5, Disk::dynamic, [gives_up, other], |disk| {
        disk.write(1, b'a');
        assert_eq!([disk.read(0), disk.read(1), disk.read(2)], [0, b'a', 0]);
        assert_eq!([disk.read(4), disk.read(5)], [b'b', 0]);
        disk.flush_and_expect(1, b'a');
        assert_eq!(disk.file.durable()[0], Some(0));
    });
}

/// A disk in use, its leaf, and the child that it is to go on in.
#[derive(Clone)]
struct InUse {
    device: Arc<LiveDevice>,
    leaf: Arc<OrderedFile>,
    child: Arc<OrderedFile>,
}

impl InUse {
    fn new() -> Self {
        let disk = Disk::dynamic();
        disk.write(0, b'a');
        disk.device.flush().expect("no fault");
        Self {
            device: Arc::new(LiveDevice::new(disk.device)),
            leaf: disk.file,
            child: OrderedFile::new(&Forge::differencing(u64_from(SIZE), 2048), true),
        }
    }

    fn write(&self, sector: usize, byte: u8) {
        let bytes = [byte; SECTOR];
        let written = self
            .device
            .write_vectored_at(&[IoSlice::new(&bytes)], offset(sector), false);
        written.expect("no fault, and no request is refused");
    }

    fn read(&self, sector: usize) -> u8 {
        byte_of(&*self.device, sector)
    }

    /// Takes the snapshot, and reads it.
    fn switch(&self) -> u8 {
        let child = Arc::clone(&self.child) as Arc<dyn StorageFile>;
        let child = Image::open(child, &OpenMode::read_write()).expect("the image opens");
        let next = self.device.prepare(child);
        LiveDevice::switch(vec![(&*self.device, next)]).expect("no other switch");
        self.frozen(1)
    }

    fn frozen(&self, sector: usize) -> u8 {
        byte_of(&self.device.present().below().expect("it was switched"), sector)
    }

    /// What a crash leaves of the sector that loses everything since the last sync of each file.
    fn durable(&self, sector: usize) -> Option<u8> {
        self.child.durable()[sector].or(self.leaf.durable()[sector])
    }
}

fn byte_of(device: &dyn BlockDevice, sector: usize) -> u8 {
    let mut bytes = [0; SECTOR];
    let read = device.read_vectored_at(&mut [IoSliceMut::new(&mut bytes)], offset(sector));
    read.expect("no fault");
    bytes[0]
}

/// Runs a switch beside the works.
fn race_switch<const N: usize>(preemptions: usize, works: [fn(&InUse); N], end: fn(&InUse, u8)) {
    let counter = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&counter);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 50_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let disk = InUse::new();
        let threads = works.map(|work| {
            let disk = disk.clone();
            thread::spawn(move || work(&disk))
        });
        let kept = disk.switch();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(disk.frozen(1), kept, "INV-50: nothing is written to what is frozen");
        end(&disk, kept);
    });
    eprintln!("interleavings: {}", counter.load(Ordering::Relaxed));
}

/// INV-50: a write is in the snapshot, or only in the new leaf; never lost, and never in the one after the other.
#[test]
fn inv_50_a_write_beside_a_switch_is_before_or_behind_it() {
    race_switch(6, [|disk| disk.write(1, b'b')], |disk, kept| {
        assert!([0, b'b'].contains(&kept));
        assert_eq!([disk.read(0), disk.read(1)], [b'a', b'b']);
    });
}

/// INV-51: what was flushed is durable, in whichever file it is.
#[test]
fn inv_51_a_flush_beside_a_switch_has_what_was_written_before_it() {
    let writer = |disk: &InUse| {
        disk.write(1, b'b');
        disk.device.flush().expect("no fault");
        assert_eq!(disk.durable(1), Some(b'b'), "it was flushed");
    };
    race_switch(5, [writer], |disk, _| {
        disk.device.present().settle().expect("no fault");
        assert_eq!(disk.durable(1), Some(b'b'));
    });
}

/// INV-50: readers see a write for good from when they saw it.
#[test]
fn inv_50_a_reader_beside_a_switch_goes_back_to_nothing() {
    let reader = |disk: &InUse| {
        let first = disk.read(1);
        assert!([0, b'b'].contains(&first));
        assert!(first == 0 || disk.read(1) == b'b', "seen once, seen ever after");
    };
    race_switch(3, [|disk| disk.write(1, b'b'), reader], |disk, _| {
        assert_eq!(disk.read(1), b'b');
    });
}

fn sector_range(sector: usize) -> ByteRange {
    ByteRange::new(offset(sector), u64_from(SECTOR))
}

/// Puts the byte into a place of a disk that is held.
fn put(span: WriteSpan, byte: u8) {
    let written = span.file().write_all_at(&[byte; SECTOR], span.offset());
    written.expect("no fault");
    span.complete().expect("no fault");
}

/// The byte that a span reads.
fn byte_in(span: &ReadSpan) -> u8 {
    let mut bytes = [0; SECTOR];
    if let ReadSpan::Data { file, offset, .. } = span {
        file.read_exact_at(&mut bytes, *offset).expect("no fault");
    }
    bytes[0]
}

/// INV-80: two places in one new block are held at once by two threads, and one more is given up.
#[test]
fn inv_80_places_of_one_new_block_are_held_at_once() {
    let first = |disk: &Disk| {
        put(disk.device.resolve_write(sector_range(0)).expect("no fault"), b'a');
        disk.flush_and_expect(0, b'a');
    };
    let second = |disk: &Disk| {
        let given_up = disk.device.resolve_write(sector_range(3)).expect("no fault");
        put(disk.device.resolve_write(sector_range(1)).expect("no fault"), b'b');
        drop(given_up);
    };
    race(4, Disk::differencing, [first, second], |disk| {
        assert_eq!(
            [0, 1, 2, 3].map(|sector| disk.read(sector)),
            [b'a', b'b', PARENT, PARENT]
        );
        assert_eq!(disk.device.leaf().allocated_bytes(), 2048);
        disk.flush_and_expect(1, b'b');
    });
}

/// INV-81: a place to write to that is held beside a switch: the write is in the snapshot or behind it, and what is frozen
/// does not change.
#[test]
fn inv_81_a_place_that_is_held_beside_a_switch() {
    let writer = |disk: &InUse| put(disk.device.resolve_write(sector_range(1)).expect("no fault"), b'b');
    race_switch(4, [writer], |disk, kept| {
        assert!([0, b'b'].contains(&kept));
        assert_eq!([disk.read(0), disk.read(1)], [b'a', b'b']);
    });
}

/// INV-80: a span that is held across a switch reads what was there when it was made, or what was written since.
#[test]
fn inv_80_a_span_that_is_held_across_a_switch() {
    let reader = |disk: &InUse| {
        let least = disk.read(1);
        let span = disk.device.resolve_read(sector_range(1)).expect("no fault");
        // The switch may come here.
        let seen = byte_in(&span);
        assert!([0, b'b'].contains(&seen));
        assert!(least == 0 || seen == b'b', "what had been written is read");
    };
    race_switch(3, [|disk| disk.write(1, b'b'), reader], |disk, _| {
        assert_eq!(disk.read(1), b'b');
    });
}

/// A disk in use whose leaf is merged into its parent.
#[derive(Clone)]
struct Merged {
    device: Arc<LiveDevice>,
    leaf: Arc<OrderedFile>,
    parent: Arc<OrderedFile>,
    /// The parent was said to be the leaf.
    committed: Arc<AtomicU64>,
}

impl Merged {
    /// The parent has sector 0, the leaf over it 0 and 1; all is durable.
    fn new() -> Self {
        let base = Disk::dynamic();
        base.write(0, b'p');
        base.device.flush().expect("no fault");
        let parent = base.file;
        drop(base.device);
        let leaf = OrderedFile::new(&Forge::differencing(u64_from(SIZE), 2048), true);
        let below = Arc::clone(&parent) as Arc<dyn StorageFile>;
        let device = support::open(Arc::clone(&leaf) as _, &[below], &OpenMode::read_write()).expect("the image opens");
        let merged = Self {
            device: Arc::new(LiveDevice::new(Arc::new(device))),
            leaf,
            parent,
            committed: Arc::new(AtomicU64::new(0)),
        };
        merged.write(0, b'a');
        merged.write(1, b'b');
        merged.device.flush().expect("no fault");
        merged
    }

    fn write(&self, sector: usize, byte: u8) {
        let bytes = [byte; SECTOR];
        let written = self
            .device
            .write_vectored_at(&[IoSlice::new(&bytes)], offset(sector), false);
        written.expect("no fault, and no request is refused");
    }

    /// What a crash leaves of the disk: until the commit that is the leaf over the parent.
    fn durable(&self, sector: usize) -> Option<u8> {
        let of_leaf = match self.committed.load(Ordering::SeqCst) {
            0 => self.leaf.durable()[sector],
            _ => None,
        };
        of_leaf.or(self.parent.durable()[sector])
    }

    fn flush_and_expect(&self, sector: usize, byte: u8) {
        self.device.flush().expect("no fault");
        assert_eq!(self.durable(sector), Some(byte), "sector {sector} was flushed");
    }

    fn merge(&self) {
        let parent = Arc::clone(&self.parent) as Arc<dyn StorageFile>;
        let parent = Arc::new(Image::open(parent, &OpenMode::read_write()).expect("the image opens"));
        let work = LeafMerge {
            layers: 1,
            begin: &|_| {},
            advance: &|_| {},
            cancel: &std::sync::atomic::AtomicBool::new(false),
        };
        let (committed, durable) = (Arc::clone(&self.committed), Arc::clone(&self.parent));
        let commit = Box::new(move || {
            // INV-54: all that the leaf had is durable in the file that is said to be the disk from here on.
            let durable = durable.durable();
            assert_eq!(durable[0], Some(b'a'));
            assert!(durable[1] >= Some(b'b'), "{durable:?}");
            committed.store(1, Ordering::SeqCst);
            Ok(())
        });
        let merged = self.device.merge_leaf(&parent, &work, commit).expect("no fault");
        assert!(matches!(merged.end, LeafMergeEnd::Switched(_)));
    }
}

/// Runs a merge of the leaf beside the work, and flushes.
fn race_merge(preemptions: usize, work: fn(&Merged), end: fn(&Merged)) {
    let counter = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&counter);
    let mut builder = loom::model::Builder::new();
    builder.max_branches = 100_000;
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.check(move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let disk = Merged::new();
        let beside = disk.clone();
        let thread = thread::spawn(move || work(&beside));
        disk.merge();
        thread.join().unwrap();
        end(&disk);
        disk.device.flush().expect("no fault");
        assert_eq!(disk.committed.load(Ordering::SeqCst), 1);
        assert_eq!(disk.durable(0), Some(b'a'));
    });
    eprintln!("interleavings: {}", counter.load(Ordering::Relaxed));
}

/// INV-56: what is written while the leaf is copied is in the file that becomes the leaf.
#[test]
fn inv_56_a_write_beside_a_merge_is_in_the_new_leaf() {
    race_merge(
        3,
        |disk| disk.write(1, b'c'),
        |disk| {
            assert_eq!([0, 1].map(|sector| byte_of(&*disk.device, sector)), [b'a', b'c']);
        },
    );
}

/// INV-56, INV-81: the same through a place that is held.
#[test]
fn inv_81_a_place_that_is_held_beside_a_merge() {
    race_merge(
        2,
        |disk| put(disk.device.resolve_write(sector_range(1)).expect("no fault"), b'c'),
        |disk| {
            assert_eq!([0, 1].map(|sector| byte_of(&*disk.device, sector)), [b'a', b'c']);
        },
    );
}

/// INV-54: a flush beside a merge: what was flushed is durable in the file that is the leaf, before the commit and behind it.
#[test]
fn inv_54_a_flush_beside_a_merge_has_what_was_written() {
    race_merge(
        2,
        |disk| {
            disk.write(1, b'c');
            disk.flush_and_expect(1, b'c');
        },
        |disk| disk.flush_and_expect(1, b'c'),
    );
}

/// INV-82: what is behind a gate moves only when every lease was given back.
#[test]
fn inv_82_nothing_moves_under_a_lease() {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(5));
    builder.check(|| {
        // Where the bytes are, and the bytes of two places.
        let gate = Arc::new(Gate::new(0_usize));
        let places = Arc::new([b'a', 0].map(|byte| loom::sync::atomic::AtomicU8::new(byte)));
        let (user_gate, user_places) = (Arc::clone(&gate), Arc::clone(&places));
        let user = thread::spawn(move || {
            let passed = user_gate.pass();
            let (at, lease) = (*passed, passed.lease());
            drop(passed);
            assert_eq!(user_places[at].load(Ordering::Relaxed), b'a');
            user_places[at].store(b'b', Ordering::Relaxed);
            drop(lease);
        });
        let mut closed = gate.close();
        assert!(closed.wait_for_leases(std::time::Duration::MAX));
        let bytes = places[0].swap(0, Ordering::Relaxed);
        places[1].store(bytes, Ordering::Relaxed);
        *closed = 1;
        drop(closed);
        user.join().unwrap();
    });
}
