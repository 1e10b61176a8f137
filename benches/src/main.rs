//! Random I/O side by side: ours and a plain file in turn, round by round, so that a machine whose speed drifts
//! slows both. Prints a table of ratios (ours to the file's; above 1 is faster) with their spread.
//!
//! `vhd-benches DIR [ROUNDS]`: DIR should be on the file system to be measured.
#![forbid(unsafe_code)]

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use vhd_benches::{Bench, REQUEST, one_offset_per_block, random_offsets};

const READ_DISK: u64 = 1 << 30;
const ALLOCATION_DISK: u64 = 32 << 30;
const REQUESTS: usize = 50_000;

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args.next().context("usage: vhd-benches DIR [ROUNDS]")?.into();
    let rounds = args.next().map_or(Ok(11), |rounds| rounds.parse())?;
    println!("| 4 KiB requests | file, us | vhd, us | ratio median | min | max |");
    println!("|---|---|---|---|---|---|");
    reads(&dir, rounds)?;
    overwrites(&dir, rounds)?;
    for flushed in [false, true] {
        allocations(&dir, rounds, flushed)?;
    }
    Ok(())
}

fn reads(dir: &std::path::Path, rounds: usize) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(2);
    for depth in [0, 1, 4, 16, 64] {
        let bench = Bench::new(dir, READ_DISK)?;
        let raw = bench.raw_full()?;
        let disk = if depth == 0 {
            bench.dynamic_full()?
        } else {
            bench.chain(depth, &mut random)?
        };
        bench.warm()?;
        let offsets = random_offsets(READ_DISK, REQUESTS, &mut random);
        let mut buffer = vec![0; REQUEST];
        let mut other = vec![0; REQUEST];
        let pairs = measure(
            rounds,
            || time_each(&offsets, |offset| Ok(raw.read_exact_at(&mut buffer, offset)?)),
            || time_each(&offsets, |offset| Ok(disk.read_at(&mut other, offset)?)),
        )?;
        let name = if depth == 0 {
            "read, dynamic".to_owned()
        } else {
            format!("read, chain of depth {depth}")
        };
        report(&name, &pairs, offsets.len());
    }
    Ok(())
}

fn overwrites(dir: &std::path::Path, rounds: usize) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(3);
    let bench = Bench::new(dir, READ_DISK)?;
    let raw = bench.raw_full()?;
    let disk = bench.dynamic_full()?;
    let offsets = random_offsets(READ_DISK, REQUESTS, &mut random);
    let bytes = vec![7; REQUEST];
    let pairs = measure(
        rounds,
        || time_each(&offsets, |offset| Ok(raw.write_all_at(&bytes, offset)?)),
        || time_each(&offsets, |offset| Ok(disk.write_at(&bytes, offset)?)),
    )?;
    report("write, allocated", &pairs, offsets.len());
    Ok(())
}

fn allocations(dir: &std::path::Path, rounds: usize, flushed: bool) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(4);
    let bench = Bench::new(dir, ALLOCATION_DISK)?;
    let offsets = one_offset_per_block(ALLOCATION_DISK, &mut random);
    let bytes = vec![7; REQUEST];
    let pairs = measure(
        rounds,
        || {
            let raw = bench.raw_sparse()?;
            let start = Instant::now();
            time_each(&offsets, |offset| Ok(raw.write_all_at(&bytes, offset)?))?;
            if flushed {
                raw.sync_data()?;
            }
            Ok(start.elapsed())
        },
        || {
            let disk = bench.dynamic_empty()?;
            let start = Instant::now();
            time_each(&offsets, |offset| Ok(disk.write_at(&bytes, offset)?))?;
            if flushed {
                disk.flush()?;
            }
            Ok(start.elapsed())
        },
    )?;
    let end = if flushed { ", one flush at the end" } else { "" };
    report(&format!("write, a new block each{end}"), &pairs, offsets.len());
    Ok(())
}

fn time_each(offsets: &[u64], mut request: impl FnMut(u64) -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    for &offset in offsets {
        request(offset)?;
    }
    Ok(start.elapsed())
}

/// Runs both in turn, once without counting.
fn measure(
    rounds: usize,
    mut file: impl FnMut() -> Result<Duration>,
    mut ours: impl FnMut() -> Result<Duration>,
) -> Result<Vec<(Duration, Duration)>> {
    file()?;
    ours()?;
    (0..rounds).map(|_| Ok((file()?, ours()?))).collect()
}

fn report(name: &str, pairs: &[(Duration, Duration)], requests: usize) {
    let mut ratios: Vec<f64> = pairs
        .iter()
        .map(|(file, ours)| file.as_secs_f64() / ours.as_secs_f64())
        .collect();
    ratios.sort_by(f64::total_cmp);
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e6 / f64::from(u32::try_from(requests).unwrap_or(u32::MAX))
    };
    let file = median(&mut pairs.iter().map(|pair| pair.0).collect());
    let ours = median(&mut pairs.iter().map(|pair| pair.1).collect());
    let (min, max) = (ratios[0], ratios[ratios.len() - 1]);
    let middle = ratios[ratios.len() / 2];
    println!("| {name} | {file:.2} | {ours:.2} | {middle:.2} | {min:.2} | {max:.2} |");
}
