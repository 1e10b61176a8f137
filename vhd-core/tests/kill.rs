//! A program that writes at random is killed at random, over and over: what it was told to be flushed is there,
//! `check` finds at most leaks, and the next one goes on in the same image.
//!
//! The killed program is this test binary, run again with an environment variable. A longer run:
//! `VHD_KILL_ROUNDS=200 cargo test --release -p vhd-core --test kill`.
#![cfg(not(loom))]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::kills::kill_rounds;
use common::rng::seeded;
use common::temp_dir;
use vhd_core::chain::{OpenOptions, create_child};
use vhd_core::check::{Severity, check};
use vhd_core::device::Disk;
use vhd_core::image::{create_dynamic, create_fixed};
use vhd_core::storage::{Access, HostFile, Sharing, StagedFile};

/// Set in the process that is to be killed: the image it writes to.
const VICTIM: &str = "VHD_TEST_KILL_VICTIM";

/// The disk is an array of cells, each in a sector of its own; a cell holds the number of the last round of
/// writes that reached it.
const CELLS: u64 = 4096;
const STRIDE: u64 = 32 << 10;
const SIZE: u64 = CELLS * STRIDE;
/// Cells written between two flushes.
const BATCH: u64 = 24;

fn cell_of(generation: u64, index: u64) -> u64 {
    // Consecutive generations write all over the disk, and come back to every cell.
    (generation * BATCH + index).wrapping_mul(0x9E37_79B9_7F4A_7C15) % CELLS
}

/// Writes one generation after the other for ever, and says on standard output which one was flushed.
fn write_until_killed(image: &Path) -> ! {
    let opened = OpenOptions::new()
        .write(true)
        .open(image)
        .expect("the image opens after a kill");
    let disk = opened.disk();
    let mut out = std::io::stdout();
    // The newest one may have been cut off in the middle: it is written again.
    for generation in newest(&disk).max(1).. {
        for index in 0..BATCH {
            let sector = [generation.to_le_bytes(); 64].concat();
            disk.write_at(&sector, cell_of(generation, index) * STRIDE)
                .expect("the disk is written");
        }
        disk.flush().expect("the disk is flushed");
        writeln!(out, "flushed {generation}")
            .and_then(|()| out.flush())
            .expect("the parent listens");
    }
    unreachable!("generations do not end")
}

fn cells(disk: &Disk) -> Vec<u64> {
    let read = |cell| {
        let mut sector = [0; 512];
        disk.read_at(&mut sector, cell * STRIDE).expect("the disk is read");
        let (words, _) = sector.as_chunks::<8>();
        assert!(words.iter().all(|word| *word == words[0]), "cell {cell} is torn");
        u64::from_le_bytes(words[0])
    };
    (0..CELLS).map(read).collect()
}

fn newest(disk: &Disk) -> u64 {
    cells(disk).into_iter().max().expect("the disk has cells")
}

/// Runs the writer, kills it after `delay`, and answers the last generation that it saw flushed.
fn run_and_kill(test: &str, image: &Path, delay: Duration) -> Option<u64> {
    let mut command = Command::new(std::env::current_exe().expect("this program has a path"));
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(VICTIM, image);
    let mut child = command.stdout(Stdio::piped()).spawn().expect("this program runs");
    let output = BufReader::new(child.stdout.take().expect("it is piped"));
    let listener = std::thread::spawn(move || {
        let lines = output.lines().map_while(Result::ok);
        lines
            .filter_map(|line| line.split_once("flushed ")?.1.trim().parse().ok())
            .max()
    });
    std::thread::sleep(delay);
    child.kill().expect("the writer is alive");
    child.wait().expect("the writer is dead");
    listener.join().expect("the listener ends with the pipe")
}

/// Every cell holds what the flushed generations left in it, or something newer.
fn verify(image: &Path, flushed: u64) {
    let opened = OpenOptions::new().open(image).expect("the image opens after a kill");
    let mut wanted = vec![0; usize::try_from(CELLS).expect("few")];
    for generation in 1..=flushed {
        for index in 0..BATCH {
            wanted[usize::try_from(cell_of(generation, index)).expect("few")] = generation;
        }
    }
    for (cell, (found, wanted)) in cells(&opened.disk()).into_iter().zip(wanted).enumerate() {
        assert!(
            found >= wanted,
            "cell {cell} holds generation {found}, but {wanted} was flushed"
        );
    }
    drop(opened);
    let file = HostFile::open(image, Access::ReadOnly, Sharing::Exclusive).expect("no one holds the image");
    let report = check(&file).expect("the image is read");
    // A footer at the end that is missing is restored by the next writer; nothing else may be wrong.
    let bad = report
        .findings
        .iter()
        .filter(|finding| finding.severity > Severity::Leak);
    let bad: Vec<_> = bad
        .filter(|finding| finding.code.as_str() != "footer-damaged")
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}

fn kill_again_and_again(test: &str, make: impl FnOnce(&Path) -> PathBuf) {
    if let Some(image) = std::env::var_os(VICTIM) {
        write_until_killed(Path::new(&image));
    }
    let dir = temp_dir();
    let image = make(dir.path());
    let mut rng = seeded(0xDEAD, test);
    let rounds = kill_rounds();
    let mut flushed = 0;
    for _ in 0..rounds {
        let delay = Duration::from_millis(rng.u64(15..150));
        flushed = flushed.max(run_and_kill(test, &image, delay).unwrap_or(0));
        verify(&image, flushed);
    }
    assert!(
        flushed > 0,
        "no writer lived to its first flush: the test tested nothing"
    );
    common::announce(&format!(
        "{test}: {rounds} kills, {flushed} generations of {BATCH} writes flushed"
    ));
}

fn new_image(path: &Path, create: impl FnOnce(&HostFile)) -> PathBuf {
    let staged = StagedFile::create_beside(path).expect("the directory is writable");
    create(&staged.storage());
    staged.publish(false, true).expect("the name is free");
    path.to_owned()
}

#[test]
fn a_killed_writer_of_a_dynamic_image() {
    kill_again_and_again("a_killed_writer_of_a_dynamic_image", |dir| {
        new_image(&dir.join("disk.vhd"), |file| {
            create_dynamic(file, SIZE, 512 << 10).expect("the size is possible");
        })
    });
}

#[test]
fn a_killed_writer_of_a_differencing_image() {
    kill_again_and_again("a_killed_writer_of_a_differencing_image", |dir| {
        let parent = new_image(&dir.join("parent.vhd"), |file| {
            create_fixed(file, SIZE, Default::default()).expect("the size is possible");
        });
        let child = dir.join("child.avhd");
        create_child(&child, &parent, Some(2 << 20), &OpenOptions::new()).expect("the parent is there");
        child
    });
}
