//! The threads of a session that do what may take long.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope};
use std::time::Duration;

use super::budget::Charge;
use super::control::Ending;
use super::job::{Executor, Job};
use super::session::Session;

/// Threads per session; they are started when they are needed.
const MAX_WORKERS: usize = 8;

/// Jobs that wait at most; then the session reads no more requests.
const MAX_WAITING: usize = 64;

/// Bytes of stack per thread.
pub(super) const STACK_SIZE: usize = 512 << 10;

/// Bytes that a thread takes of the server's memory: the part of its stack that is used, and its buffer.
const WORKER: usize = 64 << 10;

/// How often one who waits for workers looks whether the client is still there.
const LOOK: Duration = Duration::from_millis(200);

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
    /// Some of them are being executed.
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
            state = self.wait_for_room(state, session);
        }
        session.stats.in_flight.fetch_add(1, Ordering::Relaxed);
        session.control.job_begins();
        if job.is_flush() {
            state.flushes.push(job);
        } else {
            state.jobs.push_back(job);
        }
        if state.idle == 0 && state.threads < MAX_WORKERS {
            match self.start(scope, session) {
                Ok(()) => state.threads += 1,
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

    /// Starts another thread.
    fn start<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        session: &'scope Session<'scope>,
    ) -> io::Result<()> {
        let memory = session.budget.keep(WORKER).ok_or(io::ErrorKind::OutOfMemory)?;
        let executor = Executor::new(session)?;
        let builder = Builder::new().name("nbd-worker".into()).stack_size(STACK_SIZE);
        builder.spawn_scoped(scope, || self.work(session, executor, memory))?;
        Ok(())
    }

    /// Waits until jobs are done. A client that has gone meanwhile is noticed: its jobs end sooner then.
    fn wait_for_room<'s>(&'s self, state: MutexGuard<'s, State>, session: &Session<'_>) -> MutexGuard<'s, State> {
        let waited = self.room.wait_timeout(state, LOOK);
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        if timeout.timed_out() && session.control.transport.has_peer_closed() {
            session.control.end(Ending::Left);
        }
        state
    }

    /// Waits until all jobs are done, for a client that has said good-bye and may go at any time.
    pub(super) fn finish(&self, session: &Session<'_>) {
        let mut state = self.lock();
        state.ended = true;
        self.job_or_end.notify_all();
        while session.control.has_jobs() {
            state = self.wait_for_room(state, session);
        }
    }

    /// Nothing more will be submitted: the threads end when all is done.
    pub(super) fn end(&self) {
        self.lock().ended = true;
        self.job_or_end.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work<'a>(&self, session: &'a Session<'a>, mut executor: Executor<'a>, _memory: Charge) {
        let mut state = self.lock();
        loop {
            if let Some(jobs) = state.take() {
                drop(state);
                self.execute(&mut executor, session, jobs);
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
        let Ok(mut executor) = Executor::new(session) else {
            session.control.transport.close();
            self.drop_all(session);
            return;
        };
        loop {
            let Some(jobs) = self.lock().take() else {
                return;
            };
            self.execute(&mut executor, session, jobs);
        }
    }

    /// Gives up all that waits: there may be nobody left to do it.
    fn drop_all(&self, session: &Session<'_>) {
        let mut state = self.lock();
        let dropped = state.jobs.drain(..).count() + state.flushes.drain(..).count();
        drop(state);
        session.done_with(dropped);
    }

    fn execute<'a>(&self, executor: &mut Executor<'a>, session: &'a Session<'a>, jobs: Vec<Job>) {
        let running = Running {
            workers: self,
            session,
            jobs,
        };
        self.room.notify_one();
        if let Err(error) = executor.execute(&running.jobs) {
            tracing::debug!(%error, "a reply can't be sent");
            session.control.transport.close();
        }
    }
}

/// Jobs that are being executed.
struct Running<'a> {
    workers: &'a Workers,
    session: &'a Session<'a>,
    jobs: Vec<Job>,
}

impl Drop for Running<'_> {
    /// They are done with, also if that was a panic: the flushes that wait have their turn, and the client is not left to
    /// wait for an answer.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.session.control.transport.close();
            self.workers.lock().threads -= 1;
            self.workers.drop_all(self.session);
        }
        self.session.done_with(self.jobs.len());
        if self.jobs.iter().any(Job::is_flush) {
            self.workers.lock().flushing = false;
        }
        self.workers.job_or_end.notify_one();
        self.workers.room.notify_one();
    }
}
