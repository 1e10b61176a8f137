//! A client that writes all the time and notes when it gets its answers.

use std::io::IoSlice;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use vhd_benches::{REQUEST, random_offsets};
use vhd_core::device::BlockDevice as _;
use vhd_nbd::client::{ClientOptions, NbdDevice};

use crate::programs::EXPORT;

/// Bytes at the start of the disk that are written to, in random order: few blocks, so that most writes allocate nothing.
const REGION: u64 = 8 << 20;

/// Offsets that each thread goes through, again and again.
const OFFSETS: usize = 4096;

/// When each of a thread's requests was answered.
type Answered = Arc<Mutex<Vec<Instant>>>;

/// Threads with one request in flight each, over one connection: what other threads of a server could do for other
/// connections does not count.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    threads: Vec<(JoinHandle<Result<()>>, Answered)>,
}

impl Writers {
    /// Connects to a server and keeps `depth` writes in flight.
    pub(crate) fn start(socket: &Path, depth: usize) -> Result<Self> {
        let uri = format!("nbd+unix:///{EXPORT}?socket={}", socket.display()).parse()?;
        let options = ClientOptions {
            write: true,
            connections: 1,
            ..ClientOptions::default()
        };
        let device = NbdDevice::open(&uri, options)?;
        let stop = Arc::new(AtomicBool::new(false));
        let start = |seed: usize| {
            let (device, stop, answered) = (Arc::clone(&device), Arc::clone(&stop), Answered::default());
            let note = Arc::clone(&answered);
            let seed = u64::try_from(seed).unwrap_or_default();
            (std::thread::spawn(move || write(&device, seed, &stop, &note)), answered)
        };
        let threads = (0..depth).map(start).collect();
        Ok(Self { stop, threads })
    }

    /// When requests were answered since this was last asked, in order.
    pub(crate) fn answers(&self) -> Vec<Instant> {
        let take = |answered: &Answered| std::mem::take(&mut *answered.lock().unwrap_or_else(PoisonError::into_inner));
        let mut all: Vec<Instant> = self.threads.iter().flat_map(|(_, answered)| take(answered)).collect();
        all.sort_unstable();
        all
    }

    /// Disconnects. An error is one that a request met with.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = std::mem::take(&mut self.threads);
        threads
            .into_iter()
            .try_for_each(|(thread, _)| thread.join().ok().context("a writer panicked")?)
    }
}

impl Drop for Writers {
    /// After a failure.
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn write(device: &NbdDevice, seed: u64, stop: &AtomicBool, answered: &Mutex<Vec<Instant>>) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(seed);
    let bytes = [u8::try_from(seed % 255)? + 1; REQUEST];
    for offset in random_offsets(REGION, OFFSETS, &mut random).into_iter().cycle() {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        device.write_vectored_at(&[IoSlice::new(&bytes)], offset, false)?;
        let now = Instant::now();
        answered.lock().unwrap_or_else(PoisonError::into_inner).push(now);
    }
    Ok(())
}

/// The longest time without an answer between two moments. Waits that begin or end outside count as far as they are inside.
pub(crate) fn longest_gap(answers: &[Instant], from: Instant, to: Instant) -> Duration {
    let inside = answers.iter().copied().filter(|answer| (from..=to).contains(answer));
    let (mut last, mut longest) = (from, Duration::ZERO);
    for answer in inside.chain([to]) {
        longest = longest.max(answer - last);
        last = answer;
    }
    longest
}

/// Answers per second between two moments.
pub(crate) fn per_second(answers: &[Instant], from: Instant, to: Instant) -> f64 {
    let inside = answers.iter().filter(|answer| (from..=to).contains(*answer)).count();
    f64::from(u32::try_from(inside).unwrap_or(u32::MAX)) / (to - from).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_reaches_to_the_ends_and_no_further() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let answers = [at(0), at(50), at(60), at(90), at(300)];
        assert_eq!(longest_gap(&answers, at(40), at(95)), Duration::from_millis(30));
        assert_eq!(longest_gap(&answers, at(10), at(70)), Duration::from_millis(40));
        assert_eq!(longest_gap(&answers, at(100), at(200)), Duration::from_millis(100));
        assert!((per_second(&answers, at(40), at(90)) - 60.0).abs() < 1e-9);
    }
}
