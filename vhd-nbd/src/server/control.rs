//! What the threads of a connection know of one another, and what others can do to it.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};

use crate::protocol::Command;
use crate::transport::Transport;

/// A connection, for its threads and for those who want it to end.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) transport: Transport,
    /// The negotiation is over.
    pub(super) serving: AtomicBool,
    /// It has been closed to make room, and its thread is about to end.
    pub(super) evicted: AtomicBool,
    /// The server stops: what has not been received is refused.
    stopping: AtomicBool,
    /// Jobs that workers have been handed and have not answered.
    jobs: AtomicUsize,
    ending: AtomicU8,
}

/// Who still waits for the jobs of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Ending {
    /// The client.
    None,
    /// Nobody: the client has gone, and did not say that it would do without the answers.
    Left,
    /// Nobody: the client has gone without a word. What it asked for may be undone or done.
    Lost,
    /// The server has no more time for them.
    Stopped,
}

/// What becomes of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Execute,
    /// Nobody is told.
    Drop,
    /// With an error that says that the server stops.
    Refuse,
}

impl Control {
    pub(super) fn new(transport: Transport) -> Self {
        Self {
            transport,
            serving: AtomicBool::new(false),
            evicted: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            jobs: AtomicUsize::new(0),
            ending: AtomicU8::new(0),
        }
    }

    /// From now on new requests and options are refused.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether the server is about to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// A job is handed over.
    pub(super) fn job_begins(&self) {
        self.jobs.fetch_add(1, Ordering::Relaxed);
    }

    /// So many jobs are answered or dropped.
    pub(super) fn jobs_end(&self, count: usize) {
        self.jobs.fetch_sub(count, Ordering::Relaxed);
    }

    /// Whether the client waits for workers.
    pub(super) fn has_jobs(&self) -> bool {
        self.jobs.load(Ordering::Relaxed) > 0
    }

    /// Nobody waits for the jobs any more; the worst that was said counts.
    pub(super) fn end(&self, ending: Ending) {
        self.ending.fetch_max(ending.number(), Ordering::Relaxed);
    }

    /// Whether a job is to be executed, or to go on. A flush always is: it harms nobody, and other connections may rely
    /// on what it makes durable.
    pub(super) fn verdict(&self, command: Command) -> Verdict {
        let ending = self.ending.load(Ordering::Relaxed);
        if ending == Ending::None.number() && !self.transport.is_closed() {
            return Verdict::Execute;
        }
        let reads = matches!(command, Command::Read | Command::Cache | Command::BlockStatus);
        let flushes = matches!(command, Command::Flush | Command::Write);
        match ending {
            _ if flushes => Verdict::Execute,
            ending if ending == Ending::Stopped.number() => Verdict::Refuse,
            ending if ending == Ending::Left.number() && !reads => Verdict::Execute,
            _ => Verdict::Drop,
        }
    }
}

impl Ending {
    const fn number(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Left => 1,
            Self::Lost => 2,
            Self::Stopped => 3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_nobody_waits_for_is_dropped_and_flushes_are_not() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let control = Control::new(Transport::new(ours.into()));
        let verdicts = || [Command::Cache, Command::WriteZeroes, Command::Flush].map(|job| control.verdict(job));
        assert_eq!(verdicts(), [Verdict::Execute; 3]);
        control.end(Ending::Left);
        assert_eq!(verdicts(), [Verdict::Drop, Verdict::Execute, Verdict::Execute]);
        control.end(Ending::Lost);
        control.end(Ending::Left);
        assert_eq!(verdicts(), [Verdict::Drop, Verdict::Drop, Verdict::Execute]);
        control.end(Ending::Stopped);
        assert_eq!(verdicts(), [Verdict::Refuse, Verdict::Refuse, Verdict::Execute]);
    }

    #[test]
    fn a_connection_that_this_side_closed_has_no_client() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let control = Control::new(Transport::new(ours.into()));
        control.transport.close();
        assert_eq!(control.verdict(Command::Cache), Verdict::Drop);
    }
}
