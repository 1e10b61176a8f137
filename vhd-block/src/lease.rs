//! What is left of a request that has passed and still uses what it found there.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::{AtomicUsize, Ordering, pause};

/// Counts the [`Lease`]s that were given out and not given back. They are given out behind a gate that is closed to whoever
/// waits for them: then their number only falls.
#[derive(Clone, Default)]
pub(crate) struct Leases(Arc<Count>);

/// On a line of memory of its own: each lane has one.
#[derive(Default)]
#[repr(align(128))]
struct Count(AtomicUsize);

/// Says that something which was found behind a [`Gate`](crate::Gate) or a [`Switch`](crate::Switch) is still used.
/// Dropping it gives it back. It may go to another thread, and keeps no thread from passing again.
pub struct Lease(Leases);

impl Leases {
    /// One more. For who has passed.
    pub(crate) fn take(&self) -> Lease {
        // Whoever closes the gate sees it: the lock of the gate orders the two.
        self.0.0.fetch_add(1, Ordering::Relaxed);
        Lease(self.clone())
    }

    fn are_back(&self) -> bool {
        // Pairs with the drop: what was done under the lease has happened.
        self.0.0.load(Ordering::Acquire) == 0
    }

    /// Waits until all of them are given back; `false` if that takes longer than `limit`. For who has closed the gate.
    pub(crate) fn wait_for<'a>(all: impl Iterator<Item = &'a Self> + Clone, limit: Duration) -> bool {
        let start = Instant::now();
        while !all.clone().all(Self::are_back) {
            if !pause(start.elapsed(), limit) {
                return false;
            }
        }
        true
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.0.0.fetch_sub(1, Ordering::Release);
    }
}
