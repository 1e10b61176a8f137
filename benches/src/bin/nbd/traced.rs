//! System calls per request, in a run of their own: strace slows everything.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::Bench;
use crate::load::LOADS;
use crate::servers::Server;

/// Requests of each load.
const REQUESTS: usize = 4000;

/// How long strace needs to attach.
const ATTACH: Duration = Duration::from_millis(500);

/// Counts and prints.
pub(crate) fn print<'a>(servers: impl Iterator<Item = &'a Server>, bench: &Bench<'_>) -> Result<()> {
    print!("\n| system calls per request |");
    LOADS.iter().for_each(|load| print!(" {} |", load.name));
    println!("\n|---|{}", "---|".repeat(LOADS.len()));
    for server in servers {
        bench.images.prepare(server.image)?;
        print!("| {} |", server.name());
        for load in &LOADS {
            let running = bench.start(server)?;
            let mut client = bench.connect(server)?;
            let counts = bench.places.certificates.join("strace.txt");
            let mut strace = Command::new("strace")
                .args(["-f", "-c", "-U", "calls,name", "-o"])
                .arg(&counts)
                .args(["-p", &running.id().to_string()])
                .stderr(Stdio::null())
                .spawn()
                .context("strace")?;
            std::thread::sleep(ATTACH);
            let mut places = load.places(client.size(), fastrand::Rng::with_seed(1)).take(REQUESTS);
            let outcome = client.run(load, &mut places, Duration::from_secs(60))?;
            let pid = i32::try_from(strace.id())
                .ok()
                .and_then(Pid::from_raw)
                .context("a process")?;
            kill_process(pid, Signal::INT)?;
            strace.wait()?;
            let total = total(&std::fs::read_to_string(&counts)?)?;
            #[expect(clippy::cast_precision_loss, reason = "some thousands")]
            let per_request = total / outcome.requests as f64;
            print!(" {per_request:.2} |");
        }
        println!();
    }
    Ok(())
}

/// The last line of the counts.
fn total(counts: &str) -> Result<f64> {
    let last = counts
        .lines()
        .rfind(|line| line.ends_with("total"))
        .context("no calls were counted")?;
    let calls = last.split_ascii_whitespace().next().context("no total")?;
    Ok(calls.parse()?)
}
