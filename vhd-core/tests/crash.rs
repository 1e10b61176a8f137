//! Crashes after every file operation, in every way that the test kit knows: the image opens, `check` finds
//! at most leaks and a footer that can be restored, every flushed byte is there and every other one is old or
//! new; and work goes on in the crashed image and crashes again. Test names cite the invariant at stake.
//!
//! Each test prints how many crash states it looked at (`-- --nocapture`). The suite runs a bounded part;
//! the environment variable VHD_CRASH_SECONDS makes the random part as long as one likes:
//!
//! ```text
//! VHD_CRASH_SECONDS=3600 cargo test --release -p vhd-core --test crash -- --nocapture
//! ```
//!
//! A failure prints its seed; VHD_TEST_SEED replaces the first one.
#![cfg(not(loom))]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use support::crashing::{Counts, Crasher, Running};
use support::forge::{Forge, damage_copy, damage_tail};
use support::subject::Subject;
use support::view::Windows;
use vhd_core::check::FindingCode;
use vhd_core::device::{BlockDevice, ByteRange, ZeroOptions};
use vhd_core::format::UniqueId;
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::BlockIndex;
use vhd_testkit::bytes::pattern;
use vhd_testkit::conformance::read_all;
use vhd_testkit::rng::{SeedOnPanic, mix, seed};
use vhd_testkit::{CrashFile, HookFile, Op, Workload};

const SECTOR: u64 = 512;

/// What a parent holds: pattern, and every third 6 KiB zero.
fn parent_content(size: usize) -> Vec<u8> {
    let mut bytes = pattern(0, size, 0xFFF);
    bytes.chunks_mut(6 << 10).step_by(3).for_each(|part| part.fill(0));
    bytes
}

fn dynamic(name: &'static str, size: u64, block_size: u32) -> Subject {
    Subject::new(name, &Forge::dynamic(size, block_size))
}

fn differencing(name: &'static str, size: usize, block_size: u32) -> Subject {
    let forge = Forge::differencing(u64::try_from(size).expect("small"), block_size);
    Subject::new(name, &forge).over_raw(parent_content(size))
}

fn legacy(name: &'static str) -> Subject {
    let forge = Forge::dynamic(40 << 10, 4 << 10).with_block(BlockIndex(1), |_| true, &pattern(4 << 10, 4 << 10, 9));
    Subject::new(name, &forge).with_file(forge.build_legacy())
}

/// A leaf over a child of other blocks over a dynamic image, each with some sectors of its own.
fn over_a_chain(name: &'static str) -> Subject {
    let middle = Forge::differencing(40 << 10, 8 << 10);
    let middle = middle.with_block(BlockIndex(1), |sector| sector % 5 < 2, &pattern(8 << 10, 8 << 10, 0xE));
    let base = Forge::dynamic(30 << 10, 16 << 10);
    let base = base.with_block(BlockIndex(0), |sector| sector % 7 != 3, &pattern(0, 16 << 10, 0xB));
    let parents = [middle, base].map(|forge| Arc::new(MemoryFile::from_bytes(forge.build())) as Arc<dyn StorageFile>);
    Subject::new(name, &Forge::differencing(40 << 10, 4 << 10)).over(parents.into())
}

fn small_blocks() -> [Subject; 9] {
    [
        dynamic("dynamic, 4 KiB blocks", 40 << 10, 4 << 10),
        dynamic("dynamic, 64 KiB blocks", 200 << 10, 64 << 10),
        dynamic("dynamic, one-sector blocks", 150 << 10, 512),
        differencing("differencing, 4 KiB blocks", 40 << 10, 4 << 10),
        differencing("differencing, 64 KiB blocks", 200 << 10, 64 << 10),
        differencing("differencing, one-sector blocks", 150 << 10, 512),
        foreign("foreign bitmaps"),
        legacy("a footer of 511 bytes"),
        over_a_chain("over a chain"),
    ]
}

fn write(sector: u64, count: u64, fill: u64) -> Op {
    let (offset, len) = (sector * SECTOR, count * SECTOR);
    Op::Write { offset, len, fill }
}

fn fua(sector: u64, count: u64, fill: u64) -> Op {
    let (offset, len) = (sector * SECTOR, count * SECTOR);
    Op::FuaWrite { offset, len, fill }
}

fn zeroes(sector: u64, count: u64, may_unmap: bool) -> Op {
    let (offset, len) = (sector * SECTOR, count * SECTOR);
    Op::WriteZeroes { offset, len, may_unmap }
}

fn discard(sector: u64, count: u64) -> Op {
    let (offset, len) = (sector * SECTOR, count * SECTOR);
    Op::Discard { offset, len }
}

/// Scripts are short: more subsets of the un-synced changes of each step than for random work.
fn run_script(test: &str, subjects: impl IntoIterator<Item = Subject>, script: &[Op]) {
    let counts = Arc::new(Counts::default());
    for subject in subjects {
        scripted(subject, &counts).run(script.iter().copied());
    }
    counts.report(test);
}

fn scripted(subject: Subject, counts: &Arc<Counts>) -> Crasher {
    let mut crasher = Crasher::new(subject, counts, 1);
    crasher.limits.exhaustive_bits = 9;
    crasher.limits.random = 30;
    crasher
}

#[test]
fn inv_01_entries_of_several_table_sectors_after_their_blocks() {
    let subjects = [
        dynamic("one-sector blocks", 150 << 10, 512),
        differencing("one-sector blocks over a parent", 150 << 10, 512),
    ];
    let script = [
        write(0, 1, 1),
        write(130, 1, 2),
        Op::Flush,
        write(1, 2, 3),
        write(299, 1, 4),
        Op::Flush,
        // Entries in sectors of the table that hold published ones, and a block that the last flush made.
        write(129, 1, 5),
        write(1, 1, 6),
        write(270, 1, 7),
        Op::Flush,
        Op::Flush,
    ];
    run_script("inv_01", subjects, &script);
}

#[test]
fn inv_02_bits_of_published_blocks_after_their_data() {
    let subjects = [
        differencing("4 KiB blocks", 40 << 10, 4 << 10),
        differencing("64 KiB blocks", 200 << 10, 64 << 10),
        foreign("foreign bitmaps"),
    ];
    let script = [
        write(1, 1, 1),
        Op::Flush,
        write(3, 2, 2),
        Op::Flush,
        // One bit that is there, one that is not, one of the next block; then the whole block.
        write(4, 6, 3),
        write(2, 1, 4),
        Op::Flush,
        write(0, 8, 5),
        Op::Flush,
    ];
    run_script("inv_02", subjects, &script);
}

/// A dynamic image of another program: two blocks, in which every third sector is present. What crashes leave
/// in the absent ones is "stale" to a check, and old or new to programs that ignore the bitmap.
fn foreign(name: &'static str) -> Subject {
    let third = |sector: usize| sector.is_multiple_of(3);
    let mut data = pattern(0, 8 << 10, 0xF0);
    let hidden = data
        .chunks_mut(512)
        .enumerate()
        .filter(|(sector, _)| !third(sector % 8));
    hidden.for_each(|(_, bytes)| bytes.fill(0));
    let forge = Forge::dynamic(40 << 10, 4 << 10)
        .with_block(BlockIndex(0), third, &data[..4 << 10])
        .with_block(BlockIndex(1), third, &data[4 << 10..]);
    Subject::new(name, &forge).allowing(&[FindingCode::StaleSectors])
}

/// Three blocks of 32 MiB fill a chunk of the allocator; each window lies over the start of one.
fn large_blocks() -> [Subject; 2] {
    let (block, size) = (32 << 20, 8 * (32 << 20));
    let windows = Windows {
        size: 16 << 10,
        window: 2 << 10,
        stride: block - SECTOR,
    };
    let block = u32::try_from(block).expect("32 MiB");
    let over = Subject::new("32 MiB blocks over a parent", &Forge::differencing(size, block));
    [
        Subject::new("32 MiB blocks", &Forge::dynamic(size, block)).with_windows(windows),
        over.over_raw(parent_content(1 << 20)).with_windows(windows),
    ]
}

#[test]
fn inv_03_a_valid_footer_while_the_file_grows() {
    let mut script = Vec::new();
    for window in 0..8 {
        script.push(write(4 * window, 3, 1 + window));
        if window % 3 == 1 {
            script.push(Op::Flush);
        }
    }
    script.extend([Op::Reopen, write(0, 32, 20), Op::Flush]);
    run_script("inv_03 growth", large_blocks(), &script);
}

#[test]
fn inv_03_the_tail_is_valid_at_every_moment_of_a_close() {
    let counts = Arc::new(Counts::default());
    let [dynamic_large, _] = large_blocks();
    for subject in [dynamic_large, differencing("4 KiB blocks", 40 << 10, 4 << 10)] {
        let crasher = scripted(subject, &counts);
        let file = CrashFile::from_bytes(&crasher.subject.file);
        let device = crasher.subject.open(file.clone(), &OpenMode::read_write());
        let mut model = crasher.subject.model();
        // Nothing is pending when the close begins, so that only the trim is looked at.
        for op in [write(0, 4, 1), write(16, 4, 2), Op::Flush] {
            let begun = op.begin(&mut model);
            op.run(&device).expect("no fault");
            op.end(&mut model, begun);
        }
        let grown = file.len().expect("a file in memory");
        let closing = Crasher {
            tail_always: true,
            ..crasher
        };
        let running = Running::start(closing, file.clone(), model);
        device.close().expect("no fault");
        running.look_again();
        assert!(
            file.len().expect("a file in memory") < grown,
            "the close gives slack back"
        );
    }
    counts.report("inv_03 close");
}

/// Damaged and old footers, restored at open: every state of that, and of the growth that follows.
#[test]
fn inv_03_footers_are_restored_before_the_file_grows() {
    let forge = Forge::dynamic(40 << 10, 4 << 10);
    let forge = forge.with_block(BlockIndex(2), |_| true, &pattern(8 << 10, 4 << 10, 9));
    let files = [
        ("a damaged footer", damage_tail(forge.build())),
        ("no footer at the end", forge.build_truncated()),
        (
            "no footer, and an end inside a sector",
            [&forge.build_truncated()[..], &[0xEE; 100]].concat(),
        ),
        ("a damaged copy", damage_copy(forge.build())),
        ("a footer of 511 bytes", forge.build_legacy()),
        (
            "a footer of 511 bytes and a damaged copy",
            damage_copy(forge.build_legacy()),
        ),
        (
            "a copy of another size",
            forge.build_with_copy(|copy| copy.current_size -= 4 << 10),
        ),
        (
            "a copy that is some other disk's",
            forge.build_with_copy(|copy| copy.unique_id = UniqueId([1; 16])),
        ),
    ];
    let subjects = files.map(|(name, file)| Subject::new(name, &forge).with_file(file));
    let script = [
        write(17, 1, 1),
        write(0, 2, 2),
        Op::Flush,
        write(40, 1, 3),
        Op::Reopen,
        write(48, 1, 4),
    ];
    run_script("inv_03 restore", subjects, &script);
}

/// Space that a crash leaked holds old bytes; a new block never does.
#[test]
fn inv_04_leaked_space_is_not_handed_out() {
    let counts = Arc::new(Counts::default());
    for subject in [
        dynamic("4 KiB blocks", 40 << 10, 4 << 10),
        differencing("4 KiB blocks over a parent", 40 << 10, 4 << 10),
    ] {
        let crasher = scripted(subject, &counts);
        let (file, model) = (CrashFile::from_bytes(&crasher.subject.file), crasher.subject.model());
        let device = crasher.subject.open(file.clone(), &OpenMode::read_write());
        for op in [write(0, 8, 1), write(24, 8, 2)] {
            op.run(&device).expect("no fault");
        }
        // The crash that keeps all bytes of the blocks and nothing that refers to them.
        let crashed = file.snapshot().current();
        let running = Running::start(crasher, crashed, model);
        let mut device_after = running.open();
        for op in [
            write(3, 1, 3),
            write(25, 1, 4),
            Op::Flush,
            zeroes(10, 2, false),
            write(12, 1, 5),
        ] {
            device_after = running.step(device_after, op);
        }
        running.finish(device_after);
    }
    counts.report("inv_04");
}

/// A crash loses a bounded number of blocks, though nobody ever flushes: at the bound the engine does. What a
/// crash does to the flush itself is the other scenarios' business; this many pending blocks take too long there.
#[test]
fn inv_07_unpublished_blocks_are_bounded() {
    /// `MAX_UNPUBLISHED` of the engine.
    const BOUND: u64 = 1 << 16;
    const BLOCKS: u64 = BOUND + 100;
    let subject = dynamic("many blocks", BLOCKS * SECTOR, 512);
    let file = Arc::new(MemoryFile::from_bytes(subject.file.clone()));
    let published = || {
        let image = Image::open(Arc::new(file.duplicate()), &OpenMode::read_only()).expect("the file is valid");
        image.allocated_bytes() / SECTOR
    };
    let device = subject
        .try_open(Arc::clone(&file) as _, &OpenMode::read_write())
        .expect("the file is valid");
    for block in 0..BLOCKS {
        write(block, 1, block + 1).run(&device).expect("no fault");
        match block + 1 {
            count if count == BOUND - 1 => assert_eq!(published(), 0, "nothing is published without need"),
            count if count == BOUND => assert_eq!(published(), BOUND, "everything is, at the bound"),
            _ => {}
        }
    }
    assert_eq!(published(), BOUND);
}

/// Zeroes and discards where the parent has data, where it has zeroes, and where the leaf has data.
#[test]
fn inv_08_zeroes_hide_the_parent() {
    let subjects = [
        differencing("4 KiB blocks", 40 << 10, 4 << 10),
        differencing("64 KiB blocks", 200 << 10, 64 << 10),
        dynamic("no parent", 40 << 10, 4 << 10),
    ];
    // The parent is zero in sectors 0..12 and 36..48.
    let script = [
        zeroes(10, 6, true),
        write(22, 3, 1),
        discard(20, 8),
        zeroes(23, 30, false),
        Op::Flush,
        discard(0, 64),
        write(2, 1, 2),
        zeroes(1, 20, true),
        Op::Flush,
        zeroes(0, 80, true),
        Op::Flush,
        write(15, 2, 3),
    ];
    run_script("inv_08", subjects, &script);
}

#[test]
fn fua_is_durable_on_return() {
    let subjects = [
        dynamic("4 KiB blocks", 40 << 10, 4 << 10),
        differencing("4 KiB blocks over a parent", 40 << 10, 4 << 10),
        Subject::new("a fixed image", &Forge::fixed(16 << 10)),
    ];
    let script = [fua(0, 3, 1), write(8, 4, 2), fua(4, 2, 3), fua(0, 1, 4), fua(7, 10, 5)];
    run_script("fua", subjects, &script);
}

#[test]
fn fua_zeroes_are_durable_on_return() {
    let options = ZeroOptions {
        fua: true,
        ..ZeroOptions::default()
    };
    for subject in [
        dynamic("dynamic", 40 << 10, 4 << 10),
        differencing("differencing", 40 << 10, 4 << 10),
    ] {
        let (file, mut model) = (CrashFile::from_bytes(&subject.file), subject.model());
        let device = subject.open(file.clone(), &OpenMode::read_write());
        write(10, 8, 1).run(&device).expect("no fault");
        device
            .write_zeroes(ByteRange::new(12 * SECTOR, 4 * SECTOR), options)
            .expect("no fault");
        model.write(10 * SECTOR, &pattern(10 * SECTOR, 8 << 9, 1));
        model.write_zeroes(12 * SECTOR, 4 * SECTOR);
        model.flushed();
        let survivors = subject.open(file.snapshot().durable(), &OpenMode::read_only());
        model.check(&read_all(&survivors)).expect("what FUA promised");
    }
}

/// What may race a flush, on an image with a published block (0 to 7), one whose bits are pending (8 to 15)
/// and one that is unpublished (16 to 23).
const RACING: [Op; 9] = [
    Op::Write {
        offset: 0x3000,
        len: 0x200,
        fill: 50,
    }, // a new block
    Op::Write {
        offset: 0x200,
        len: 0x200,
        fill: 51,
    }, // a bit of the published block
    Op::Write {
        offset: 0x1600,
        len: 0x400,
        fill: 52,
    }, // bits of the one with pending bits
    Op::Write {
        offset: 0x2400,
        len: 0x200,
        fill: 53,
    }, // a bit of the unpublished one
    Op::Write {
        offset: 0x2000,
        len: 0x1000,
        fill: 54,
    }, // the whole unpublished one
    Op::Write {
        offset: 0,
        len: 0x4000,
        fill: 55,
    }, // all of it
    Op::WriteZeroes {
        offset: 0x1800,
        len: 0x1000,
        may_unmap: true,
    },
    Op::WriteZeroes {
        offset: 0x4000,
        len: 0x3000,
        may_unmap: false,
    },
    Op::Discard { offset: 0, len: 0x5000 },
];

/// Runs a flush with `racing` done by someone else before its file operation number `at`; whether it has so many.
fn race(crasher: &Crasher, racing: Op, at: usize) -> bool {
    let subject = &crasher.subject;
    let running = Running::start(crasher.clone(), CrashFile::from_bytes(&subject.file), subject.model());
    let file = HookFile::new(running.file().clone());
    let hooks = file.hooks();
    let device = Arc::new(subject.open(file, &OpenMode::read_write()));
    for op in [
        write(0, 1, 1),
        write(8, 1, 2),
        Op::Flush,
        write(9, 1, 3),
        write(17, 1, 4),
    ] {
        running.apply(&device, op);
    }
    let raced = Arc::new(AtomicBool::new(false));
    let (mut operations, other, flag, model) = (0, Arc::clone(&device), Arc::clone(&raced), running.clone());
    hooks.set(Some(Box::new(move |_| {
        if operations == at {
            let begun = racing.begin(&mut model.model());
            racing.run(&*other).expect("no fault");
            racing.end(&mut model.model(), begun);
            flag.store(true, Ordering::Relaxed);
        }
        operations += 1;
    })));
    let begun = Op::Flush.begin(&mut running.model());
    device.flush().expect("no fault");
    hooks.set(None);
    Op::Flush.end(&mut running.model(), begun);
    running.look_again();
    running.compare(&device);
    running.apply(&device, Op::Flush);
    running.finish(Arc::into_inner(device).expect("the hook is gone"));
    raced.load(Ordering::Relaxed)
}

#[test]
fn inv_01_02_writes_that_race_a_flush() {
    let counts = Arc::new(Counts::default());
    for subject in [
        dynamic("dynamic", 40 << 10, 4 << 10),
        differencing("differencing", 40 << 10, 4 << 10),
        foreign("foreign bitmaps"),
    ] {
        let mut crasher = Crasher::new(subject, &counts, 3);
        crasher.depth = 1;
        for racing in RACING {
            let points = (0..).take_while(|&at| race(&crasher, racing, at)).count();
            assert!(points >= 2, "a flush with something to publish has two syncs");
        }
    }
    counts.report("inv_01_02 races");
}

/// The same with threads: sampled, and not the same in each run.
#[test]
fn inv_01_02_threads_that_race_flushes() {
    let counts = Arc::new(Counts::default());
    for (number, subject) in (0..).zip(small_blocks().into_iter().chain(large_blocks())) {
        let mut crasher = Crasher::new(subject, &counts, number);
        crasher.depth = 0;
        crasher.limits.exhaustive_bits = 3;
        crasher.limits.random = 3;
        let subject = Arc::clone(&crasher.subject);
        let running = Running::start(crasher, CrashFile::from_bytes(&subject.file), subject.model());
        let device = running.open();
        // Held while a write is under way: a flush may count on the writes that returned before it.
        let writing = Mutex::new(());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let changes = Workload::new(number, subject.geometry())
                    .filter(|op| !matches!(op, Op::Flush | Op::Reopen | Op::FuaWrite { .. }));
                for op in changes.take(40) {
                    let _alone = writing.lock().expect("no panic");
                    let begun = op.begin(&mut running.model());
                    op.run(&device).expect("no fault");
                    op.end(&mut running.model(), begun);
                }
                done.store(true, Ordering::Release);
            });
            while !done.load(Ordering::Acquire) {
                let alone = writing.lock().expect("no panic");
                let begun = Op::Flush.begin(&mut running.model());
                drop(alone);
                device.flush().expect("no fault");
                Op::Flush.end(&mut running.model(), begun);
                running.look_again();
            }
        });
        running.compare(&device);
        running.finish(device);
    }
    counts.report("inv_01_02 threads");
}

#[test]
fn random_work() {
    let (first, counts) = (seed(0xC4A5), Arc::new(Counts::default()));
    let seconds = std::env::var("VHD_CRASH_SECONDS")
        .ok()
        .map(|text| text.parse().expect("VHD_CRASH_SECONDS is a number"));
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut round = 0;
    while end.map_or(round < 2, |end| Instant::now() < end) {
        // A check of large blocks takes nine tenths of the time: without a time to fill they have one round.
        let large = (round == 0 || seconds.is_some())
            .then(large_blocks)
            .into_iter()
            .flatten();
        for subject in small_blocks().into_iter().chain(large) {
            let seed = mix(first, round);
            let _guard = SeedOnPanic::new("random work", seed);
            let workload = Workload::new(seed, subject.geometry()).take(20);
            Crasher::new(subject, &counts, seed).run(workload);
        }
        round += 1;
    }
    counts.report("random_work");
}
