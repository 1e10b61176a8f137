//! The synchronisation primitives of the engine: the standard ones, or loom's under `--cfg loom`,
//! so that `tests/loom.rs` checks the very code that ships.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

/// Locks `mutex` whether or not a holder panicked: every critical section of the engine leaves its
/// data consistent at each step, so a panic elsewhere is no reason to lose an image.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
