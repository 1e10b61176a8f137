//! Disks that change while a client writes to them: how long a live snapshot holds the client up, beside
//! qemu-storage-daemon in the same run, and what a live merge leaves of the client's throughput.
//!
//! ```text
//! cargo build --release -p vhd-cli && cargo run --release -p vhd-benches --bin live -- [DIR [ROUNDS [MiB]]]
//! ```
//!
//! So many MiB lie in each file that is merged. Default: the current directory, 20 rounds, 64 MiB: about three minutes.
//! Needs `vhd` beside this program; without qemu-storage-daemon, qemu-img and qemu-io there are no figures of a peer.
#![forbid(unsafe_code)]

mod images;
mod merges;
mod pauses;
mod programs;
mod qmp;
mod writers;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |index: usize, default: u64| {
        let text = arguments.get(index);
        text.map_or(Ok(default), |text| text.parse()).context("a number")
    };
    let place = PathBuf::from(arguments.first().map_or(".", String::as_str)).canonicalize()?;
    let (rounds, mib) = (number(1, 20)?, number(2, 64)?);
    let vhd = std::env::current_exe()?.with_file_name("vhd");
    ensure!(vhd.exists(), "there is no {}: build vhd-cli", vhd.display());
    let dir = tempfile::tempdir_in(place)?;
    load("before")?;
    pauses::print(dir.path(), &vhd, rounds)?;
    merges::print(dir.path(), &vhd, rounds, mib << 20)?;
    load("after")
}

fn load(when: &str) -> Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("\nload average {when}: {}", load.trim());
    Ok(())
}
