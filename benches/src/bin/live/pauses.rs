//! How long a client waits when a snapshot is taken.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use vhd_benches::spread;

use crate::images::SHAPES;
use crate::programs::{Program, is_peer_installed};
use crate::writers::{Writers, longest_gap};

/// Requests that the client has in flight.
const DEPTHS: [usize; 2] = [1, 32];

/// How long the client writes before anything is measured.
const WARM: Duration = Duration::from_millis(30);

/// How long it is watched before the command starts, for what it waits without a snapshot.
const BEFORE: Duration = Duration::from_millis(60);

/// How long it is watched after the command has ended.
const AFTER: Duration = Duration::from_millis(40);

/// The longest gaps between two answers of one round, in milliseconds.
struct Gaps {
    before: f64,
    around: f64,
}

/// Measures every disk with each program in turn, round by round, and prints the table.
pub(crate) fn print(dir: &Path, vhd: &Path, rounds: u64) -> Result<()> {
    println!(
        "\n| longest gap between two answers, ms | depth | program | median | min | max | without: median | max |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for (index, shape) in SHAPES.iter().enumerate() {
        let programs = Program::all(vhd, shape, &dir.join(format!("disk-{index}")))?;
        for depth in DEPTHS {
            let mut measured: Vec<Vec<Gaps>> = programs.iter().map(|_| Vec::new()).collect();
            // The first round warms up.
            for round in 0..=rounds {
                for (program, measured) in programs.iter().zip(&mut measured) {
                    let gaps = measure(program, depth, &dir.join("socket"));
                    let gaps = gaps.with_context(|| format!("{}, {}", program.name(), shape.name))?;
                    measured.extend((round > 0).then_some(gaps));
                }
            }
            for (program, gaps) in programs.iter().zip(measured) {
                println!("| {} | {depth} | {} | {} |", shape.name, program.name(), row(&gaps));
            }
        }
    }
    if !is_peer_installed() {
        println!("\n**Left out: qemu-storage-daemon, qemu-img or qemu-io is not installed; nothing was compared.**");
    }
    Ok(())
}

fn row(gaps: &[Gaps]) -> String {
    let (median, min, max) = spread(gaps.iter().map(|gaps| gaps.around).collect());
    let (without, _, most) = spread(gaps.iter().map(|gaps| gaps.before).collect());
    format!("{median:.2} | {min:.2} | {max:.2} | {without:.2} | {most:.2}")
}

/// One snapshot while a client writes. The disk is then as it was.
fn measure(program: &Program<'_>, depth: usize, socket: &Path) -> Result<Gaps> {
    let mut server = program.serve(socket)?;
    let writers = Writers::start(socket, depth)?;
    thread::sleep(WARM);
    let watched = Instant::now();
    thread::sleep(BEFORE);
    let asked = Instant::now();
    server.snapshot()?;
    thread::sleep(AFTER);
    let end = Instant::now();
    let answers = writers.answers();
    writers.stop()?;
    drop(server);
    program.undo()?;
    let gap = |from, to| longest_gap(&answers, from, to).as_secs_f64() * 1e3;
    Ok(Gaps {
        before: gap(watched, asked),
        around: gap(asked, end),
    })
}
