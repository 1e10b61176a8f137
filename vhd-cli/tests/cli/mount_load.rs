//! `vhd mount` with many threads, with the largest disk, and killed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use rustix::fs::{FallocateFlags, fallocate};

use crate::mounted::{Mounted, active_file, fuse, load_time, seed, unmount};
use crate::support::{Lab, MIB};

const READERS: u64 = 16;
const WRITERS: u64 = 4;
/// Bytes that are written as one.
const SLOT: u64 = 64 << 10;
/// Linux `O_DIRECT`.
const DIRECT: i32 = 0x4000;

/// What a slot has after its n-th write; before the first one, and after every seventh, zeroes.
fn content(slot: u64, generation: u64) -> Vec<u8> {
    let len = usize::try_from(SLOT).unwrap();
    if is_hole(generation) {
        return vec![0; len];
    }
    let mut bytes = Vec::with_capacity(len);
    for word in 0..SLOT / 8 {
        bytes.extend(
            (slot << 48 ^ generation << 16 ^ word)
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .to_le_bytes(),
        );
    }
    bytes
}

fn is_hole(generation: u64) -> bool {
    generation.is_multiple_of(7)
}

fn write(file: &File, slot: u64, generation: u64) {
    if is_hole(generation) {
        let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        fallocate(file, hole, slot * SLOT, SLOT).unwrap();
    } else {
        file.write_all_at(&content(slot, generation), slot * SLOT).unwrap();
    }
}

fn open(path: &Path, direct: bool) -> File {
    let flags = if direct { DIRECT } else { 0 };
    File::options()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
        .unwrap()
}

/// Each slot has a lock, so that what a reader must find is known; the kernel and the server see all of them at once.
#[test]
fn sixteen_readers_and_four_writers_agree() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    let slots: Vec<RwLock<u64>> = (0..384).map(|_| RwLock::new(0)).collect();
    let count = u64::try_from(slots.len()).unwrap();
    lab.dynamic("parent.vhd", count * SLOT);
    lab.run(&["create", "disk.avhd", "--parent", "parent.vhd"], 0);
    let mounted = Mounted::new(&lab, &["--rw", "disk.avhd"]);
    let path = mounted.path("disk.raw");
    let (seed, until) = (seed(), Instant::now() + load_time());
    let (reads, writes) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for number in 0..READERS + WRITERS {
            let (slots, path, reads, writes) = (&slots, &path, &reads, &writes);
            scope.spawn(move || {
                let mut rng = Rng::with_seed(seed + number);
                let file = open(path, number % 2 == 1);
                let mut read = vec![0; usize::try_from(SLOT).unwrap()];
                while Instant::now() < until {
                    let slot = rng.u64(..count);
                    let lock = &slots[usize::try_from(slot).unwrap()];
                    if number < READERS {
                        let generation = lock.read().unwrap();
                        file.read_exact_at(&mut read, slot * SLOT).unwrap();
                        assert!(read == content(slot, *generation), "slot {slot}, write {generation}");
                        reads.fetch_add(1, Ordering::Relaxed);
                    } else {
                        let mut generation = lock.write().unwrap();
                        *generation += 1;
                        write(&file, slot, *generation);
                        if rng.u8(..32) == 0 {
                            file.sync_data().unwrap();
                        }
                        writes.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    println!("{reads:?} reads and {writes:?} writes of 64 KiB");
    assert!(reads.into_inner() > 100 && writes.into_inner() > 10);
    mounted.unmount();
    lab.run(&["check", "disk.avhd"], 0);
    lab.run(&["convert", "disk.avhd", "copy.raw", "--to", "raw"], 0);
    let copy = fs::read(lab.path("copy.raw")).unwrap();
    for ((slot, lock), bytes) in (0..).zip(&slots).zip(copy.chunks(read_len())) {
        assert!(bytes == content(slot, *lock.read().unwrap()), "slot {slot}");
    }
}

fn read_len() -> usize {
    usize::try_from(SLOT).unwrap()
}

/// What was synced is there after the process was killed amid writes, and the place is free again.
#[test]
fn a_killed_mount_loses_nothing_that_was_synced() {
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    let mut rng = Rng::with_seed(seed());
    for round in 0..crate::kills::kill_rounds() {
        let image = format!("disk{round}.vhd");
        lab.dynamic(&image, 64 * MIB);
        let mut mounted = Mounted::new(&lab, &["--rw", &image]);
        let path = mounted.path("disk.raw");
        let held = File::open(&path).unwrap();
        let (killed, moment) = (AtomicBool::new(false), Duration::from_millis(rng.u64(1..120)));
        let seeds = [rng.u64(..), rng.u64(..), rng.u64(..)];
        // Of each slot, the last write that was synced and the last one that may have arrived.
        let slots = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..)
                .zip(seeds)
                .map(|(number, seed)| {
                    let (path, killed) = (&path, &killed);
                    scope.spawn(move || write_until_killed(path, number, killed, Rng::with_seed(seed)))
                })
                .collect();
            std::thread::sleep(moment);
            killed.store(true, Ordering::Relaxed);
            mounted.process.kill().unwrap();
            mounted.process.wait().unwrap();
            writers
                .into_iter()
                .flat_map(|writer| writer.join().unwrap())
                .collect::<Vec<_>>()
        });
        assert!(held.metadata().is_err() || held.sync_all().is_err());
        drop(held);
        unmount(&lab, "mnt");
        // Killed with space that was set aside: leaks are repairable.
        let code = lab.vhd(&["check", &image]).assert().get_output().status.code();
        assert!(matches!(code, Some(0 | 4)), "{code:?}");
        lab.run(&["convert", &image, "copy.raw", "--to", "raw", "--force"], 0);
        let copy = File::open(lab.path("copy.raw")).unwrap();
        let mut read = vec![0; read_len()];
        for (slot, synced, last) in slots {
            copy.read_exact_at(&mut read, slot * SLOT).unwrap();
            let whole = (synced..=last).any(|generation| read == content(slot, generation));
            // Of one that was not synced any part may be there.
            assert!(
                whole || last > synced,
                "round {round}: slot {slot} has not what was synced, {synced}"
            );
        }
        fs::remove_file(lab.path(&image)).unwrap();
    }
}

/// Writes and syncs slots of its own until the server is gone: slot, last write that was synced, last one that was begun.
fn write_until_killed(path: &Path, number: u64, killed: &AtomicBool, mut rng: Rng) -> Vec<(u64, u64, u64)> {
    const SLOTS: u64 = 40;
    let Ok(file) = File::options().read(true).write(true).open(path) else {
        return Vec::new();
    };
    let mut slots: Vec<(u64, u64, u64)> = (0..SLOTS).map(|slot| (number * SLOTS + slot, 0, 0)).collect();
    loop {
        for _ in 0..rng.u8(1..6) {
            let (slot, _, last) = &mut slots[rng.usize(..usize::try_from(SLOTS).unwrap())];
            // No holes here: what a cut write leaves would be taken for one.
            let generation = if is_hole(*last + 1) { *last + 2 } else { *last + 1 };
            *last = generation;
            if let Err(error) = file.write_all_at(&content(*slot, generation), *slot * SLOT) {
                assert!(killed.load(Ordering::Relaxed), "{error}");
                return slots;
            }
        }
        if let Err(error) = file.sync_data() {
            assert!(killed.load(Ordering::Relaxed), "{error}");
            return slots;
        }
        for (_, synced, last) in &mut slots {
            *synced = *last;
        }
    }
}

/// Beside caches (the kernel's, and sector maps of partly filled blocks) a mount takes less than this, in KiB.
const MOST_MEMORY: u64 = 64 << 10;

/// Each layer of the largest disk has blocks all over it; what it takes to mount it, and to look at every snapshot, is bounded.
#[test]
fn the_largest_disk_with_fifty_snapshots_is_mounted() {
    const GIB: u64 = 1 << 30;
    const SNAPSHOTS: u64 = 50;
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    let place = |number: u64| (40 * number + 7) * GIB;
    lab.dynamic("disk.vhd", 2040 * GIB);
    for number in 0..SNAPSHOTS {
        let active = active_file(&lab, "disk.vhd");
        let byte = u8::try_from(number + 1).unwrap();
        for part in 0..40 {
            lab.write(&active, place(part) + number * 8 * MIB, &[byte; 4096]);
        }
        lab.run(&["snapshot", "create", "disk.vhd", "--name", &format!("s{number}")], 0);
    }
    let started = Instant::now();
    let mounted = Mounted::new(&lab, &["disk.vhd@now"]);
    let ready = started.elapsed();
    let (resident, descriptors) = (resident_kib(mounted.process.id()), descriptors(&mounted));
    let started = Instant::now();
    let stored = mounted.path("disk.raw").metadata().unwrap().blocks() * 512;
    assert_eq!(stored, SNAPSHOTS * 40 * 4096);
    for number in 0..SNAPSHOTS {
        let path = mounted.path(&format!("snapshots/s{number}/disk.raw"));
        assert_eq!(path.metadata().unwrap().blocks() * 512, (number + 1) * 40 * 4096);
        let file = File::open(path).unwrap();
        for (other, expected) in [(number, number + 1), (number + 1, 0), (0, 1)] {
            let mut read = [0; 4096];
            file.read_exact_at(&mut read, place(number % 40) + other * 8 * MIB)
                .unwrap();
            assert_eq!(u64::from(read[0]), expected, "s{number}");
        }
    }
    let (looked, after) = (started.elapsed(), resident_kib(mounted.process.id()));
    crate::announce(&format!(
        "a disk of 2,040 GiB with 50 snapshots: mounted after {ready:?} with {resident} KiB of memory of its own; all of \
         them looked at after {looked:?} more, {after} KiB"
    ));
    assert!(
        resident < MOST_MEMORY && after < MOST_MEMORY,
        "{resident} KiB, {after} KiB"
    );
    // The files of all snapshots are those of the present state: nothing is open twice.
    let (opened, layers) = (self::descriptors(&mounted), SNAPSHOTS + 1);
    assert!(
        opened <= descriptors + 2 && opened < layers + 30,
        "{opened} files, {descriptors} before"
    );
    mounted.unmount();
}

/// The kernel does not ask for extended attributes before each write: one request, one write to the image, one reply.
#[test]
fn a_small_write_is_one_request() {
    const WRITES: u64 = 400;
    let lab = Lab::new();
    if !fuse() {
        return;
    }
    lab.dynamic("disk.vhd", 8 * MIB);
    lab.write("disk.vhd", 0, &[1; 8 << 20]);
    let mounted = Mounted::new(&lab, &["--rw", "disk.vhd"]);
    let file = open(&mounted.path("disk.raw"), false);
    file.write_all_at(&[2; 4096], 0).unwrap();
    let before = system_writes(mounted.process.id());
    for number in 0..WRITES {
        file.write_all_at(&[3; 4096], number * 8192).unwrap();
    }
    let calls = system_writes(mounted.process.id()) - before;
    assert!(
        calls < WRITES * 5 / 2,
        "{calls} system calls that write for {WRITES} writes"
    );
    drop(file);
    mounted.unmount();
}

/// System calls of a process that write, so far.
fn system_writes(process: u32) -> u64 {
    let counts = fs::read_to_string(format!("/proc/{process}/io")).unwrap();
    let line = counts.lines().find_map(|line| line.strip_prefix("syscw: "));
    line.unwrap().parse().unwrap()
}

fn descriptors(mounted: &Mounted<'_>) -> u64 {
    let count = fs::read_dir(format!("/proc/{}/fd", mounted.process.id()))
        .unwrap()
        .count();
    u64::try_from(count).unwrap()
}

/// Memory of a process that is no file's.
fn resident_kib(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
