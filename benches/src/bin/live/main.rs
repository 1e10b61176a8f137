//! Disks that change while a client writes to them: how long a live snapshot holds the client up, beside
//! qemu-storage-daemon in the same run, and what a live merge leaves of the client's throughput.
//!
//! ```text
//! cargo build --release -p vhd-cli && cargo run --release -p vhd-benches --bin live -- [DIR [ROUNDS [MiB [WHAT]]]]
//! ```
//!
//! So many MiB lie in each file that is merged. Default: the current directory, 20 rounds, 64 MiB, both `pauses` and
//! `merges`: about three minutes.
//! Needs `vhd` beside this program; without qemu-storage-daemon, qemu-img and qemu-io there are no figures of a peer.
#![forbid(unsafe_code)]

mod images;
mod merges;
mod pauses;
mod programs;
mod qmp;
mod writers;

use anyhow::Result;
use vhd_benches::Arguments;

fn main() -> Result<()> {
    let arguments = Arguments::of_this_program()?;
    let (rounds, mib) = (arguments.number(1, 20)?, arguments.number(2, 64)?);
    let dir = tempfile::tempdir_in(&arguments.place)?;
    load("before")?;
    let wanted = |what: &str| what.starts_with(arguments.text(3));
    if wanted("pauses") {
        pauses::print(dir.path(), &arguments.vhd, rounds)?;
    }
    if wanted("merges") {
        merges::print(dir.path(), &arguments.vhd, rounds, mib << 20)?;
    }
    load("after")
}

fn load(when: &str) -> Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!("\nload average {when}: {}", load.trim());
    Ok(())
}
