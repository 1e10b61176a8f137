//! What is measured: fio on one file.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// A kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Work {
    pub(crate) writes: bool,
    pub(crate) random: bool,
    pub(crate) direct: bool,
    pub(crate) jobs: u32,
}

impl Work {
    /// Every kind of reads, or of writes.
    pub(crate) fn all(writes: bool) -> Vec<Self> {
        let mut all = Vec::new();
        for random in [false, true] {
            for direct in [false, true] {
                for jobs in [1, 4] {
                    all.push(Self {
                        writes,
                        random,
                        direct,
                        jobs,
                    });
                }
            }
        }
        all
    }

    fn bytes(self) -> u32 {
        if self.random { 4 << 10 } else { 1 << 20 }
    }

    fn mode(self) -> &'static str {
        match (self.random, self.writes) {
            (false, false) => "read",
            (false, true) => "write",
            (true, false) => "randread",
            (true, true) => "randwrite",
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.random {
            "random 4 KiB"
        } else {
            "sequential 1 MiB"
        };
        let what = if self.writes { "write" } else { "read" };
        let how = if self.direct { "O_DIRECT" } else { "cached" };
        let jobs = if self.jobs == 1 { "1 job" } else { "4 jobs" };
        write!(f, "{kind} {what}, {how}, {jobs}")
    }
}

/// MB/s of one kind of work on a file, whose pages stay in the cache where the work uses it.
pub(crate) fn measure(file: &Path, work: Work, milliseconds: u64) -> Result<f64> {
    let output = Command::new("fio")
        .args(["--name=mount", "--ioengine=psync", "--time_based", "--invalidate=0"])
        .args([
            "--allow_file_create=0",
            "--group_reporting",
            "--output-format=json",
            "--thread",
        ])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--rw={}", work.mode()))
        .arg(format!("--bs={}", work.bytes()))
        .arg(format!("--direct={}", u8::from(work.direct)))
        .arg(format!("--numjobs={}", work.jobs))
        .arg(format!("--size={}", file.metadata()?.len()))
        .arg(format!("--runtime={milliseconds}ms"))
        .output()?;
    ensure!(
        output.status.success(),
        "fio: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout)?;
    // What it remarks comes before the report.
    let start = text.find('{').context("fio has no report")?;
    let report: Value = serde_json::from_str(&text[start..])?;
    let side = if work.writes { "write" } else { "read" };
    let rate = report["jobs"][0][side]["bw_bytes"].as_f64();
    Ok(rate.context("fio's report has no rate")? / 1e6)
}
