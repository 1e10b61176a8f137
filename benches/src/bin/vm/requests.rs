//! 4 KiB requests of a guest beside the same through the library.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use vhd_benches::{Bench, REQUEST, SCATTERED, random_offsets, spread};
use vhd_core::chain::{ImageFormat, OpenOptions};
use vhd_core::device::Disk;

use crate::guest::{GET_ID, READ, WRITE, Work};
use crate::machine::{Ran, run};

/// Bytes of each disk.
const SIZE: u64 = 256 << 20;
const REQUESTS: usize = 16 << 10;
const BELLS: u64 = 20_000;
const DEPTHS: [u16; 2] = [1, 32];
const LEVELS: u32 = 8;

pub(crate) fn print(dir: &Path, rounds: u64) -> Result<()> {
    let bench = Bench::new(dir, SIZE)?;
    let mut random = fastrand::Rng::with_seed(7);
    let offsets = random_offsets(SIZE, REQUESTS, &mut random);
    let sectors: Vec<u64> = offsets.iter().map(|offset| offset / 512).collect();
    let chain = bench.chain(LEVELS, SCATTERED, &mut random)?;
    let leaf = chain.paths()[0].clone();
    drop(chain);
    drop(bench.raw_full()?);
    bench.warm()?;
    let raw = leaf.with_file_name("full.raw");
    let open = |path: &Path, format| {
        OpenOptions::new()
            .write(true)
            .format(format)
            .ignore_children(true)
            .open(path)
    };
    println!(
        "| 4 KiB requests | depth | library, us | guest, us | round trip, us | ratio of the fastest | ratio median | min | max | notifications | interrupts |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    let mut trips = Vec::new();
    let kinds: [(&str, &Path, Option<ImageFormat>); 3] = [
        ("raw", &raw, Some(ImageFormat::Raw)),
        ("chain of 8", &leaf, None),
        // Last: it is the base of the chain.
        ("dynamic", &leaf.with_file_name("full.vhd"), None),
    ];
    for (name, path, format) in kinds {
        let opened = open(path, format)?;
        let disk = opened.disk();
        for (verb, kind) in [("read", READ), ("write", WRITE)] {
            for depth in DEPTHS {
                let row = row(dir, &disk, kind, depth, (&offsets, &sectors), rounds, &mut trips)?;
                println!("| {verb}, {name} | {depth} | {row}");
            }
        }
        drop(disk);
        opened.close()?;
    }
    let (median, min, max) = spread(trips);
    println!("\nround trip of a request that asks for nothing (GET_ID): {median:.2} us ({min:.2} to {max:.2})");
    bells(dir, rounds)
}

/// One kind of request, round by round; the first one warms up.
fn row(
    dir: &Path,
    disk: &Disk,
    kind: u32,
    depth: u16,
    (offsets, sectors): (&[u64], &[u64]),
    rounds: u64,
    trips: &mut Vec<f64>,
) -> Result<String> {
    let count = f64::from(u32::try_from(sectors.len())?);
    let (mut library, mut guest, mut idle, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut last = None;
    for round in 0..=rounds {
        let by_library = through_library(disk, kind, offsets)? * 1e6 / count;
        let ran = run(dir, &Work::Requests { kind, depth, sectors }, disk)?;
        let trip = run(
            dir,
            &Work::Requests {
                kind: GET_ID,
                depth: 1,
                sectors: &sectors[..4096],
            },
            disk,
        )?;
        let trip = trip.seconds * 1e6 / 4096.0;
        if round == 0 {
            continue;
        }
        let by_guest = ran.seconds * 1e6 / count;
        let rung = batches(&ran, count, depth) / count;
        library.push(by_library);
        guest.push(by_guest);
        idle.push(trip);
        ratios.push(by_library / (by_guest - trip * rung));
        trips.push(trip);
        last = Some(ran);
    }
    let (ratio, min, max) = spread(ratios);
    // What was disturbed least: on a busy machine the medians say how busy it was.
    let [library, guest, idle] = [library, guest, idle].map(|all| spread(all).1);
    let rung = last.as_ref().map_or(1.0, |ran| batches(ran, count, depth) / count);
    let fastest = library / (guest - idle * rung);
    let per_batch = |number: f64| number / (count / f64::from(depth));
    let counted = last.map_or(String::new(), |ran| {
        let interrupts = match kind {
            READ => format!("{:.2}", per_batch(ran.writes as f64)),
            _ => "-".to_owned(),
        };
        format!("{:.2} | {interrupts} |", per_batch(batches(&ran, count, depth)))
    });
    Ok(format!(
        "{library:.2} | {guest:.2} | {idle:.2} | {fastest:.2} | {ratio:.2} | {min:.2} | {max:.2} | {counted}",
    ))
}

/// Notifications without those of the warm-up, as far as they can be told apart: they are in proportion.
fn batches(ran: &Ran, count: f64, depth: u16) -> f64 {
    let all = count / f64::from(depth);
    f64::from(ran.bells) * all / (all + all.min(128.0))
}

fn through_library(disk: &Disk, kind: u32, offsets: &[u64]) -> Result<f64> {
    let mut buffer = vec![1; REQUEST];
    let began = Instant::now();
    for offset in offsets {
        match kind {
            READ => disk.read_at(&mut buffer, *offset)?,
            _ => disk.write_at(&buffer, *offset)?,
        }
    }
    Ok(began.elapsed().as_secs_f64())
}

fn bells(dir: &Path, rounds: u64) -> Result<()> {
    let file = tempfile::NamedTempFile::new_in(dir)?;
    file.as_file().set_len(1 << 20)?;
    let opened = OpenOptions::new()
        .write(true)
        .format(Some(ImageFormat::Raw))
        .open(file.path())?;
    let mut costs = Vec::new();
    for _ in 0..rounds {
        let ran = run(dir, &Work::Bells { count: BELLS }, &opened.disk())?;
        costs.push(ran.seconds * 1e6 / f64::from(u32::try_from(BELLS)?));
    }
    let (median, min, max) = spread(costs);
    println!("exit for a bell that nobody needs: {median:.2} us ({min:.2} to {max:.2})");
    Ok(())
}
