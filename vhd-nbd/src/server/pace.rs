//! Whether reads are answered at once or by workers.

use std::time::Duration;

/// A read that takes longer than this waits for a device: handing it to another thread costs a tenth of it.
const SLOW: Duration = Duration::from_micros(100);

/// Requests that go to workers after slow ones, before the next is tried here again.
const AWAY: u32 = 64;

/// Watches how long requests take. Data in the page cache is read where the request was received; while reads wait for
/// a device, several are kept waiting at once.
#[derive(Debug, Default)]
pub(super) struct Pace {
    away: u32,
}

impl Pace {
    /// Whether the next read is to go to a worker.
    pub(super) fn hand_over(&mut self) -> bool {
        let hand_over = self.away > 0;
        self.away = self.away.saturating_sub(1);
        hand_over
    }

    /// `count` reads of together `bytes` bytes were answered here in this time.
    pub(super) fn observe(&mut self, count: u32, bytes: u64, time: Duration) {
        // Long transfers take their time in memory too: 1 us per KiB is slower than any memory.
        let allowed = SLOW * count + Duration::from_micros(bytes / 1024);
        if count > 0 && time > allowed {
            self.away = AWAY;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_reads_are_handed_over_for_a_while() {
        let mut pace = Pace::default();
        pace.observe(32, 32 * 4096, Duration::from_micros(60));
        assert!(!pace.hand_over());
        pace.observe(1, 1 << 20, Duration::from_micros(900));
        assert!(!pace.hand_over());
        pace.observe(1, 4096, Duration::from_micros(300));
        for _ in 0..AWAY {
            assert!(pace.hand_over());
        }
        assert!(!pace.hand_over());
    }
}
