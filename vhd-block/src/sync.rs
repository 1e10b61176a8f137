//! Synchronisation primitives: the standard ones, or loom's under `--cfg loom`.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    RwLock, RwLockReadGuard, RwLockWriteGuard,
    atomic::{AtomicUsize, Ordering},
};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicUsize, Ordering};

#[cfg(loom)]
pub(crate) use modelled::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// How long a thread that waits for others lets them run: they are about to be through.
#[cfg(not(loom))]
const SPIN: std::time::Duration = std::time::Duration::from_micros(20);

/// Lets others run, for one who has waited so long; `false` if that was as long as he may.
#[cfg(not(loom))]
pub(crate) fn pause(waited: std::time::Duration, limit: std::time::Duration) -> bool {
    if waited >= limit {
        return false;
    }
    match waited < SPIN {
        true => std::thread::yield_now(),
        false => std::thread::sleep(SPIN),
    }
    true
}

/// There is no time in a model: who waits there sees the end of it.
#[cfg(loom)]
pub(crate) fn pause(_waited: std::time::Duration, _limit: std::time::Duration) -> bool {
    loom::thread::yield_now();
    true
}

/// Lanes of a [`Switch`](crate::Switch): more than threads usually run at once.
#[cfg(not(loom))]
pub(crate) const LANES: usize = 16;
#[cfg(loom)]
pub(crate) const LANES: usize = 2;

/// The lane of this thread: threads that run at once should have different ones.
#[cfg(not(loom))]
pub(crate) fn lane() -> usize {
    use std::sync::atomic::{AtomicUsize, Ordering};

    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed) % LANES;
    }
    OWN.with(|own| *own)
}

/// By the number in the thread's id, which is the same in each run of a model; its hash is not.
#[cfg(loom)]
pub(crate) fn lane() -> usize {
    let id = format!("{:?}", loom::thread::current().id());
    let digits = id.bytes().filter(u8::is_ascii_digit);
    digits.last().map_or(0, usize::from) % LANES
}

/// A lock for many readers or one writer, of a mutex and a condition. Loom's own fails where a thread that it woke finds
/// the lock taken again.
#[cfg(loom)]
mod modelled {
    use std::ops::{Deref, DerefMut};
    use std::sync as plain;

    use loom::sync::{Condvar, Mutex};

    /// What the lock is to loom, and the value: its own lock is never waited for.
    pub(crate) struct RwLock<T> {
        users: Mutex<Users>,
        changed: Condvar,
        value: plain::RwLock<T>,
    }

    #[derive(Default)]
    struct Users {
        readers: usize,
        writer: bool,
    }

    pub(crate) struct RwLockReadGuard<'a, T> {
        lock: &'a RwLock<T>,
        value: Option<plain::RwLockReadGuard<'a, T>>,
    }

    pub(crate) struct RwLockWriteGuard<'a, T> {
        lock: &'a RwLock<T>,
        value: Option<plain::RwLockWriteGuard<'a, T>>,
    }

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self {
                users: Mutex::default(),
                changed: Condvar::new(),
                value: plain::RwLock::new(value),
            }
        }

        pub(crate) fn read(&self) -> Result<RwLockReadGuard<'_, T>, plain::PoisonError<RwLockReadGuard<'_, T>>> {
            let mut users = self.users.lock().unwrap();
            while users.writer {
                users = self.changed.wait(users).unwrap();
            }
            users.readers += 1;
            let value = self.value.try_read().ok();
            Ok(RwLockReadGuard { lock: self, value })
        }

        pub(crate) fn write(&self) -> Result<RwLockWriteGuard<'_, T>, plain::PoisonError<RwLockWriteGuard<'_, T>>> {
            let mut users = self.users.lock().unwrap();
            while users.writer || users.readers > 0 {
                users = self.changed.wait(users).unwrap();
            }
            users.writer = true;
            let value = self.value.try_write().ok();
            Ok(RwLockWriteGuard { lock: self, value })
        }

        fn leave(&self, change: impl FnOnce(&mut Users)) {
            change(&mut self.users.lock().unwrap());
            self.changed.notify_all();
        }
    }

    impl<T> Drop for RwLockReadGuard<'_, T> {
        fn drop(&mut self) {
            self.value = None;
            self.lock.leave(|users| users.readers -= 1);
        }
    }

    impl<T> Drop for RwLockWriteGuard<'_, T> {
        fn drop(&mut self) {
            self.value = None;
            self.lock.leave(|users| users.writer = false);
        }
    }

    impl<T> Deref for RwLockReadGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.value.as_ref().expect("no writer has the value")
        }
    }

    impl<T> Deref for RwLockWriteGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.value.as_ref().expect("nobody else has the value")
        }
    }

    impl<T> DerefMut for RwLockWriteGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.value.as_mut().expect("nobody else has the value")
        }
    }
}
