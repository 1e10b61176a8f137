//! The transmission phase of one connection.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, Scope};
use std::time::{Duration, Instant};

use vhd_block::DeviceError;
use vhd_block::units::{u64_from, usize_from};

use super::export::{Context, Export};
use super::inbox::{INBOX_SIZE, Inbox};
use super::job::Job;
use super::outbox::Outbox;
use super::pace::Pace;
use super::read::Reads;
use super::rules::{self, Refusal};
use super::stats::{Stats, Tally};
use super::workers::Workers;
use crate::protocol::{
    Command, CommandFlags, DEFAULT_MAX_PAYLOAD, Errno, MetaContextId, ProtocolError, ReplyStyle, RequestHeader,
    StatusFilter,
};
use crate::transport::Transport;

/// Bytes of a long payload that are waited for before they are written: so few that the client can go on sending
/// meanwhile, for a socket holds some 200 KiB.
const PIECE: usize = INBOX_SIZE / 2;

/// Why a session ended otherwise than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(super) enum SessionError {
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the client went away in the middle of a request")]
    CutOff,
}

/// Whether a session goes on behind a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Flow {
    GoOn,
    End,
}

/// What a session is about; shared by its threads.
pub(super) struct Session<'a> {
    pub(super) transport: &'a Transport,
    pub(super) export: &'a Export,
    pub(super) style: ReplyStyle,
    pub(super) contexts: &'a [(MetaContextId, Context)],
    pub(super) stats: &'a Stats,
    pub(super) stop: &'a AtomicBool,
}

impl Session<'_> {
    /// Serves until the client has had enough, or the server. `rest` came behind the negotiation.
    pub(super) fn run(&self, rest: &[u8]) -> Result<(), SessionError> {
        let workers = Workers::default();
        thread::scope(|scope| {
            let _end = EndWorkers(&workers);
            let mut receiver = Receiver::new(self, &workers, scope, rest);
            let result = receiver.run();
            // Requests that were executed are answered, whatever happened behind them.
            let sent = receiver.outbox.send();
            result.and(sent.map_err(SessionError::from))
        })
    }

    /// Whether the server is about to stop.
    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
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
}

impl<'scope, 'env> Receiver<'scope, 'env> {
    fn new(
        session: &'scope Session<'scope>,
        workers: &'scope Workers,
        scope: &'scope Scope<'scope, 'env>,
        rest: &[u8],
    ) -> Self {
        Self {
            session,
            workers,
            scope,
            inbox: Inbox::new(rest),
            outbox: Outbox::for_data(session.transport, session.style),
            reads: Reads::new(session.export.disk()),
            pace: Pace::default(),
            tally: Tally::default(),
            since: Instant::now(),
            receiving: Duration::ZERO,
        }
    }

    fn run(&mut self) -> Result<(), SessionError> {
        loop {
            self.session.stats.in_flight.fetch_add(1, Ordering::Relaxed);
            let flow = self.execute_all();
            self.session.stats.in_flight.fetch_sub(1, Ordering::Relaxed);
            if flow? == Flow::End || self.session.is_stopping() {
                return Ok(());
            }
            if !self.inbox.fill(self.session.transport)? {
                return if self.inbox.bytes().is_empty() {
                    Ok(())
                } else {
                    Err(SessionError::CutOff)
                };
            }
            self.since = Instant::now();
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
        if let Err(refusal) = rules::check(request, self.session.style, self.session.export) {
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
            _ => self.hand_over(*request, Vec::new())?,
        }
        Ok(Flow::GoOn)
    }

    fn refuse(&mut self, request: &RequestHeader, refusal: Refusal) -> io::Result<()> {
        self.tally.count(request.command, request.length, false);
        self.outbox.error(request, refusal.errno, refusal.message, None)
    }

    fn hand_over(&mut self, request: RequestHeader, contexts: Vec<(MetaContextId, Context)>) -> io::Result<()> {
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
            Ok(()) if request.flags.contains(CommandFlags::FUA) => self.hand_over(*request, Vec::new())?,
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
        while done < len {
            self.await_bytes(PIECE.min(len - done))?;
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
            Ok((*request, self.session.contexts.to_vec()))
        };
        match selected {
            Ok((request, contexts)) if !contexts.is_empty() => Ok(self.hand_over(request, contexts)?),
            Ok(_) => Ok(self.refuse(request, Refusal::new(Errno::Inval, "no context was agreed on"))?),
            Err(refusal) => Ok(self.refuse(request, refusal)?),
        }
    }

    /// What a request with a payload asks for.
    #[expect(clippy::type_complexity, reason = "a request and its contexts, or why not")]
    fn filtered(
        &mut self,
        request: &RequestHeader,
        payload: usize,
    ) -> Result<Result<(RequestHeader, Vec<(MetaContextId, Context)>), Refusal>, SessionError> {
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

    fn select(
        &self,
        request: &RequestHeader,
        filter: &StatusFilter,
    ) -> Result<(RequestHeader, Vec<(MetaContextId, Context)>), Refusal> {
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
        Ok((request, contexts))
    }

    /// Waits until `len` bytes (at most [`INBOX_SIZE`]) are there.
    fn await_bytes(&mut self, len: usize) -> Result<(), SessionError> {
        while self.inbox.bytes().len() < len {
            // The client may wait for replies before it goes on.
            self.outbox.send()?;
            let began = Instant::now();
            if !self.inbox.fill(self.session.transport)? {
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

    #[test]
    fn pieces_end_on_borders() {
        assert_eq!(piece_len(0, 100, 100), 100);
        assert_eq!(piece_len(0, 100, 1000), 100);
        assert_eq!(piece_len(0, PIECE + 1, PIECE), PIECE);
        assert_eq!(piece_len(512, 1 << 20, PIECE), PIECE - 512);
        assert_eq!(piece_len(4095, 1 << 20, PIECE + 5), PIECE + 1);
    }
}
