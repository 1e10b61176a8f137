//! The connections of a server.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::transport::Transport;

/// What others can do to a connection.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) transport: Transport,
    /// It is to execute what it has received, and to end.
    pub(super) stop: AtomicBool,
    /// The negotiation is over.
    pub(super) serving: AtomicBool,
}

/// The connections by the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Registry {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    connections: BTreeMap<u64, Arc<Control>>,
    next: u64,
}

impl Registry {
    /// Adds a connection; `None` if there are `limit` already. When there are, the one that negotiates for the longest
    /// time is closed: those who come to keep others out make room for each other.
    pub(super) fn add(&self, transport: Transport, limit: usize) -> Option<(u64, Arc<Control>)> {
        let mut state = self.lock();
        if state.connections.len() >= limit {
            let mut connections = state.connections.values();
            let negotiating = connections.find(|control| !control.serving.load(Ordering::Relaxed))?;
            negotiating.transport.close();
            let limit_passed = state.connections.len() >= 2 * limit;
            if limit_passed {
                return None;
            }
        }
        let number = state.next;
        state.next += 1;
        let control = Arc::new(Control {
            transport,
            stop: AtomicBool::new(false),
            serving: AtomicBool::new(false),
        });
        state.connections.insert(number, Arc::clone(&control));
        Some((number, control))
    }

    /// A connection has ended.
    pub(super) fn remove(&self, number: u64) {
        self.lock().connections.remove(&number);
        self.changed.notify_all();
    }

    /// Tells all to end: those that serve when they have executed what they received.
    pub(super) fn stop_all(&self) {
        for control in self.lock().connections.values() {
            control.stop.store(true, Ordering::Relaxed);
            if control.serving.load(Ordering::Relaxed) {
                control.transport.stop_receiving();
            } else {
                control.transport.close();
            }
        }
    }

    /// Closes all.
    pub(super) fn close_all(&self) {
        for control in self.lock().connections.values() {
            control.transport.close();
        }
    }

    /// Waits until all have ended; `false` if they have not after this time.
    pub(super) fn wait_empty(&self, time: Duration) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.lock();
        while !state.connections.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
