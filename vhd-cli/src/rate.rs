//! `--rate`: so many bytes in a second at most.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use vhd_core::ops::Progress;

use crate::size::parse_bytes;

/// How long a thread sleeps before it looks whether it is told to stop.
const NAP: Duration = Duration::from_millis(50);

/// Time in which less was copied than allowed that is made up for: the copying itself takes its time, and sleeps are longer
/// than asked for. Without it short pieces would be copied far more slowly than the rate says.
const CREDIT: Duration = Duration::from_millis(100);

/// How fast bytes are copied.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct RateArgs {
    /// Copy at most so many bytes in a second
    #[arg(long, value_name = "SIZE", value_parser = at_least_one)]
    pub(crate) rate: Option<u64>,
}

fn at_least_one(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        0 => Err("at least one byte in a second".to_owned()),
        rate => Ok(rate),
    }
}

/// Passes progress on, and holds up those who copy faster than they should.
pub(crate) struct Limited<'a> {
    progress: &'a dyn Progress,
    /// Bytes in a second.
    rate: Option<u64>,
    cancel: &'a AtomicBool,
    /// When everything that was copied may have been.
    due: Mutex<Due>,
}

impl<'a> Limited<'a> {
    pub(crate) fn new(progress: &'a dyn Progress, rate: Option<u64>, cancel: &'a AtomicBool) -> Self {
        Self {
            progress,
            rate,
            cancel,
            due: Mutex::new(Due(Instant::now())),
        }
    }
}

/// When everything that was copied so far may have been.
struct Due(Instant);

impl Due {
    /// Takes notice of bytes that were copied at a moment, and answers when the caller may go on: when all that was copied
    /// before may have been. So the last bytes of a job are not waited for.
    fn add(&mut self, bytes: u64, rate: u64, now: Instant) -> Instant {
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let before = self.0;
        self.0 = before.max(now.checked_sub(CREDIT).unwrap_or(now)) + takes;
        before
    }
}

impl Progress for Limited<'_> {
    fn begin(&self, total: u64) {
        self.progress.begin(total);
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
        let Some(rate) = self.rate else { return };
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let due = due.add(bytes, rate, Instant::now());
        while !self.cancel.load(Ordering::Relaxed) {
            let left = due.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(NAP));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_its_time_and_a_cancelled_job_does_not_wait() {
        let start = Instant::now();
        let mut due = Due(start);
        // The first bytes are not waited for, and the last ones neither.
        assert_eq!(due.add(500, 1000, start), start);
        assert_eq!(due.add(1500, 1000, start), start + Duration::from_millis(500));
        assert_eq!(due.add(1, 1000, start), start + Duration::from_millis(2000));
        assert_eq!(at_least_one("1M"), Ok(1 << 20));
        assert!(at_least_one("0").is_err());
        let cancel = AtomicBool::new(true);
        let limited = Limited::new(&(), Some(1), &cancel);
        // Otherwise it would take a year.
        (0..2).for_each(|_| limited.advance(1 << 25));
    }

    /// Short pieces, each of which takes longer than it should, are copied at the rate all the same; a pause is made up for only
    /// in part.
    #[test]
    fn time_that_was_lost_in_short_pieces_is_made_up_for() {
        let start = Instant::now();
        let mut due = Due(start);
        let millis = |millis| Duration::from_millis(millis);
        // A piece has a millisecond, and each sleep takes five.
        let mut now = start;
        for _ in 0..1000 {
            now = match due.add(1, 1000, now) {
                until if until > now => now + millis(5),
                _ => now,
            };
        }
        assert!(
            (millis(900)..=millis(1010)).contains(&(now - start)),
            "{:?}",
            now - start
        );
        let later = start + millis(10_000);
        due.add(0, 1000, later);
        assert_eq!(due.0, later - CREDIT);
    }
}
