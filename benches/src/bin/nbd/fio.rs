//! The same with fio as the client, which costs more itself.

use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use vhd_benches::spread;

use crate::Bench;
use crate::servers::Server;

const ROUNDS: usize = 5;

/// Measures 4 KiB random requests at depth 32 and prints medians.
pub(crate) fn print<'a>(servers: impl Iterator<Item = &'a Server> + Clone, bench: &Bench<'_>) -> Result<()> {
    for rw in ["randread", "randwrite"] {
        println!("\n| fio {rw} 4k d32 | requests/s | min | max |\n|---|---|---|---|");
        let mut rows: Vec<(&Server, Vec<f64>)> = servers.clone().map(|server| (server, Vec::new())).collect();
        for _ in 0..ROUNDS {
            for (server, found) in &mut rows {
                bench.images.prepare(server.image)?;
                let _running = bench.start(server)?;
                found.push(run(rw, bench).with_context(|| server.name())?);
            }
        }
        for (server, found) in rows {
            let (median, min, max) = spread(found);
            println!("| {} | {median:.0} | {min:.0} | {max:.0} |", server.name());
        }
    }
    Ok(())
}

/// Requests per second.
fn run(rw: &str, bench: &Bench<'_>) -> Result<f64> {
    let output = Command::new("fio")
        .args([
            "--name=bench",
            "--ioengine=nbd",
            "--bs=4k",
            "--iodepth=32",
            "--time_based",
        ])
        .args([
            "--iodepth_batch_complete_max=32",
            "--norandommap",
            "--output-format=json",
        ])
        .arg(format!("--uri=nbd+unix:///?socket={}", bench.places.socket.display()))
        .arg(format!("--rw={rw}"))
        .arg(format!("--runtime={}ms", (bench.args.seconds * 1000.0).ceil()))
        .arg(format!("--size={}", bench.images.size))
        .output()
        .context("fio")?;
    ensure!(
        output.status.success(),
        "fio: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8_lossy(&output.stdout);
    // It may have remarks to make first.
    let report = said.find('{').map_or("", |start| &said[start..]);
    let report: serde_json::Value = serde_json::from_str(report)?;
    let side = if rw == "randread" { "read" } else { "write" };
    report["jobs"][0][side]["iops"].as_f64().context("fio told no iops")
}
