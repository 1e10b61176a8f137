//! The gate that requests pass, for what needs a moment without any.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::PoisonError;
use std::time::Duration;

use crate::lease::{Lease, Leases};
use crate::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Stands before something that requests use: any number of them pass it at once; who closes it waits for those that
/// have passed, and keeps the others waiting until he opens it again. None of them fails.
///
/// A panic behind the gate leaves it usable: what is behind it has to be consistent at every step, or say that it is not.
pub struct Gate<T> {
    behind: RwLock<T>,
    leases: Leases,
}

/// A request that has passed.
pub struct Passed<'a, T> {
    behind: RwLockReadGuard<'a, T>,
    leases: &'a Leases,
}

/// The closed gate; it opens when this is dropped.
pub struct Closed<'a, T> {
    behind: RwLockWriteGuard<'a, T>,
    leases: &'a Leases,
}

impl<T> Gate<T> {
    /// An open gate before `behind`.
    pub fn new(behind: T) -> Self {
        Self {
            behind: RwLock::new(behind),
            leases: Leases::default(),
        }
    }

    /// Passes the gate; waits while it is closed.
    pub fn pass(&self) -> Passed<'_, T> {
        Passed {
            behind: self.behind.read().unwrap_or_else(PoisonError::into_inner),
            leases: &self.leases,
        }
    }

    /// Closes the gate, and waits for the requests that have passed it.
    pub fn close(&self) -> Closed<'_, T> {
        Closed {
            behind: self.behind.write().unwrap_or_else(PoisonError::into_inner),
            leases: &self.leases,
        }
    }
}

impl<T> Passed<'_, T> {
    /// Says that something behind the gate is used for longer than the request takes.
    #[must_use]
    pub fn lease(&self) -> Lease {
        self.leases.take()
    }
}

impl<T> Closed<'_, T> {
    /// Waits until every lease is given back; `false` if that takes longer than `limit`.
    #[must_use]
    pub fn wait_for_leases(&self, limit: Duration) -> bool {
        Leases::wait_for(std::iter::once(self.leases), limit)
    }
}

impl<T> fmt::Debug for Gate<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Gate")
    }
}

impl<T> Deref for Passed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.behind
    }
}

impl<T> Deref for Closed<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.behind
    }
}

impl<T> DerefMut for Closed<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.behind
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn many_pass_and_one_closes() {
        let gate = Gate::new(1);
        let (first, second) = (gate.pass(), gate.pass());
        assert_eq!(*first + *second, 2);
        let closed = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                *gate.close() = 5;
                closed.store(true, Ordering::Relaxed);
            });
            assert!(
                !closed.load(Ordering::Relaxed),
                "closed while a request is behind the gate"
            );
            drop((first, second));
        });
        assert_eq!(*gate.pass(), 5);
    }

    #[test]
    fn a_panic_behind_the_gate_leaves_it_usable() {
        let gate = Gate::new(1);
        thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _closed = gate.close();
                panic!("behind the gate");
            });
            assert!(panics.join().is_err());
        });
        assert_eq!(*gate.pass(), 1);
    }
}
