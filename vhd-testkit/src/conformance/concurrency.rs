//! Several threads on one device.

use std::io::{IoSlice, IoSliceMut};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use vhd_core::device::BlockDevice;
use vhd_core::units::{u64_from, usize_from};

use super::{Bench, read_all};
use crate::bytes::{Content, SECTOR, identify, pattern};
use crate::rng::{mix, rng};

const THREADS: u64 = 4;
/// Where the threads meet: a boundary for block sizes up to 2 MiB if the disk is that large.
const MEETING: u64 = 2 << 20;

/// What one thread owns: a logical block, but at least the sector that a pattern can be told from.
fn unit(bench: &Bench) -> u64 {
    bench.block.max(u64_from(SECTOR))
}

fn meeting(bench: &Bench) -> u64 {
    let middle = if bench.size() > MEETING + (64 << 10) {
        MEETING
    } else {
        bench.size() / 2
    };
    middle / unit(bench) * unit(bench)
}

fn write(device: &dyn BlockDevice, offset: u64, len: u64, generation: u64) {
    let bytes = pattern(offset, usize_from(len), generation);
    device
        .write_vectored_at(&[IoSlice::new(&bytes)], offset, false)
        .expect("a write beside others");
}

fn read(device: &dyn BlockDevice, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize_from(len)];
    device
        .read_vectored_at(&mut [IoSliceMut::new(&mut bytes)], offset)
        .expect("a read beside writes");
    bytes
}

/// Each thread owns every fourth block of the disk: all share every larger structure.
pub(super) fn disjoint(bench: &mut Bench) {
    let (block, blocks, steps) = (unit(bench), bench.size() / unit(bench), bench.steps);
    let seed = bench.random.u64(..);
    let (device, first) = (&*bench.device, meeting(bench) / block);
    let mine = |thread: u64| {
        let mut random = rng(mix(seed, thread));
        let mut written = Vec::new();
        for step in 0..u64::from(steps) {
            // Half of them around the meeting point, where first writes to one block collide.
            let near = if random.bool() {
                first.saturating_sub(32) + random.u64(..64)
            } else {
                random.u64(..blocks)
            };
            let at = (near / THREADS * THREADS + thread).min(blocks - 1);
            if at % THREADS != thread {
                continue;
            }
            let generation = 1000 + step * THREADS + thread;
            write(device, at * block, block, generation);
            let found = read(device, at * block, block);
            assert_eq!(
                found,
                pattern(at * block, found.len(), generation),
                "a thread does not read its own write"
            );
            written.push((at * block, generation));
            if random.u8(..32) == 0 {
                device.flush().expect("a flush beside writes");
            }
        }
        written
    };
    let written: Vec<(u64, u64)> = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(move || mine(thread))).collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a thread failed"))
            .collect()
    });
    for (offset, generation) in written {
        let content = pattern(offset, usize_from(block), generation);
        bench.shadow[usize_from(offset)..][..content.len()].copy_from_slice(&content);
    }
    bench.verify_all("after threads on disjoint blocks");
}

/// All threads write ranges that overlap around one boundary: each block is of one of the writes.
pub(super) fn overlapping(bench: &mut Bench) {
    let (block, seed) = (unit(bench), bench.random.u64(..));
    let (device, middle) = (&*bench.device, meeting(bench));
    let rounds = u64::from(bench.steps / 4);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                let mut random = rng(mix(seed, thread));
                for round in 0..rounds {
                    let start = middle - random.u64(1..=16) * block;
                    let end = middle + random.u64(1..=16) * block;
                    write(device, start, end - start, 1000 + round * THREADS + thread);
                }
            });
        }
    });
    let found = read_all(device);
    let reach = usize_from(16 * block);
    let (start, end) = (usize_from(middle) - reach, usize_from(middle) + reach);
    for at in (start..end).step_by(usize_from(block)) {
        let now = &found[at..at + usize_from(block)];
        let whole = match identify(now) {
            Content::Pattern { offset, generation } => offset == u64_from(at) && generation < 1000 + rounds * THREADS,
            Content::Zero => now == &bench.shadow[at..at + usize_from(block)],
            _ => false,
        };
        assert!(whole, "{at:#x} holds no write of any thread but {}", identify(now));
    }
    bench.shadow[start..end].copy_from_slice(&found[start..end]);
    bench.verify_all("outside of overlapping writes");
}

/// Whether each byte of the sector at `at` is of one of the generations.
fn is_torn_between(sector: &[u8], at: u64, generations: RangeInclusive<u64>) -> bool {
    let possible: Vec<_> = generations
        .map(|generation| pattern(at, sector.len(), generation))
        .collect();
    let mut bytes = sector.iter().enumerate();
    bytes.all(|(index, byte)| possible.iter().any(|bytes| bytes[index] == *byte))
}

/// One writer counts generations up over a range; a reader sees, in each sector, no generation older than the
/// last that was complete when it began, none that had not begun when it ended, and never a mix (unless
/// reads may be torn: then each byte is of one of them).
pub(super) fn racing(bench: &mut Bench) {
    let reach = (16 * bench.block)
        .max(32 << 10)
        .min(bench.size() / 4 / bench.block * bench.block);
    let (start, len) = (meeting(bench) - reach, 2 * reach);
    let (begun, complete, done) = (AtomicU64::new(1), AtomicU64::new(1), AtomicBool::new(false));
    let (device, torn_reads) = (&*bench.device, bench.torn_reads);
    write(device, start, len, 1);
    let check = |_reader: u64| {
        while !done.load(Ordering::Acquire) {
            let oldest = complete.load(Ordering::SeqCst);
            let found = read(device, start, len);
            let newest = begun.load(Ordering::SeqCst);
            for (index, sector) in found.chunks(SECTOR).enumerate() {
                let at = start + u64_from(index * SECTOR);
                let told = identify(sector);
                let fits = matches!(told, Content::Pattern { offset, generation }
                    if offset == at && (oldest..=newest).contains(&generation))
                    || torn_reads && is_torn_between(sector, at, oldest..=newest);
                assert!(
                    fits,
                    "a reader found {told} at {at:#x}, generations {oldest}..={newest} were possible"
                );
            }
        }
    };
    let rounds = u64::from(bench.steps / 2).max(10);
    thread::scope(|scope| {
        let readers: Vec<_> = (0..THREADS - 1)
            .map(|reader| scope.spawn(move || check(reader)))
            .collect();
        for generation in 2..2 + rounds {
            begun.store(generation, Ordering::SeqCst);
            write(device, start, len, generation);
            complete.store(generation, Ordering::SeqCst);
            // Let the readers in also where a write takes no time.
            thread::yield_now();
            if readers.iter().any(thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
        done.store(true, Ordering::Release);
        readers
            .into_iter()
            .for_each(|reader| reader.join().expect("a reader failed"));
    });
}
