//! Compaction of a half-zero image, the search for the zeroes included, against the least that has to be done:
//! copying the bytes that move, with `cp` and a sync, in the same run and on the same file system.
//!
//! ```text
//! cargo run --release -p vhd-benches --bin compact -- [GiB [DIR]]     default: 8, the current directory
//! ```
#![forbid(unsafe_code)]

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use vhd_core::chain::OpenOptions;
use vhd_core::ops::compact::{CompactOptions, CompactPlan, CompactReport, Survey, compact};
use vhd_core::storage::{HostFile, StagedFile, StorageFile as _};

const BLOCK: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let gib: u64 = arguments.next().map_or(Ok(8), |text| text.parse()).context("GiB")?;
    let place = arguments.next().unwrap_or_else(|| ".".to_owned());
    let dir = tempfile::tempdir_in(place)?;
    let image = dir.path().join("image.vhd");
    build(&image, gib * GIB)?;
    let (report, seconds) = timed(|| run(&image))?;
    let (moved, zero) = (report.planned.moved_bytes, report.planned.dropped_blocks * BLOCK);
    println!("{gib} GiB, half of the blocks zero: {zero} bytes of stored zeroes to find, {moved} bytes to move");
    println!(
        "compact            {:8.2} s, copied {}, shared {}",
        seconds.as_secs_f64(),
        report.copied_bytes,
        report.shared_bytes
    );
    let source = dir.path().join("source");
    std::fs::copy(&image, &source)?;
    std::fs::File::options().write(true).open(&source)?.set_len(moved)?;
    shell("sync", &["-f", &dir.path().display().to_string()])?;
    let copy = dir.path().join("copy");
    let (from, to) = (source.display().to_string(), copy.display().to_string());
    let ((), copied) = timed(|| {
        shell("cp", &["--reflink=never", "--sparse=never", &from, &to])?;
        shell("sync", &[&to])
    })?;
    println!(
        "cp of what moves   {:8.2} s, ratio {:.2}",
        copied.as_secs_f64(),
        copied.as_secs_f64() / seconds.as_secs_f64()
    );
    Ok(())
}

/// An image whose blocks are all stored, every second one being zero.
fn build(path: &Path, size: u64) -> anyhow::Result<()> {
    let staged = StagedFile::create_beside(path)?;
    vhd_core::image::create_dynamic(&*staged.storage(), size, BLOCK)?;
    staged.publish(false, false)?;
    let opened = OpenOptions::new().write(true).open(path)?;
    let disk = opened.disk();
    let mut bytes = vec![0; usize::try_from(BLOCK)?];
    let zeroes = bytes.clone();
    for block in 0..size / BLOCK {
        if block % 2 == 0 {
            disk.write_at(&zeroes, block * BLOCK)?;
        } else {
            fastrand::Rng::with_seed(block).fill(&mut bytes);
            disk.write_at(&bytes, block * BLOCK)?;
        }
    }
    drop(disk);
    opened.close()?;
    HostFile::open(
        path,
        vhd_core::storage::Access::ReadWrite,
        vhd_core::storage::Sharing::Unlocked,
    )?
    .sync()?;
    Ok(())
}

fn run(path: &Path) -> anyhow::Result<CompactReport> {
    let device = OpenOptions::new()
        .write(true)
        .open(path)?
        .into_device()
        .context("an image")?;
    let cancel = Arc::new(AtomicBool::new(false));
    let options = CompactOptions {
        free: &(),
        cancel: &cancel,
        threads: 0,
        batch_bytes: CompactOptions::DEFAULT_BATCH,
    };
    let survey = Survey::new(&device, &options, &())?;
    Ok(compact(device, &CompactPlan::new(&survey, false), &options, &())?)
}

fn timed<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(T, Duration)> {
    let started = Instant::now();
    let result = work()?;
    Ok((result, started.elapsed()))
}

fn shell(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}
