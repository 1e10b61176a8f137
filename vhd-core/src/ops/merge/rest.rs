//! A merge beside a disk in use leaves time to those who use it.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::ops::Progress;

/// Time that is rested, in hundredths of the time that copying took.
const REST: u32 = 45;

/// Shorter rests are saved up: a sleep takes longer than it was asked for.
const LEAST: Duration = Duration::from_millis(1);

/// Passes progress on, and rests after each piece.
pub(super) struct Resting<'a> {
    progress: &'a dyn Progress,
    rest: Mutex<Rest>,
}

impl<'a> Resting<'a> {
    pub(super) fn new(progress: &'a dyn Progress) -> Self {
        Self {
            progress,
            rest: Mutex::new(Rest {
                since: Instant::now(),
                owed: Duration::ZERO,
            }),
        }
    }
}

struct Rest {
    /// Since when bytes are copied.
    since: Instant,
    owed: Duration,
}

impl Rest {
    /// A piece is copied at this moment; how long to rest now.
    fn after(&mut self, now: Instant) -> Duration {
        self.owed += now.saturating_duration_since(self.since) * REST / 100;
        match self.owed >= LEAST {
            true => std::mem::take(&mut self.owed),
            false => Duration::ZERO,
        }
    }
}

impl Progress for Resting<'_> {
    fn begin(&self, total: u64) {
        self.progress.begin(total);
        self.rest.lock().unwrap_or_else(PoisonError::into_inner).since = Instant::now();
    }

    fn advance(&self, bytes: u64) {
        // Of several threads one after the other.
        let mut rest = self.rest.lock().unwrap_or_else(PoisonError::into_inner);
        let pause = rest.after(Instant::now());
        self.progress.advance(bytes);
        if !pause.is_zero() {
            thread::sleep(pause);
        }
        rest.since = Instant::now();
    }

    fn step(&self, step: &str) {
        self.progress.step(step);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_pieces_save_their_rests_up() {
        let start = Instant::now();
        let mut rest = Rest {
            since: start,
            owed: Duration::ZERO,
        };
        assert_eq!(rest.after(start + LEAST), Duration::ZERO);
        rest.since = start + LEAST;
        assert_eq!(rest.after(start + 4 * LEAST), 4 * LEAST * REST / 100);
        rest.since = start + 4 * LEAST;
        assert_eq!(rest.after(start + 104 * LEAST), 100 * LEAST * REST / 100);
    }
}
