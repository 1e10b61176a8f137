//! One client from greeting to good-bye.

use std::io;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::control::Control;
use super::handshake::{Handshake, HandshakeError, Negotiated, Step, TlsPolicy};
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
    #[error("the client did not wait for TLS")]
    BeforeTls,
    #[error("TLS failed: {0}")]
    Tls(io::Error),
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
        let timeouts = self.server.options().timeouts();
        let transport = &self.control.transport;
        transport.set_timeouts(Some(timeouts.stall))?;
        transport.set_receive_timeout(Some(timeouts.tick()))?;
        transport.be_eager();
        self.control.serving.store(true, Ordering::Relaxed);
        let session = Session {
            control: self.control,
            export: &negotiated.export,
            style: negotiated.style,
            contexts: negotiated.contexts.into(),
            stats: self.server.stats_of(),
            budget: self.server.budget(),
            timeouts,
        };
        Ok(session.run(&rest)?)
    }

    /// Returns what was agreed on and what came behind it; `None` if the client wants nothing more.
    fn negotiate(&self) -> Result<Option<(Negotiated, Vec<u8>)>, ConnectionError> {
        let limit = self.server.options().handshake_timeout;
        let deadline = Instant::now() + limit;
        let mut handshake = Handshake::new(self.server.exports(), self.tls_policy());
        let (mut input, mut output) = (Vec::new(), Vec::new());
        Handshake::greet(&mut output);
        loop {
            if self.control.is_stopping() {
                handshake.stop();
            }
            let (taken, step) = handshake.advance(&input, &mut output)?;
            input.drain(..taken);
            self.send(&output, deadline).map_err(|error| too_slow(error, limit))?;
            output.clear();
            output.shrink_to(RECEIVE);
            match step {
                Step::Send => {}
                Step::NeedBytes => match self.receive(&mut input, deadline) {
                    Ok(true) => {}
                    Ok(false) => return Err(ConnectionError::Gone),
                    Err(error) => return Err(too_slow(error, limit)),
                },
                Step::StartTls => {
                    // What came behind the option was not encrypted: somebody else may have put it there.
                    if !input.is_empty() {
                        return Err(ConnectionError::BeforeTls);
                    }
                    self.start_tls(deadline, limit)?;
                    handshake.restart_with_tls();
                }
                Step::Transmission(negotiated) => return Ok(Some((negotiated, input))),
                Step::Aborted => return Ok(None),
            }
        }
    }

    fn tls_policy(&self) -> TlsPolicy {
        match self.server.options().tls {
            None => TlsPolicy::Off,
            Some(_) => TlsPolicy::Required,
        }
    }

    fn start_tls(&self, deadline: Instant, limit: Duration) -> Result<(), ConnectionError> {
        let tls = self.server.options().tls.as_ref();
        let tls = tls.expect("TLS is negotiated only where there is a certificate");
        let connection = tls
            .connection()
            .map_err(|error| ConnectionError::Tls(io::Error::other(error)))?;
        let started = self.control.transport.start_tls(connection, Some(deadline));
        started.map_err(|error| match too_slow(error, limit) {
            ConnectionError::Io(error) => ConnectionError::Tls(error),
            other => other,
        })
    }

    fn send(&self, output: &[u8], deadline: Instant) -> io::Result<()> {
        self.control.transport.set_deadline(deadline)?;
        self.control.transport.send(&[output])
    }

    /// Waits for more; `false` is the end.
    fn receive(&self, input: &mut Vec<u8>, deadline: Instant) -> io::Result<bool> {
        // The machine takes every whole option, so less than one is left.
        debug_assert!(input.len() < OptionHeader::SIZE + MAX_OPTION_LENGTH as usize);
        self.control.transport.set_deadline(deadline)?;
        let filled = input.len();
        input.resize(filled + RECEIVE, 0);
        let received = self.control.transport.receive(&mut input[filled..]);
        input.truncate(filled + received.as_ref().map_or(0, |count| *count));
        Ok(received? > 0)
    }
}

fn too_slow(error: io::Error, limit: Duration) -> ConnectionError {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => ConnectionError::TooSlow(limit),
        _ => error.into(),
    }
}
