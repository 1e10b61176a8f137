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
    due: Mutex<Instant>,
}

impl<'a> Limited<'a> {
    pub(crate) fn new(progress: &'a dyn Progress, rate: Option<u64>, cancel: &'a AtomicBool) -> Self {
        Self {
            progress,
            rate,
            cancel,
            due: Mutex::new(Instant::now()),
        }
    }

    /// When the caller may go on that has copied so many bytes. Time in which nothing was copied is not made up for.
    fn due(&self, bytes: u64, rate: u64) -> Instant {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let nanos = u128::from(bytes) * 1_000_000_000 / u128::from(rate.max(1));
        let takes = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        *due = (*due).max(Instant::now()) + takes;
        *due
    }
}

impl Progress for Limited<'_> {
    fn begin(&self, total: u64) {
        self.progress.begin(total);
    }

    fn advance(&self, bytes: u64) {
        self.progress.advance(bytes);
        let Some(rate) = self.rate else { return };
        let due = self.due(bytes, rate);
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
        let cancel = AtomicBool::new(false);
        let limited = Limited::new(&(), Some(1000), &cancel);
        let (first, second) = (limited.due(500, 1000), limited.due(1500, 1000));
        assert_eq!(second - first, Duration::from_millis(1500));
        assert_eq!(at_least_one("1M"), Ok(1 << 20));
        assert!(at_least_one("0").is_err());
        cancel.store(true, Ordering::Relaxed);
        // Otherwise it would take a year.
        Limited::new(&(), Some(1), &cancel).advance(1 << 25);
    }
}
