//! Random I/O side by side: ours and a plain file in turn, round by round, so that a machine whose speed drifts
//! slows both. Prints a table of ratios (ours to the file's; above 1 is faster) with their spread.
//!
//! `vhd-benches DIR [ROUNDS]`: DIR should be on the file system to be measured.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::time::{ClockId, clock_gettime};
use vhd_benches::{BLOCK, Bench, REQUEST, SCATTERED, one_offset_per_block, places, random_offsets};
use vhd_core::chain::OpenedDisk;
use vhd_core::device::{ByteRange, Disk, ReadSpan};
use vhd_core::storage::StorageFile;

const READ_DISK: u64 = 1 << 30;
/// Small enough that the kernel does not slow the writers down to wait for the disk.
const WRITE_DISK: u64 = 256 << 20;
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

fn reads(dir: &Path, rounds: usize) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(2);
    let bench = Bench::new(dir, READ_DISK)?;
    let raw = bench.raw_full()?;
    let disk = bench.dynamic_full()?;
    bench.warm()?;
    let offsets = random_offsets(READ_DISK, REQUESTS, &mut random);
    let pairs = measure(rounds, || read_file(&raw, &offsets), || read_disk(&disk, &offsets))?;
    report("read, dynamic", &pairs, offsets.len());
    span_reads(&disk, &offsets, rounds)?;
    drop((bench, disk));
    for (piece, what) in [(BLOCK, "whole blocks"), (SCATTERED, "64 KiB pieces")] {
        for depth in [1, 4, 16, 64] {
            let bench = Bench::new(dir, READ_DISK)?;
            let opened = bench.chain(depth, piece, &mut random)?;
            chain_reads(&bench, &opened, rounds, &format!("depth {depth}, {what}"), &mut random)?;
        }
    }
    Ok(())
}

/// A chain against a raw file of the same size, and against plain reads of the same places in the same files:
/// scattered files cost the kernel more than one that is contiguous, whoever reads them.
fn chain_reads(
    bench: &Bench,
    opened: &OpenedDisk,
    rounds: usize,
    what: &str,
    random: &mut fastrand::Rng,
) -> Result<()> {
    let raw = bench.raw_full()?;
    let disk = opened.disk();
    bench.warm()?;
    let mut offsets = random_offsets(READ_DISK, REQUESTS, random);
    let places = places(opened, &mut offsets)?;
    let files: Vec<Option<&File>> = (0..)
        .zip(opened.paths())
        .map(|(depth, _)| opened.file_at_depth(depth).and_then(StorageFile::host_file))
        .collect();
    let pairs = measure(rounds, || read_file(&raw, &offsets), || read_disk(&disk, &offsets))?;
    report(&format!("read, chain of {what}"), &pairs, offsets.len());
    let mut buffer = vec![0; REQUEST];
    let mut read_places = || {
        let start = Instant::now();
        for &(depth, offset) in &places {
            let file = files[usize::try_from(depth)?].context("every layer is a file")?;
            file.read_exact_at(&mut buffer, offset)?;
        }
        Ok(start.elapsed())
    };
    let pairs = measure(rounds, &mut read_places, || read_disk(&disk, &offsets))?;
    report("- against preads of the same places", &pairs, places.len());
    span_reads(&disk, &offsets, rounds)
}

/// The same reads by whoever asks where the bytes are and moves them himself, against those through the disk. The two differ
/// by less than a machine does that others use too, so it is the processor time of the thread that counts.
fn span_reads(disk: &Disk, offsets: &[u64], rounds: usize) -> Result<()> {
    let mut buffer = vec![0; REQUEST];
    let mut by_spans = || {
        time_each(offsets, |offset| {
            let mut done = 0;
            while done < REQUEST {
                let rest = ByteRange::new(offset + u64::try_from(done)?, u64::try_from(REQUEST - done)?);
                let span = disk.resolve_read(rest)?;
                let len = usize::try_from(span.len())?;
                match &span {
                    ReadSpan::Data { file, offset, len } => {
                        let found = file.descriptor(*offset, *len).context("a file of the host")?;
                        let part = &mut buffer[done..done + usize::try_from(*len)?];
                        anyhow::ensure!(rustix::io::pread(found, part, *offset)? == usize::try_from(*len)?);
                    }
                    ReadSpan::Zero { .. } => buffer[done..done + len].fill(0),
                }
                done += len;
            }
            Ok(())
        })
    };
    let pairs = measure(
        rounds,
        || processor_time(|| read_disk(disk, offsets)),
        || processor_time(&mut by_spans),
    )?;
    report("- through resolve_read, against read_at", &pairs, offsets.len());
    Ok(())
}

fn read_file(file: &File, offsets: &[u64]) -> Result<Duration> {
    let mut buffer = vec![0; REQUEST];
    time_each(offsets, |offset| Ok(file.read_exact_at(&mut buffer, offset)?))
}

fn read_disk(disk: &Disk, offsets: &[u64]) -> Result<Duration> {
    let mut buffer = vec![0; REQUEST];
    time_each(offsets, |offset| Ok(disk.read_at(&mut buffer, offset)?))
}

fn overwrites(dir: &Path, rounds: usize) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(3);
    let bench = Bench::new(dir, WRITE_DISK)?;
    let raw = bench.raw_full()?;
    let disk = bench.dynamic_full()?;
    bench.warm()?;
    let offsets = random_offsets(WRITE_DISK, REQUESTS, &mut random);
    let bytes = vec![7; REQUEST];
    let pairs = measure(
        rounds,
        || time_each(&offsets, |offset| Ok(raw.write_all_at(&bytes, offset)?)),
        || time_each(&offsets, |offset| Ok(disk.write_at(&bytes, offset)?)),
    )?;
    report("write, allocated", &pairs, offsets.len());
    Ok(())
}

fn allocations(dir: &Path, rounds: usize, flushed: bool) -> Result<()> {
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

/// The processor time that the thread takes for something.
fn processor_time(work: impl FnOnce() -> Result<Duration>) -> Result<Duration> {
    let now = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime));
    let start = now()?;
    work()?;
    Ok(now()? - start)
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
