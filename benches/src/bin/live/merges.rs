//! What a client has left while the files of its disk are merged, and how fast they are.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use vhd_benches::{BLOCK, spread};

use crate::images;
use crate::programs;
use crate::writers::{Writers, longest_gap, per_second};

/// Bytes of the disk, at least.
const SIZE: u64 = 1 << 30;

/// Where the data lies that is merged: behind what the client writes to.
const DATA: u64 = 64 << 20;

/// Requests that the client has in flight.
const DEPTH: usize = 32;

/// How long the client's throughput is measured without a merge, before each.
const WITHOUT: Duration = Duration::from_millis(300);

/// Bytes per second that the slow merges are allowed.
const RATE: u64 = 128 << 20;

/// The snapshots of the disk, the older one first: deleting it merges the file in the middle into the base, and deleting
/// the other one then merges the leaf, which the client writes to.
const SNAPSHOTS: [&str; 2] = ["older", "newer"];

/// What is merged, by the snapshot that is deleted.
const MERGED: [&str; 2] = ["in the middle", "the leaf"];

/// How the merge is done, in the order of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Offline,
    Live { rate: Option<u64> },
}

const MODES: [Mode; 3] = [
    Mode::Offline,
    Mode::Live { rate: None },
    Mode::Live { rate: Some(RATE) },
];

/// One merge.
struct Sample {
    /// Seconds.
    took: f64,
    /// Without and with the merge, as far as there was a client.
    client: Option<Client>,
}

/// What the client got.
struct Client {
    /// Requests per second.
    without: f64,
    with: f64,
    /// The longest gap between two answers before the merge and during it, in milliseconds.
    gap_without: f64,
    gap_with: f64,
}

/// Merges offline and live, in turn, round by round, and prints the table.
pub(crate) fn print(dir: &Path, vhd: &Path, rounds: u64, bytes: u64) -> Result<()> {
    let disk = Merging::new(dir, vhd, bytes)?;
    // By what is merged and by mode, one sample per round.
    let mut samples: [[Vec<Sample>; MODES.len()]; MERGED.len()] = Default::default();
    // The first round warms up.
    for round in 0..=rounds {
        for (index, mode) in MODES.into_iter().enumerate() {
            let found = disk.measure(mode).with_context(|| format!("{mode:?}"))?;
            for (samples, sample) in samples.iter_mut().zip(found) {
                samples[index].extend((round > 0).then_some(sample));
            }
        }
    }
    println!(
        "\n| merge of {} MiB | client without, requests/s | client during it, of without | longest gap without, ms | during it | merge, MiB/s | of offline |",
        bytes >> 20
    );
    println!("|---|---|---|---|---|---|---|");
    for (merged, by_mode) in MERGED.iter().zip(&samples) {
        for (mode, samples) in MODES.iter().zip(by_mode) {
            println!("| {merged}, {mode} | {} |", row(bytes, samples, &by_mode[0]));
        }
    }
    Ok(())
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Offline => f.write_str("offline"),
            Self::Live { rate: None } => f.write_str("live"),
            Self::Live { rate: Some(rate) } => write!(f, "live, --rate {}M", rate >> 20),
        }
    }
}

/// The columns of one kind of merge; `offline` are the samples of the same rounds.
fn row(bytes: u64, samples: &[Sample], offline: &[Sample]) -> String {
    let clients = || samples.iter().filter_map(|sample| sample.client.as_ref());
    let client = if clients().next().is_none() {
        "- | - | - | -".to_owned()
    } else {
        let spread_of = |value: fn(&Client) -> f64| spread(clients().map(value).collect());
        let in_words = |value: fn(&Client) -> f64| in_words(spread_of(value));
        format!(
            "{:.0} | {} | {} | {}",
            spread_of(|client| client.without).0,
            in_words(|client| client.with / client.without),
            in_words(|client| client.gap_without),
            in_words(|client| client.gap_with)
        )
    };
    let mib = f64::from(u32::try_from(bytes >> 20).unwrap_or(u32::MAX));
    let (rate, ..) = spread(samples.iter().map(|sample| mib / sample.took).collect());
    let of_offline = samples
        .iter()
        .zip(offline)
        .map(|(sample, offline)| offline.took / sample.took);
    format!("{client} | {rate:.0} | {}", in_words(spread(of_offline.collect())))
}

fn in_words((median, min, max): (f64, f64, f64)) -> String {
    format!("{median:.2} ({min:.2} to {max:.2})")
}

/// A disk that is given snapshots with data, which are then merged.
struct Merging<'a> {
    vhd: &'a Path,
    disk: PathBuf,
    socket: PathBuf,
    data: Vec<u8>,
}

impl<'a> Merging<'a> {
    fn new(dir: &Path, vhd: &'a Path, bytes: u64) -> Result<Self> {
        let disk = dir.join("merged.vhd");
        images::create(vhd, &disk, (DATA + bytes).next_multiple_of(BLOCK).max(SIZE))?;
        let mut data = vec![0; usize::try_from(bytes)?];
        fastrand::Rng::with_seed(1).fill(&mut data);
        Ok(Self {
            vhd,
            disk,
            socket: dir.join("socket"),
            data,
        })
    }

    /// Both merges on a disk with both snapshots. It has none afterwards.
    fn measure(&self, mode: Mode) -> Result<[Sample; MERGED.len()]> {
        for name in SNAPSHOTS {
            let active = images::snapshot(self.vhd, &self.disk, name)?;
            images::write(&active, DATA, &self.data)?;
        }
        let Mode::Live { rate } = mode else {
            return Ok([self.offline(SNAPSHOTS[0])?, self.offline(SNAPSHOTS[1])?]);
        };
        let _running = programs::serve(self.vhd, &self.disk, &self.socket)?;
        let writers = Writers::start(&self.socket, DEPTH)?;
        let samples = [
            self.live(SNAPSHOTS[0], rate, &writers)?,
            self.live(SNAPSHOTS[1], rate, &writers)?,
        ];
        writers.stop()?;
        Ok(samples)
    }

    fn offline(&self, name: &str) -> Result<Sample> {
        let started = Instant::now();
        images::delete(self.vhd, &self.disk, name, None)?;
        let took = started.elapsed().as_secs_f64();
        Ok(Sample { took, client: None })
    }

    fn live(&self, name: &str, rate: Option<u64>, writers: &Writers) -> Result<Sample> {
        let watched = Instant::now();
        thread::sleep(WITHOUT);
        let started = Instant::now();
        images::delete(self.vhd, &self.disk, name, rate)?;
        let ended = Instant::now();
        let answers = writers.answers();
        Ok(Sample {
            took: (ended - started).as_secs_f64(),
            client: Some(Client {
                without: per_second(&answers, watched, started),
                with: per_second(&answers, started, ended),
                gap_without: longest_gap(&answers, watched, started).as_secs_f64() * 1e3,
                gap_with: longest_gap(&answers, started, ended).as_secs_f64() * 1e3,
            }),
        })
    }
}
