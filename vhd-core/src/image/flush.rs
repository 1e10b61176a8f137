//! Coalescing of flushes: all requests that wait while one runs are served by the next one.

use crate::sync::{Condvar, Mutex, MutexGuard, lock};

/// Runs a flush for as many callers as possible.
#[derive(Debug)]
pub(super) struct FlushCoalescer {
    runs: Mutex<Runs>,
    ended: Condvar,
}

#[derive(Debug)]
struct Runs {
    /// Runs begun so far.
    begun: u64,
    /// One of them, the last begun, has not ended.
    running: bool,
    /// The last run that succeeded.
    succeeded: u64,
}

impl FlushCoalescer {
    pub(super) fn new() -> Self {
        Self {
            runs: Mutex::new(Runs {
                begun: 0,
                running: false,
                succeeded: 0,
            }),
            ended: Condvar::new(),
        }
    }

    /// Returns after a run of `work` that began after this call succeeded, whoever ran it; a caller whose
    /// run was another's and failed runs again itself, so that it reports the failure of its own.
    pub(super) fn run<E>(&self, work: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let mut runs = lock(&self.runs);
        let wanted = runs.begun + 1;
        while runs.running {
            runs = self.wait(runs);
            if runs.succeeded >= wanted {
                return Ok(());
            }
        }
        let (mine, end) = self.begin(runs);
        let result = work();
        if result.is_ok() {
            let mut runs = lock(&self.runs);
            runs.succeeded = mine;
        }
        drop(end);
        result
    }

    /// Does something that no flush may run beside, and that makes nothing durable: who waits meanwhile flushes afterwards.
    pub(super) fn run_alone<T>(&self, work: impl FnOnce() -> T) -> T {
        let mut runs = lock(&self.runs);
        while runs.running {
            runs = self.wait(runs);
        }
        let (_, _end) = self.begin(runs);
        work()
    }

    fn wait<'a>(&self, runs: MutexGuard<'a, Runs>) -> MutexGuard<'a, Runs> {
        match self.ended.wait(runs) {
            Ok(guard) => guard,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn begin(&self, mut runs: MutexGuard<'_, Runs>) -> (u64, EndOfRun<'_>) {
        runs.begun += 1;
        runs.running = true;
        (runs.begun, EndOfRun { coalescer: self })
    }
}

/// Ends the run even if the work panics, so that no one waits for ever.
struct EndOfRun<'a> {
    coalescer: &'a FlushCoalescer,
}

impl Drop for EndOfRun<'_> {
    fn drop(&mut self) {
        lock(&self.coalescer.runs).running = false;
        self.coalescer.ended.notify_all();
    }
}
