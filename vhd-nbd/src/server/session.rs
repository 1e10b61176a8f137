//! The transmission phase of one connection.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use vhd_block::DeviceError;
use vhd_block::units::{u64_from, usize_from};

use super::budget::{Budget, Charge, Piece};
use super::control::{Control, Ending, Verdict};
use super::export::Export;
use super::inbox::Inbox;
use super::job::{Contexts, Job};
use super::outbox::Outbox;
use super::pace::Pace;
use super::read::Reads;
use super::rules::{self, Refusal};
use super::stats::{Stats, Tally};
use super::workers::Workers;
use crate::protocol::{
    Command, CommandFlags, DEFAULT_MAX_PAYLOAD, Errno, ProtocolError, ReplyStyle, RequestHeader, StatusFilter,
};

/// Why a session ended otherwise than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the client went away in the middle of a request")]
    CutOff,
    #[error("the client sent nothing for {0:?}")]
    Idle(Duration),
    #[error("the client did not go on with a request for {0:?}")]
    Stalled(Duration),
}

impl SessionError {
    /// Whether the client may still be there, and wait for answers.
    fn is_timeout(&self) -> bool {
        matches!(self, Self::Idle(_) | Self::Stalled(_))
    }
}

/// Whether a session goes on behind a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    End,
}

/// How long a client may do nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    /// In the middle of a message, its own or ours.
    pub(super) stall: Duration,
    /// Between messages, while nothing is done for it; `None`: for ever.
    pub(super) idle: Option<Duration>,
}

/// How often a session that waits looks at the clock, at least.
const TICK: Duration = Duration::from_secs(5);

impl Timeouts {
    /// How often to look at the clock.
    pub(super) fn tick(self) -> Duration {
        let shortest = self.idle.map_or(self.stall, |idle| idle.min(self.stall));
        (shortest / 4).min(TICK)
    }
}

/// What a session is about; shared by its threads.
pub(super) struct Session<'a> {
    pub(super) control: &'a Control,
    pub(super) export: &'a Export,
    pub(super) style: ReplyStyle,
    pub(super) contexts: Contexts,
    pub(super) stats: &'a Stats,
    pub(super) budget: &'a Arc<Budget>,
    pub(super) timeouts: Timeouts,
}

impl Session<'_> {
    /// Serves until the client has had enough, or the server. `rest` came behind the negotiation.
    pub(super) fn run(&self, rest: &[u8]) -> Result<(), SessionError> {
        let workers = Workers::default();
        let inbox = Inbox::new(self.budget, rest)?;
        let outbox = Outbox::new(&self.control.transport, self.style, self.budget)?;
        thread::scope(|scope| {
            let _end = EndWorkers(&workers);
            let mut receiver = Receiver::new(self, &workers, scope, inbox, outbox);
            let result = receiver.run();
            // Requests that were executed are answered, whatever happened behind them.
            let sent = receiver.outbox.send();
            drop(receiver);
            match &result {
                Ok(Flow::End) => workers.finish(self),
                // What is stopped from receiving by the server still has its client.
                _ if self.control.is_stopping() => {}
                Err(error) if error.is_timeout() => self.control.transport.close(),
                _ => self.control.end(Ending::Lost),
            }
            result.map(drop).and(sent.map_err(SessionError::from))
        })
    }

    /// Memory for a request. Waits for it as long as a client may hold it that does not receive.
    pub(super) fn take(&self, bytes: usize) -> Result<Charge, Refusal> {
        Ok(self.budget.take(bytes, self.timeouts.stall, || self.has_ended())?)
    }

    /// Buffers for a request.
    pub(super) fn take_pieces(&self, bytes: usize) -> Result<Vec<Piece>, Refusal> {
        Ok(self
            .budget
            .take_pieces(bytes, self.timeouts.stall, || self.has_ended())?)
    }

    /// So many jobs are answered or dropped.
    pub(super) fn done_with(&self, jobs: usize) {
        self.control.jobs_end(jobs);
        self.stats.in_flight.fetch_sub(u64_from(jobs), Ordering::Relaxed);
    }

    /// Whether nobody waits for what is read.
    fn has_ended(&self) -> bool {
        self.control.verdict(Command::Read) != Verdict::Execute
    }
}

/// Lets the workers end with the receiver, even if that panics.
struct EndWorkers<'a>(&'a Workers);

impl Drop for EndWorkers<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The thread that receives requests and executes the quick ones.
struct Receiver<'scope, 'env> {
    session: &'scope Session<'scope>,
    workers: &'scope Workers,
    scope: &'scope Scope<'scope, 'env>,
    inbox: Inbox,
    outbox: Outbox<'scope>,
    reads: Reads<'scope>,
    pace: Pace,
    tally: Tally,
    /// When the requests in the inbox had arrived.
    since: Instant,
    /// Time spent in waiting for the rest of them.
    receiving: Duration,
    /// The server had begun to stop when they arrived.
    refuses: bool,
}

impl<'scope, 'env> Receiver<'scope, 'env> {
    fn new(
        session: &'scope Session<'scope>,
        workers: &'scope Workers,
        scope: &'scope Scope<'scope, 'env>,
        inbox: Inbox,
        outbox: Outbox<'scope>,
    ) -> Self {
        Self {
            session,
            workers,
            scope,
            inbox,
            outbox,
            reads: Reads::new(session),
            pace: Pace::default(),
            tally: Tally::default(),
            since: Instant::now(),
            receiving: Duration::ZERO,
            refuses: session.control.is_stopping(),
        }
    }

    fn run(&mut self) -> Result<Flow, SessionError> {
        loop {
            self.session.stats.in_flight.fetch_add(1, Ordering::Relaxed);
            let flow = self.execute_all();
            self.session.stats.in_flight.fetch_sub(1, Ordering::Relaxed);
            if flow? == Flow::End {
                return Ok(Flow::End);
            }
            let is_whole = self.inbox.bytes().is_empty();
            if !self.fill(is_whole)? {
                return if is_whole {
                    Ok(Flow::GoOn)
                } else {
                    Err(SessionError::CutOff)
                };
            }
            self.since = Instant::now();
            self.refuses = self.session.control.is_stopping();
        }
    }

    /// Waits for bytes: for as long as the client may be idle, or may leave a request unfinished. While its jobs are being
    /// done it is neither. Returns whether any came; `false` is the end.
    fn fill(&mut self, between_requests: bool) -> Result<bool, SessionError> {
        let Timeouts { stall, idle } = self.session.timeouts;
        let mut began = None;
        loop {
            match self.inbox.fill(&self.session.control.transport) {
                Err(error) if is_timeout(&error) => {}
                other => return Ok(other?),
            }
            let tick = self.session.timeouts.tick();
            // The first tick has passed already.
            let began = began.get_or_insert_with(|| Instant::now().checked_sub(tick).unwrap_or_else(Instant::now));
            if between_requests && self.session.control.has_jobs() {
                *began = Instant::now();
                continue;
            }
            let waited = began.elapsed();
            match idle {
                _ if !between_requests && waited >= stall => return Err(SessionError::Stalled(stall)),
                Some(idle) if waited >= idle => return Err(SessionError::Idle(idle)),
                _ if between_requests => {
                    self.inbox.relax();
                    self.outbox.relax();
                }
                _ => {}
            }
        }
    }

    /// Executes every request that is there, and sends the replies.
    fn execute_all(&mut self) -> Result<Flow, SessionError> {
        let style = self.session.style.header_style();
        let mut flow = Flow::GoOn;
        let watch = self.pace.watch();
        while let Some(header) = self.inbox.bytes().get(..style.request_size()) {
            let request = RequestHeader::decode(style, header)?;
            self.inbox.consume(style.request_size());
            flow = self.execute(&request)?;
            if flow == Flow::End {
                break;
            }
            self.outbox.send_if_much()?;
        }
        self.outbox.send()?;
        let (reads, bytes) = self.tally.reads();
        let count = u32::try_from(reads).unwrap_or(u32::MAX);
        // A client that is slow is no reason to hand reads over: they would only wait for it elsewhere.
        let waited = self.outbox.take_sending() + std::mem::take(&mut self.receiving);
        let time = self.since.elapsed().saturating_sub(waited);
        self.pace.observe(count, bytes, time, watch.has_waited());
        self.session.stats.add(&mut self.tally, self.since.elapsed());
        Ok(flow)
    }

    fn execute(&mut self, request: &RequestHeader) -> Result<Flow, SessionError> {
        let payload = request.payload_length(self.session.style.header_style());
        if payload > DEFAULT_MAX_PAYLOAD.into() {
            return Err(SessionError::Protocol(ProtocolError::TooLong {
                what: "the payload of a request",
                len: payload,
                limit: DEFAULT_MAX_PAYLOAD.into(),
            }));
        }
        let checked = match request.command {
            Command::Disconnect => Ok(()),
            _ if self.refuses => Err(Refusal::stopping()),
            _ => rules::check(request, self.session.style, self.session.export),
        };
        if let Err(refusal) = checked {
            self.skip(usize_from(payload))?;
            self.refuse(request, refusal)?;
            return Ok(Flow::GoOn);
        }
        match request.command {
            Command::Read if !self.pace.hand_over() => {
                let succeeded = self.reads.execute(request, &mut self.outbox)?;
                self.tally.count(Command::Read, request.length, succeeded);
            }
            Command::Write => self.write(request)?,
            Command::Disconnect => return Ok(Flow::End),
            Command::BlockStatus => self.block_status(request, usize_from(payload))?,
            _ => self.hand_over(*request, Contexts::default())?,
        }
        Ok(Flow::GoOn)
    }

    fn refuse(&mut self, request: &RequestHeader, refusal: Refusal) -> io::Result<()> {
        self.tally.count(request.command, request.length, false);
        self.outbox.error(request, refusal.errno, refusal.message, None)
    }

    fn hand_over(&mut self, request: RequestHeader, contexts: Contexts) -> io::Result<()> {
        let job = Job {
            request,
            contexts,
            since: self.since,
        };
        // The client may wait for what is answered already before it reads what the workers send.
        self.outbox.send()?;
        self.workers.submit(self.scope, self.session, job);
        Ok(())
    }

    /// Writes the payload. With FUA the flush is left to a worker: it serves all writes that wait for one.
    fn write(&mut self, request: &RequestHeader) -> Result<(), SessionError> {
        let len = usize_from(request.length);
        let written = match self.inbox.bytes().get(..len) {
            Some(payload) => {
                let written = self.session.export.disk().write_at(payload, request.offset);
                self.inbox.consume(len);
                written
            }
            None => self.write_in_pieces(request.offset, len)?,
        };
        match written {
            Ok(()) if request.flags.contains(CommandFlags::FUA) => self.hand_over(*request, Contexts::default())?,
            Ok(()) => {
                self.outbox.done(request)?;
                self.tally.count(Command::Write, request.length, true);
            }
            Err(error) => self.refuse(request, Refusal::from_device(&error))?,
        }
        Ok(())
    }

    /// Writes a payload while it arrives. After a failure the rest is thrown away.
    fn write_in_pieces(&mut self, offset: u64, len: usize) -> Result<Result<(), DeviceError>, SessionError> {
        let mut done = 0;
        let step = self.inbox.piece();
        while done < len {
            self.await_bytes(step.min(len - done))?;
            let at = offset + u64_from(done);
            let piece = piece_len(at, len - done, self.inbox.bytes().len());
            let written = self.session.export.disk().write_at(&self.inbox.bytes()[..piece], at);
            self.inbox.consume(piece);
            done += piece;
            if written.is_err() {
                self.skip(len - done)?;
                return Ok(written);
            }
        }
        Ok(Ok(()))
    }

    fn block_status(&mut self, request: &RequestHeader, payload: usize) -> Result<(), SessionError> {
        let selected = if request.flags.contains(CommandFlags::PAYLOAD_LEN) {
            self.filtered(request, payload)?
        } else {
            Ok((*request, Arc::clone(&self.session.contexts)))
        };
        match selected {
            Ok((request, contexts)) if !contexts.is_empty() => Ok(self.hand_over(request, contexts)?),
            Ok(_) => Ok(self.refuse(request, Refusal::new(Errno::Inval, "no context was agreed on"))?),
            Err(refusal) => Ok(self.refuse(request, refusal)?),
        }
    }

    /// What a request with a payload asks for.
    fn filtered(
        &mut self,
        request: &RequestHeader,
        payload: usize,
    ) -> Result<Result<(RequestHeader, Contexts), Refusal>, SessionError> {
        if payload > StatusFilter::MAX_SIZE {
            self.skip(payload)?;
            return Ok(Err(Refusal::new(Errno::Inval, "a list of contexts that is too long")));
        }
        self.await_bytes(payload)?;
        let filter = StatusFilter::decode(&self.inbox.bytes()[..payload]);
        self.inbox.consume(payload);
        Ok(filter
            .map_err(|error| Refusal::new(Errno::Inval, error.to_string()))
            .and_then(|filter| self.select(request, &filter)))
    }

    fn select(&self, request: &RequestHeader, filter: &StatusFilter) -> Result<(RequestHeader, Contexts), Refusal> {
        let request = RequestHeader {
            length: filter.length,
            flags: request.flags.difference(CommandFlags::PAYLOAD_LEN),
            ..*request
        };
        rules::check_status(&request, self.session.export)?;
        let mut contexts = Vec::new();
        for id in &filter.contexts {
            let known = self.session.contexts.iter().find(|(known, _)| known == id);
            match known {
                Some(context) if !contexts.contains(context) => contexts.push(*context),
                _ => return Err(Refusal::new(Errno::Inval, "a context is not known, or named twice")),
            }
        }
        Ok((request, contexts.into()))
    }

    /// Waits until `len` bytes (at most half of the inbox) are there.
    fn await_bytes(&mut self, len: usize) -> Result<(), SessionError> {
        while self.inbox.bytes().len() < len {
            // The client may wait for replies before it goes on.
            self.outbox.send()?;
            let began = Instant::now();
            if !self.fill(false)? {
                return Err(SessionError::CutOff);
            }
            self.receiving += began.elapsed();
        }
        Ok(())
    }

    /// Throws `len` bytes away.
    fn skip(&mut self, mut len: usize) -> Result<(), SessionError> {
        while len > 0 {
            self.await_bytes(1)?;
            let count = len.min(self.inbox.bytes().len());
            self.inbox.consume(count);
            len -= count;
        }
        Ok(())
    }
}

/// Whether only the time for one wait has passed.
fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// Bytes of a payload of which `left` are to come and `there` are there that are written at once: all but the last
/// piece end on a border of blocks.
fn piece_len(offset: u64, left: usize, there: usize) -> usize {
    const BORDER: u64 = vhd_block::PHYSICAL_BLOCK as u64;
    if left <= there {
        return left;
    }
    there - usize_from((offset + u64_from(there)) % BORDER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: usize = 128 << 10;

    #[test]
    fn pieces_end_on_borders() {
        assert_eq!(piece_len(0, 100, 100), 100);
        assert_eq!(piece_len(0, 100, 1000), 100);
        assert_eq!(piece_len(0, PIECE + 1, PIECE), PIECE);
        assert_eq!(piece_len(512, 1 << 20, PIECE), PIECE - 512);
        assert_eq!(piece_len(4095, 1 << 20, PIECE + 5), PIECE + 1);
    }
}
