//! Mounted disks beside other programs that mount them, beside a FUSE server that does nothing but read and write a raw
//! file, and beside that file itself: fio on each in turn, round by round, in one run.
//!
//! ```text
//! cargo run --release -p vhd-benches --bin mount -- [DIR [ROUNDS [MILLISECONDS [WORK]]]]
//! ```
//!
//! Needs fio, and `vhd` beside this program. Programs that are not installed (qemu-storage-daemon, nbdfuse and qemu-nbd,
//! vhdimount) are left out, and so are rows that a program cannot do: qemu reads no parents, vhdimount does not write.
//! Default: the current directory, three rounds, half a second for each measurement, and all work: with a WORK such as
//! "random 4 KiB write, O_DIRECT" only rows whose name begins so. The order of programs is drawn anew for every round.
#![forbid(unsafe_code)]

mod bare;
mod fio;
mod images;
mod peers;
mod report;

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use vhd_benches::Arguments;

use crate::fio::Work;
use crate::images::Images;
use crate::peers::Program;
use crate::report::Report;

fn main() -> Result<()> {
    let arguments = Arguments::of_this_program()?;
    let (rounds, milliseconds) = (arguments.number(1, 3)?, arguments.number(2, 500)?);
    ensure!(Command::new("fio").arg("--version").output().is_ok(), "there is no fio");
    let dir = tempfile::tempdir_in(&arguments.place)?;
    let images = Images::new(dir.path(), &arguments.vhd)?;
    let mut report = Report::default();
    let mut order = fastrand::Rng::new();
    for writes in [false, true] {
        let mut wanted = Work::all(writes);
        wanted.retain(|work| work.to_string().starts_with(arguments.text(3)));
        if wanted.is_empty() {
            continue;
        }
        let mut programs = Program::all(&images, &arguments.vhd, writes)?;
        for work in wanted {
            for round in 0..=rounds {
                order.shuffle(&mut programs);
                for program in &programs {
                    let rate = fio::measure(&program.file, work, milliseconds)
                        .with_context(|| format!("{} on {}", program.name, program.image))?;
                    // The first round warms up.
                    if round > 0 {
                        report.add(work, program.image, program.name, rate);
                    }
                }
            }
            eprintln!("{work}");
        }
    }
    report.print();
    Ok(())
}
