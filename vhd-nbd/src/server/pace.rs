//! Whether reads are answered at once or by workers.

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

/// A read that takes longer than this waits for a device: handing it to another thread costs a tenth of it.
const SLOW: Duration = Duration::from_micros(100);

/// Slow batches in a row from which on reads are handed over: a thread that loses its processor now and then is no slow
/// device.
const IN_A_ROW: u32 = 4;

/// Requests that go to workers after slow ones, before the next is tried here again.
const AWAY: u32 = 64;

/// Knows whether a thread waits.
#[derive(Debug)]
pub(super) struct Watch {
    waits: Option<i64>,
}

impl Watch {
    /// Whether the thread has waited since; `true` if that is not known.
    pub(super) fn has_waited(&self) -> bool {
        self.waits.is_none_or(|before| waits_of_this_thread() > before)
    }
}

/// How often this thread gave its processor up to wait for something.
fn waits_of_this_thread() -> i64 {
    let usage = getrusage(UsageWho::RUSAGE_THREAD);
    usage.map_or(0, |usage| usage.voluntary_context_switches())
}

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

    /// Begins to watch reads that are answered here.
    pub(super) fn watch(&self) -> Watch {
        Watch {
            // Asking costs something: only after a slow batch is it worth that.
            waits: (self.slow > 0).then(waits_of_this_thread),
        }
    }

    /// `count` reads of together `bytes` bytes were answered here in this time. `waited` says whether the thread waited
    /// for anything; a busy machine makes reads slow without that.
    pub(super) fn observe(&mut self, count: u32, bytes: u64, time: Duration, waited: bool) {
        // Long transfers take their time in memory too: 1 us per KiB is slower than any memory.
        let allowed = SLOW * count + Duration::from_micros(bytes / 1024);
        if count == 0 {
            return;
        }
        self.slow = if time > allowed && waited { self.slow + 1 } else { 0 };
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
        pace.observe(32, 32 * 4096, Duration::from_micros(60), true);
        assert!(!pace.hand_over());
        pace.observe(1, 1 << 20, Duration::from_micros(900), true);
        assert!(!pace.hand_over());
        for _ in 0..IN_A_ROW {
            assert!(!pace.hand_over());
            pace.observe(1, 4096, Duration::from_micros(300), true);
        }
        for _ in 0..AWAY {
            assert!(pace.hand_over());
        }
        assert!(!pace.hand_over());
        pace.observe(1, 4096, Duration::from_micros(300), true);
        assert!(pace.hand_over());
    }

    #[test]
    fn a_slow_one_among_quick_ones_is_nothing() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.observe(1, 4096, Duration::from_millis(3), true);
            pace.observe(1, 4096, Duration::from_micros(3), true);
            assert!(!pace.hand_over());
        }
    }

    #[test]
    fn a_busy_machine_is_no_slow_device() {
        let mut pace = Pace::default();
        for _ in 0..100 {
            pace.observe(1, 4096, Duration::from_millis(3), false);
            assert!(!pace.hand_over());
        }
    }

    #[test]
    fn waiting_is_noticed() {
        let mut pace = Pace::default();
        assert!(pace.watch().has_waited());
        pace.observe(1, 4096, Duration::from_millis(3), true);
        let watch = pace.watch();
        assert!(watch.waits.is_some());
        std::thread::sleep(Duration::from_millis(2));
        assert!(watch.has_waited());
    }
}
