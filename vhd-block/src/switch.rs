//! A value that requests use, and that another one replaces while they go on.

use std::fmt;
use std::ops::Deref;
use std::sync::PoisonError;
use std::time::Duration;

use crate::lease::{Lease, Leases};
use crate::sync::{LANES, RwLock, RwLockReadGuard, RwLockWriteGuard, lane};

/// A value that requests use, and that another one replaces between two of them.
///
/// Requests [`pass`](Self::pass), any number at once. Who wants to replace the value [`hold`](Self::hold)s them: he waits
/// for those that have passed, and the others wait for him; none of them fails. Each thread passes on a lane of its own, so
/// that threads do not take a line of memory from one another.
///
/// A thread that has passed must not pass again before it is through: a holder may wait between the two.
pub struct Switch<T> {
    lanes: Box<[Lane<T>]>,
}

/// As far apart as processors fetch memory at once.
#[repr(align(128))]
struct Lane<T> {
    value: RwLock<T>,
    leases: LaneLeases,
}

/// Those of a lane, by what is done under them.
#[derive(Default)]
struct LaneLeases {
    readers: Leases,
    writers: Leases,
}

/// For whom one waits who holds all requests: what they found behind the switch they may still use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Users {
    /// Those who write.
    Writers,
    /// Those who read, too.
    All,
}

/// The value, for a request that is to end before another takes its place.
pub struct InUse<'a, T> {
    value: RwLockReadGuard<'a, T>,
    leases: &'a LaneLeases,
}

/// All requests are held until this is dropped.
pub struct Held<'a, T> {
    lanes: Vec<RwLockWriteGuard<'a, T>>,
}

impl<T: Clone> Switch<T> {
    /// With this value at first.
    pub fn new(value: T) -> Self {
        let lanes = (0..LANES).map(|_| Lane {
            value: RwLock::new(value.clone()),
            leases: LaneLeases::default(),
        });
        Self { lanes: lanes.collect() }
    }

    /// The value, for a request that is to end before another takes its place. Waits while requests are held.
    pub fn pass(&self) -> InUse<'_, T> {
        let lane = &self.lanes[lane()];
        InUse {
            value: lane.value.read().unwrap_or_else(PoisonError::into_inner),
            leases: &lane.leases,
        }
    }

    /// The value, for one who may go on with it when another has taken its place.
    pub fn get(&self) -> T {
        self.pass().clone()
    }

    /// Waits for the requests that have passed, and keeps the others waiting; then waits until no lease of `users` is given
    /// out. `None` if the latter takes longer than `limit`: the requests go on.
    ///
    /// The limit is there because who has a lease may be waiting for a request of his own.
    pub fn hold(&self, users: Users, limit: Duration) -> Option<Held<'_, T>> {
        let lanes = self.lanes.iter();
        let lanes = lanes.map(|lane| lane.value.write().unwrap_or_else(PoisonError::into_inner));
        let held = Held { lanes: lanes.collect() };
        let leases = self.lanes.iter().map(|lane| &lane.leases);
        let readers = leases
            .clone()
            .map(|leases| &leases.readers)
            .filter(|_| users == Users::All);
        let writers = leases.map(|leases| &leases.writers);
        Leases::wait_for(writers.chain(readers), limit).then_some(held)
    }
}

impl<T> InUse<'_, T> {
    /// Says that the value is read for longer than the request takes.
    #[must_use]
    pub fn lease_to_read(&self) -> Lease {
        self.leases.readers.take()
    }

    /// Says that the value is written to for longer than the request takes.
    #[must_use]
    pub fn lease_to_write(&self) -> Lease {
        self.leases.writers.take()
    }
}

impl<T: Clone> Held<'_, T> {
    /// The value.
    #[must_use]
    pub fn value(&self) -> &T {
        &self.lanes[0]
    }

    /// Puts another value in its place, for the requests that are held and all later ones.
    pub fn replace(&mut self, value: &T) {
        for lane in &mut self.lanes {
            (**lane).clone_from(value);
        }
    }
}

impl<T> Deref for InUse<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> fmt::Debug for Switch<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Switch")
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn no_request_sees_a_value_that_was_replaced_before_it_began() {
        const THREADS: u64 = 6;
        let switch = Switch::new(0_u64);
        let (present, over) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let at_least = present.load(Ordering::SeqCst);
                        let value = switch.pass();
                        assert!(*value >= at_least);
                    }
                });
            }
            for value in 1..2000 {
                let mut held = switch.hold(Users::All, Duration::ZERO).unwrap();
                assert_eq!(*held.value(), value - 1);
                held.replace(&value);
                drop(held);
                present.store(value, Ordering::SeqCst);
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(switch.get(), 1999);
    }

    #[test]
    fn a_holder_waits_for_each_request_that_has_passed() {
        let switch = Switch::new(1);
        let running = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..5000 {
                        let _value = switch.pass();
                        running.fetch_add(1, Ordering::SeqCst);
                        running.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
            for _ in 0..200 {
                let _held = switch.hold(Users::All, Duration::ZERO).unwrap();
                assert_eq!(running.load(Ordering::SeqCst), 0);
            }
        });
    }

    #[test]
    fn a_lease_keeps_those_away_whom_it_concerns() {
        let switch = Switch::new(1);
        let hold = |users| switch.hold(users, Duration::from_millis(1)).is_some();
        let read = switch.pass().lease_to_read();
        assert!(hold(Users::Writers) && !hold(Users::All));
        let written = switch.pass().lease_to_write();
        assert!(!hold(Users::Writers) && !hold(Users::All));
        thread::spawn(|| drop(written)).join().unwrap();
        assert!(hold(Users::Writers) && !hold(Users::All));
        drop(read);
        assert!(hold(Users::All));
    }
}
