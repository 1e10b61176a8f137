//! Time, as leases need it.

use std::time::Duration;

/// A clock that goes on while the machine is suspended and never goes back.
///
/// Safety never depends on it: a lease that is believed too long costs a refused append, no more.
pub trait Clock: Send + Sync {
    /// Time since a fixed moment before the process began.
    fn now(&self) -> Duration;

    /// Waits for `time`.
    fn sleep(&self, time: Duration);
}

/// The system's `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Duration::new(
            time.tv_sec.try_into().unwrap_or(0),
            time.tv_nsec.try_into().unwrap_or(0),
        )
    }

    fn sleep(&self, time: Duration) {
        std::thread::sleep(time);
    }
}
