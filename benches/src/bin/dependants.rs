//! What the search for dependants costs an open for writing: beside nothing, many files, many images, deep trees.
//!
//! ```text
//! cargo run --release -p vhd-benches --bin dependants -- [DIR]     default: the current directory
//! ```
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vhd_core::chain::dependants::dependants_of;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::image::create_dynamic;
use vhd_core::storage::StagedFile;

const ROUNDS: usize = 15;

fn main() -> anyhow::Result<()> {
    let place = std::env::args().nth(1).unwrap_or_else(|| ".".to_owned());
    println!("| beside the image | search | open and close with it | without it |\n|---|---|---|---|");
    measure(&place, "nothing", |_| Ok(()))?;
    measure(&place, "20 other images", |dir| images(dir, 20))?;
    measure(&place, "4,000 files of 16 KiB", |dir| files(dir, 4000))?;
    measure(&place, "4,000 images", |dir| images(dir, 4000))?;
    measure(&place, "50,000 files of 16 KiB", |dir| files(dir, 50_000))?;
    measure(&place, "100 directories of 40 files, 10 deep", |dir| {
        (0..100).try_for_each(|n| files(&deep(dir, n, 10)?, 40))
    })?;
    measure(&place, "20,000 files in directories above", |dir| {
        let above = dir.parent().unwrap_or(dir);
        (0..200).try_for_each(|n| files(&deep(above, n, 1)?, 100))
    })
}

fn measure(place: &str, what: &str, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let top = tempfile::tempdir_in(place)?;
    let dir = top.path().join("vm");
    fs::create_dir(&dir)?;
    let image = dir.join("disk.vhd");
    create(&image)?;
    fill(&dir)?;
    let open = |ignore| -> anyhow::Result<()> {
        let options = OpenOptions::new().write(true).ignore_children(ignore);
        Ok(options.open(&image)?.close().map(drop)?)
    };
    let search = median(|| Ok(dependants_of(&image).map(drop)?))?;
    let (with, without) = (median(|| open(false))?, median(|| open(true))?);
    println!("| {what} | {} | {} | {} |", ms(search), ms(with), ms(without));
    Ok(())
}

fn median(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        work()?;
        times.push(start.elapsed());
    }
    times.sort();
    Ok(times[ROUNDS / 2])
}

fn ms(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1e3)
}

fn create(path: &Path) -> anyhow::Result<()> {
    let staged = StagedFile::create_beside(path)?;
    create_dynamic(&*staged.storage(), 1 << 30, 2 << 20)?;
    Ok(staged.publish(false, false)?)
}

fn deep(dir: &Path, number: usize, levels: usize) -> anyhow::Result<PathBuf> {
    let path = (0..levels).fold(dir.join(format!("{number}")), |path, level| {
        path.join(level.to_string())
    });
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn files(dir: &Path, count: usize) -> anyhow::Result<()> {
    Ok((0..count).try_for_each(|n| fs::write(dir.join(format!("file {n}")), [7; 16 << 10]))?)
}

/// Children of another image.
fn images(dir: &Path, count: usize) -> anyhow::Result<()> {
    let other = tempfile::tempdir()?;
    let base = other.path().join("base.vhd");
    create(&base)?;
    let child = other.path().join("child.avhd");
    create_child(&child, &base, None, &OpenOptions::new())?;
    for n in 0..count {
        fs::copy(&child, dir.join(format!("{n}.avhd")))?;
    }
    Ok(())
}
