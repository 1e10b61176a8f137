//! The threads of a session that do what may take long.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};

use super::job::{Executor, Job};
use super::session::Session;

/// Threads per session; they are started when they are needed.
const MAX_WORKERS: usize = 8;

/// Jobs that wait at most; then the session reads no more requests.
const MAX_WAITING: usize = 256;

/// Bytes of stack per thread.
pub(super) const STACK_SIZE: usize = 512 << 10;

/// Jobs, and the threads that wait for them.
#[derive(Default)]
pub(super) struct Workers {
    state: Mutex<State>,
    /// There is a job, or no more will come.
    job_or_end: Condvar,
    /// There is room for a job.
    room: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    /// FLUSH and writes with FUA: one flush serves all that wait.
    flushes: Vec<Job>,
    flushing: bool,
    threads: usize,
    idle: usize,
    ended: bool,
}

impl State {
    /// The jobs to do next: one, or all flushes if none is being executed (those that come meanwhile share the next).
    fn take(&mut self) -> Option<Vec<Job>> {
        if !self.flushing && !self.flushes.is_empty() {
            self.flushing = true;
            return Some(std::mem::take(&mut self.flushes));
        }
        self.jobs.pop_front().map(|job| vec![job])
    }

    fn waiting(&self) -> usize {
        self.jobs.len() + self.flushes.len()
    }
}

impl Workers {
    /// Hands a job over; waits while there are too many.
    pub(super) fn submit<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        session: &'scope Session<'scope>,
        job: Job,
    ) {
        let mut state = self.lock();
        while state.waiting() >= MAX_WAITING {
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        session.stats.in_flight.fetch_add(1, Ordering::Relaxed);
        if job.is_flush() {
            state.flushes.push(job);
        } else {
            state.jobs.push_back(job);
        }
        if state.idle == 0 && state.threads < MAX_WORKERS {
            let builder = Builder::new().name("nbd-worker".into()).stack_size(STACK_SIZE);
            match builder.spawn_scoped(scope, || self.work(session)) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    // Nobody would do the job.
                    drop(state);
                    tracing::warn!(%error, "no thread for a worker");
                    self.work_off(session);
                    return;
                }
                Err(_) => {}
            }
        }
        drop(state);
        self.job_or_end.notify_one();
    }

    /// Nothing more will be submitted: the threads end when all is done.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.job_or_end.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work<'a>(&self, session: &'a Session<'a>) {
        let mut executor = Executor::new(session);
        let mut state = self.lock();
        loop {
            if let Some(jobs) = state.take() {
                drop(state);
                self.room.notify_one();
                self.execute(&mut executor, session, &jobs);
                state = self.lock();
            } else if state.ended {
                return;
            } else {
                state.idle += 1;
                state = self.job_or_end.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    /// Does what waits, on the calling thread.
    fn work_off<'a>(&self, session: &'a Session<'a>) {
        let mut executor = Executor::new(session);
        loop {
            let Some(jobs) = self.lock().take() else {
                return;
            };
            self.execute(&mut executor, session, &jobs);
        }
    }

    fn execute<'a>(&self, executor: &mut Executor<'a>, session: &'a Session<'a>, jobs: &[Job]) {
        if let Err(error) = executor.execute(jobs) {
            tracing::debug!(%error, "a reply can't be sent");
            session.transport.close();
        }
        let count = u64::try_from(jobs.len()).unwrap_or(u64::MAX);
        session.stats.in_flight.fetch_sub(count, Ordering::Relaxed);
        if jobs.iter().any(Job::is_flush) {
            self.lock().flushing = false;
            self.job_or_end.notify_one();
        }
    }
}
