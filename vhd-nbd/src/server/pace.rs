//! Whether reads are answered at once or by workers.

use std::time::Duration;

/// A read that takes longer than this waits for a device: handing it to another thread costs a tenth of it.
const SLOW: Duration = Duration::from_micros(100);

/// Slow batches in a row from which on reads are handed over: a thread that loses its processor now and then is no slow
/// device.
const IN_A_ROW: u32 = 4;

/// Requests that go to workers after slow ones, before the next is tried here again.
const AWAY: u32 = 64;

/// Watches how long requests take. Data in the page cache is read where the request was received; while reads wait for
/// a device, several are kept waiting at once.
#[derive(Debug, Default)]
pub(super) struct Pace {
    slow: u32,
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
        if count == 0 {
            return;
        }
        self.slow = if time > allowed { self.slow + 1 } else { 0 };
        if self.slow >= IN_A_ROW {
            self.away = AWAY;
            // One more slow one, and the next go away too.
            self.slow = IN_A_ROW - 1;
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
        for _ in 0..IN_A_ROW {
            assert!(!pace.hand_over());
            pace.observe(1, 4096, Duration::from_micros(300));
        }
        for _ in 0..AWAY {
            assert!(pace.hand_over());
        }
        assert!(!pace.hand_over());
        pace.observe(1, 4096, Duration::from_micros(300));
        assert!(pace.hand_over());
    }

    #[test]
    fn a_slow_one_among_quick_ones_is_nothing() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.observe(1, 4096, Duration::from_millis(3));
            pace.observe(1, 4096, Duration::from_micros(3));
            assert!(!pace.hand_over());
        }
    }
}
