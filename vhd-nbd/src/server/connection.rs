//! One client from greeting to good-bye.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::handshake::{Handshake, HandshakeError, Negotiated, Step, TlsPolicy};
use super::registry::Control;
use super::server::Server;
use super::session::{Session, SessionError};
use crate::protocol::{MAX_OPTION_LENGTH, OptionHeader};

/// Bytes that are received at once while negotiating.
const RECEIVE: usize = 4096;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("the negotiation took longer than {0:?}")]
    TooSlow(Duration),
    #[error("the client went away while negotiating")]
    Gone,
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Session(#[from] SessionError),
}

/// One connection of a server.
pub(super) struct Connection<'a> {
    pub(super) server: &'a Server,
    pub(super) control: &'a Control,
}

impl Connection<'_> {
    /// Negotiates and serves.
    pub(super) fn run(&self) -> Result<(), ConnectionError> {
        let Some((negotiated, rest)) = self.negotiate()? else {
            return Ok(());
        };
        let transport = &self.control.transport;
        transport.set_timeouts(None)?;
        transport.set_receive_timeout(self.server.options().idle_timeout)?;
        self.control.serving.store(true, Ordering::Relaxed);
        let session = Session {
            transport,
            export: &negotiated.export,
            style: negotiated.style,
            contexts: &negotiated.contexts,
            stats: self.server.stats_of(),
            stop: &self.control.stop,
        };
        Ok(session.run(&rest)?)
    }

    /// Returns what was agreed on and what came behind it; `None` if the client wants nothing more.
    fn negotiate(&self) -> Result<Option<(Negotiated, Vec<u8>)>, ConnectionError> {
        let limit = self.server.options().handshake_timeout;
        let deadline = Instant::now() + limit;
        let mut handshake = Handshake::new(self.server.exports(), TlsPolicy::Off);
        let (mut input, mut output) = (Vec::new(), Vec::new());
        Handshake::greet(&mut output);
        loop {
            let (taken, step) = handshake.advance(&input, &mut output)?;
            input.drain(..taken);
            self.give_until(deadline, limit)?;
            let sent = self.control.transport.send(&[&output]);
            output.clear();
            sent.map_err(|error| too_slow(error, limit))?;
            match step {
                Step::NeedBytes => self.receive(&mut input, deadline, limit)?,
                Step::StartTls => handshake.restart_with_tls(),
                Step::Transmission(negotiated) => return Ok(Some((negotiated, input))),
                Step::Aborted => return Ok(None),
            }
        }
    }

    fn receive(&self, input: &mut Vec<u8>, deadline: Instant, limit: Duration) -> Result<(), ConnectionError> {
        // The machine takes every whole option, so less than one is left.
        debug_assert!(input.len() < OptionHeader::SIZE + MAX_OPTION_LENGTH as usize);
        self.give_until(deadline, limit)?;
        let filled = input.len();
        input.resize(filled + RECEIVE, 0);
        let count = self.control.transport.receive(&mut input[filled..]);
        let count = count.map_err(|error| too_slow(error, limit))?;
        input.truncate(filled + count);
        if count == 0 { Err(ConnectionError::Gone) } else { Ok(()) }
    }

    /// Lets the next call take until the deadline.
    fn give_until(&self, deadline: Instant, limit: Duration) -> Result<(), ConnectionError> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ConnectionError::TooSlow(limit));
        }
        Ok(self.control.transport.set_timeouts(Some(left))?)
    }
}

fn too_slow(error: io::Error, limit: Duration) -> ConnectionError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConnectionError::TooSlow(limit),
        _ => error.into(),
    }
}
