//! Looking again for a moment before going to sleep.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// How long to look at most. To wake a thread on another processor takes 20 us and more on a virtual machine, for both
/// sides; whoever answers within that is not worth sleeping for.
const WINDOW: Duration = Duration::from_micros(50);

/// Waits that are slept through at most before looking is tried again. Looking in vain then takes a thousandth of the
/// processor time of those waits.
const LONGEST_REST: u32 = 1024;

/// Whether one kind of wait is worth looking for. It learns: each time that looking was in vain it is left out for twice
/// as many waits, so a slow peer, or one that needs this very processor, costs next to nothing.
#[derive(Debug, Default)]
pub(crate) struct Spin {
    in_vain: AtomicU32,
    rest: AtomicU32,
}

impl Spin {
    /// Calls `look` until it finds something. `None`: nothing came soon, so sleep.
    pub(crate) fn look<T>(&self, mut look: impl FnMut() -> Option<T>) -> Option<T> {
        // Two threads at once may count one rest twice: it is an estimate.
        let rest = self.rest.load(Ordering::Relaxed);
        if rest > 0 {
            self.rest.store(rest - 1, Ordering::Relaxed);
            return None;
        }
        if let Some(found) = look() {
            return Some(found);
        }
        let began = Instant::now();
        while began.elapsed() < WINDOW {
            spin_loop();
            if let Some(found) = look() {
                self.in_vain.store(0, Ordering::Relaxed);
                return Some(found);
            }
        }
        let in_vain = self.in_vain.load(Ordering::Relaxed).saturating_add(1);
        self.in_vain.store(in_vain, Ordering::Relaxed);
        let rest = 1_u32.checked_shl(in_vain).unwrap_or(LONGEST_REST).min(LONGEST_REST);
        self.rest.store(rest, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many of so many waits in which nothing comes are looked for.
    fn looked_for(spin: &Spin, waits: u32) -> u32 {
        (0..waits)
            .map(|_| {
                let mut looked = 0;
                assert_eq!(
                    spin.look(|| {
                        looked = 1;
                        None::<()>
                    }),
                    None
                );
                looked
            })
            .sum()
    }

    #[test]
    fn what_is_there_is_taken_at_once() {
        let spin = Spin::default();
        assert_eq!(spin.look(|| Some(1)), Some(1));
    }

    #[test]
    fn what_comes_soon_is_waited_for() {
        let spin = Spin::default();
        for _ in 0..100 {
            let mut looks = 0;
            let found = spin.look(|| {
                looks += 1;
                (looks == 3).then_some(looks)
            });
            assert_eq!(found, Some(3));
        }
    }

    #[test]
    fn what_does_not_come_is_slept_for() {
        let spin = Spin::default();
        let few = looked_for(&spin, 10_000);
        assert!((1..25).contains(&few), "{few}");
    }

    #[test]
    fn a_peer_that_becomes_quick_is_noticed() {
        let spin = Spin::default();
        looked_for(&spin, 5000);
        let mut looks = 0;
        let slept = (0..).take_while(|_| {
            let found = spin.look(|| {
                looks += 1;
                (looks > 1).then_some(())
            });
            found.is_none()
        });
        assert!(slept.count() <= LONGEST_REST as usize);
    }
}
