//! Criterion benches of 4 KiB random reads and writes: `cargo bench -p vhd-benches`. The disks are made below
//! the directory that `VHD_BENCH_DIR` names, else below the system's temporary directory.

use std::hint::black_box;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use criterion::{Criterion, criterion_group, criterion_main};
use vhd_benches::{Bench, REQUEST, SCATTERED, random_offsets};

const DISK: u64 = 256 << 20;

fn bench_dir() -> PathBuf {
    std::env::var_os("VHD_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from)
}

fn reads(criterion: &mut Criterion) {
    let mut random = fastrand::Rng::with_seed(5);
    let offsets = random_offsets(DISK, 1 << 16, &mut random);
    let bench = Bench::new(&bench_dir(), DISK).expect("a place for the disks");
    let mut group = criterion.benchmark_group("read 4 KiB at random");
    let mut next = offsets.iter().cycle();
    let mut buffer = vec![0; REQUEST];
    let raw = bench.raw_full().expect("a raw file");
    group.bench_function("raw file", |bencher| {
        bencher.iter(|| raw.read_exact_at(black_box(&mut buffer), *next.next().expect("endless")));
    });
    for depth in [0, 1, 4, 16, 64] {
        let disk = match depth {
            0 => bench.dynamic_full(),
            _ => bench.chain(depth, SCATTERED, &mut random).map(|opened| opened.disk()),
        };
        let disk = disk.expect("a disk");
        group.bench_function(format!("depth {depth}"), |bencher| {
            bencher.iter(|| disk.read_at(black_box(&mut buffer), *next.next().expect("endless")));
        });
    }
    group.finish();
}

fn writes(criterion: &mut Criterion) {
    let mut random = fastrand::Rng::with_seed(6);
    let offsets = random_offsets(DISK, 1 << 16, &mut random);
    let bench = Bench::new(&bench_dir(), DISK).expect("a place for the disks");
    let mut group = criterion.benchmark_group("write 4 KiB at random, allocated");
    let mut next = offsets.iter().cycle();
    let bytes = vec![7; REQUEST];
    let raw = bench.raw_full().expect("a raw file");
    group.bench_function("raw file", |bencher| {
        bencher.iter(|| raw.write_all_at(black_box(&bytes), *next.next().expect("endless")));
    });
    let disk = bench.dynamic_full().expect("a disk");
    group.bench_function("dynamic", |bencher| {
        bencher.iter(|| disk.write_at(black_box(&bytes), *next.next().expect("endless")));
    });
    group.finish();
}

criterion_group!(benches, reads, writes);
criterion_main!(benches);
