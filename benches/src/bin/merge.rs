//! A merge of scattered sectors into a parent, against two measures of the least that has to be done, in the same run
//! and on the same file system: copying as many bytes with `cp` and a sync, and copying the same pieces, at the same
//! places, between two plain files with `pread`, `pwrite` and a sync, by two threads. The second is what small
//! pieces cost by themselves: `cp` moves bytes that lie together. Each round does all three, one after the other.
//! What the file system takes to free the merged child's space is told apart: the others free nothing.
//!
//! ```text
//! cargo run --release -p vhd-benches --bin merge -- [MiB [KiB [ROUNDS [DIR]]]]
//! ```
//!
//! So many MiB lie in pieces of so many KiB over a disk of twice their size. Default: 2048 MiB in pieces of 64 KiB,
//! three rounds, in the current directory.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::ops::merge::{MergeOptions, MergeRequest, merge, plan};
use vhd_core::storage::{Access, HostFile, Sharing, StagedFile, StorageFile as _};

const BLOCK: u64 = 2 << 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| {
        let text = arguments.get(index);
        text.map_or(Ok(default), |text| text.parse()).context("a number")
    };
    let (held, piece, rounds) = (number(0, 2048)? << 20, number(1, 64)? << 10, number(2, 3)?);
    let place = arguments.get(3).map_or(".", String::as_str);
    let dir = tempfile::tempdir_in(place)?;
    let (base, child) = (dir.path().join("base.vhd"), dir.path().join("child.avhd"));
    create_base(&base, held * 2)?;
    let plain = Plain::new(dir.path(), held, piece)?;
    let (mut to_cp, mut to_plain) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        create_child(&child, &base, Some(BLOCK), &OpenOptions::new())?;
        scatter(&child, piece, round)?;
        // A file that is held open keeps its space: how long it takes to free that is told apart.
        let kept = std::fs::File::open(&child)?;
        let merged = merge_seconds(&child, held)?;
        let started = Instant::now();
        drop(kept);
        let freed = started.elapsed().as_secs_f64();
        let copied = cp_seconds(dir.path(), held, round)?;
        let scattered = plain.seconds()?;
        to_cp.push(copied / merged);
        to_plain.push(scattered / merged);
        println!(
            "merge {merged:6.2} s, {:5.0} MiB/s   cp and sync {copied:6.2} s, {:5.0} MiB/s   the same pieces \
             {scattered:6.2} s, {:5.0} MiB/s   (freeing the child's space: {freed:.2} s)",
            mib_per_second(held, merged),
            mib_per_second(held, copied),
            mib_per_second(held, scattered)
        );
    }
    println!(
        "{} MiB in pieces of {} KiB, {rounds} rounds: {} of cp, {} of the same pieces",
        held >> 20,
        piece >> 10,
        median(to_cp),
        median(to_plain)
    );
    Ok(())
}

fn median(mut ratios: Vec<f64>) -> String {
    ratios.sort_by(f64::total_cmp);
    let (least, most) = (ratios[0], ratios[ratios.len() - 1]);
    format!("{:.2} (median; {least:.2} to {most:.2})", ratios[ratios.len() / 2])
}

/// Two plain files as large as the disk: one has every second piece, the other is whole.
struct Plain {
    from: File,
    to: File,
    held: u64,
    piece: u64,
}

impl Plain {
    fn new(dir: &Path, held: u64, piece: u64) -> Result<Self> {
        let create = |name| {
            let options = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .clone();
            options.open(dir.join(name))
        };
        let plain = Self {
            from: create("plain source")?,
            to: create("plain target")?,
            held,
            piece,
        };
        let mut bytes = vec![0; usize::try_from(BLOCK)?];
        fastrand::Rng::with_seed(0).fill(&mut bytes);
        for at in (0..held * 2).step_by(bytes.len()) {
            plain.to.write_all_at(&bytes, at)?;
        }
        for at in (0..held * 2).step_by(usize::try_from(piece * 2)?) {
            plain.from.write_all_at(&bytes[..usize::try_from(piece)?], at)?;
        }
        plain.to.sync_all()?;
        plain.from.sync_all()?;
        Ok(plain)
    }

    fn seconds(&self) -> Result<f64> {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let workers = [0, 1].map(|half| scope.spawn(move || self.copy(self.held * half, self.held * (half + 1))));
            workers
                .into_iter()
                .try_for_each(|worker| worker.join().expect("no panic"))
        })?;
        self.to.sync_data()?;
        Ok(started.elapsed().as_secs_f64())
    }

    fn copy(&self, from: u64, to: u64) -> Result<()> {
        let mut bytes = vec![0; usize::try_from(self.piece)?];
        for at in (from..to).step_by(usize::try_from(self.piece * 2)?) {
            self.from.read_exact_at(&mut bytes, at)?;
            self.to.write_all_at(&bytes, at)?;
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib_per_second(bytes: u64, seconds: f64) -> f64 {
    (bytes >> 20) as f64 / seconds
}

/// A base whose blocks are all stored.
fn create_base(path: &Path, size: u64) -> Result<()> {
    let staged = StagedFile::create_beside(path)?;
    vhd_core::image::create_dynamic(&*staged.storage(), size, BLOCK)?;
    staged.publish(false, false)?;
    write(path, 1, |disk_offset| Some(disk_offset).filter(|at| *at < size), BLOCK)
}

/// Every second piece of the disk.
fn scatter(path: &Path, piece: u64, seed: u64) -> Result<()> {
    let size = OpenOptions::new().open(path)?.disk().size();
    write(path, seed, |at| Some(at * 2).filter(|at| *at < size), piece)
}

/// Writes random pieces at `place(0)`, `place(len)`, ... and makes them durable.
fn write(path: &Path, seed: u64, place: impl Fn(u64) -> Option<u64>, len: u64) -> Result<()> {
    let opened = OpenOptions::new().write(true).open(path)?;
    let disk = opened.disk();
    let mut bytes = vec![0; usize::try_from(len)?];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    let mut at = 0;
    while let Some(offset) = place(at) {
        bytes[..8].copy_from_slice(&(offset ^ seed).to_le_bytes());
        disk.write_at(&bytes, offset)?;
        at += len;
    }
    drop(disk);
    opened.close()?;
    Ok(HostFile::open(path, Access::ReadWrite, Sharing::Unlocked)?.sync()?)
}

fn merge_seconds(child: &Path, held: u64) -> Result<f64> {
    let cancel = AtomicBool::new(false);
    let options = MergeOptions {
        cancel: &cancel,
        threads: 0,
        batch_bytes: MergeOptions::DEFAULT_BATCH,
    };
    let started = Instant::now();
    let report = merge(&plan(&MergeRequest::new(child))?, &options, &())?;
    ensure!(report.copied_bytes == held, "{report:?}");
    Ok(started.elapsed().as_secs_f64())
}

fn cp_seconds(dir: &Path, bytes: u64, seed: u64) -> Result<f64> {
    let (from, to) = (dir.join("source"), dir.join("copy"));
    let mut source = vec![0; usize::try_from(BLOCK)?];
    fastrand::Rng::with_seed(seed).fill(&mut source);
    let file = std::fs::File::create(&from)?;
    for at in (0..bytes).step_by(source.len()) {
        file.write_all_at(&source, at)?;
    }
    file.sync_all()?;
    let (from, to) = (from.display().to_string(), to.display().to_string());
    let started = Instant::now();
    shell("cp", &["--reflink=never", "--sparse=never", &from, &to])?;
    shell("sync", &[&to])?;
    let seconds = started.elapsed().as_secs_f64();
    std::fs::remove_file(from)?;
    std::fs::remove_file(to)?;
    Ok(seconds)
}

fn shell(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).status()?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}
