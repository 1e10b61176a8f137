//! The connections of a server.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::control::{Control, Ending};
use crate::transport::Transport;

/// Connections that were closed to make room, and whose threads have not ended; more are waited for.
const LEAVING: usize = 16;

/// How long they are waited for.
const EVICTION: Duration = Duration::from_secs(5);

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

impl State {
    /// The connections that have not been closed to make room.
    fn open(&self) -> impl Iterator<Item = &Arc<Control>> {
        let all = self.connections.values();
        all.filter(|control| !control.evicted.load(Ordering::Relaxed))
    }
}

impl Registry {
    /// Adds a connection; `None` if there are `limit` that serve. When there are as many that do not, the one that
    /// negotiates for the longest time is closed: those who come to keep others out make room for each other.
    pub(super) fn add(&self, transport: Transport, limit: usize) -> Option<(u64, Arc<Control>)> {
        let mut state = self.lock();
        if state.open().count() >= limit {
            let mut negotiating = state.open().filter(|control| !control.serving.load(Ordering::Relaxed));
            let victim = negotiating.next()?;
            victim.evicted.store(true, Ordering::Relaxed);
            victim.transport.close();
        }
        // The threads of those that were closed need a moment to end.
        let deadline = Instant::now() + EVICTION;
        while state.connections.len() > limit + LEAVING {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let number = state.next;
        state.next += 1;
        let control = Arc::new(Control::new(transport));
        state.connections.insert(number, Arc::clone(&control));
        Some((number, control))
    }

    /// A connection has ended.
    pub(super) fn remove(&self, number: u64) {
        self.lock().connections.remove(&number);
        self.changed.notify_all();
    }

    /// Lets all refuse what they are asked from now on.
    pub(super) fn stop_all(&self) {
        self.lock().connections.values().for_each(|control| control.stop());
    }

    /// Lets all end when they have answered what has arrived.
    pub(super) fn end_all(&self) {
        let state = self.lock();
        state
            .connections
            .values()
            .for_each(|control| control.transport.stop_receiving());
    }

    /// Closes those that negotiate.
    pub(super) fn close_negotiating(&self) {
        for control in self.lock().connections.values() {
            if !control.serving.load(Ordering::Relaxed) {
                control.transport.close();
            }
        }
    }

    /// Lets all refuse what they have been asked and have not done.
    pub(super) fn give_up_all(&self) {
        let state = self.lock();
        state
            .connections
            .values()
            .for_each(|control| control.end(Ending::Stopped));
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
