//! A client of a disk that writes and reads back.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use fastrand::Rng;
use vhd_core::device::Disk;

/// How much of a disk it uses.
const SIZE: u64 = 2 << 30;
const PIECE: u64 = 64 << 10;

/// Writes pieces anywhere on the disk, each with a content of its own, and reads some of them back, until `ends`.
pub(crate) fn write_and_verify(disk: &Disk, seed: u64, ends: &AtomicBool, longest: &AtomicU64) -> HashMap<u64, u64> {
    let mut random = Rng::with_seed(seed);
    let mut known = HashMap::new();
    let mut count = 0;
    while !ends.load(Ordering::Relaxed) {
        count += 1;
        let piece = random.u64(0..SIZE / PIECE);
        let begin = Instant::now();
        disk.write_at(&content(piece, count), piece * PIECE)
            .expect("no error is seen");
        let waited = u64::try_from(begin.elapsed().as_millis()).unwrap();
        longest.fetch_max(waited, Ordering::Relaxed);
        known.insert(piece, count);
        if count % 4 == 0 {
            let (&piece, &count) = known.iter().nth(random.usize(..known.len())).unwrap();
            verify(disk, piece, count);
        }
        if count % 32 == 0 {
            disk.flush().expect("no error is seen");
        }
        // Blocks for as long as there are faults.
        thread::sleep(Duration::from_millis(3));
    }
    known
}

fn content(piece: u64, count: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(PIECE).unwrap()];
    Rng::with_seed(piece << 32 | count).fill(&mut bytes);
    bytes
}

pub(crate) fn verify(disk: &Disk, piece: u64, count: u64) {
    let mut found = vec![0; usize::try_from(PIECE).unwrap()];
    disk.read_at(&mut found, piece * PIECE).expect("no error is seen");
    assert!(
        found == content(piece, count),
        "piece {piece} is not what write {count} left"
    );
}
