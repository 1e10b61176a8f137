//! A connection: bytes in, bytes out, from any number of threads.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};

use crate::spin::Spin;
use crate::tls::{Connection, TlsState};

/// A connected stream socket, with TLS or without. One thread receives; any thread sends, whole messages at a time.
#[derive(Debug)]
pub struct Transport {
    socket: OwnedFd,
    /// Held while a message is sent.
    sending: Mutex<()>,
    tls: OnceLock<TlsState>,
    eager: OnceLock<Eager>,
}

/// For a side that looks for a moment before it sleeps.
#[derive(Debug, Default)]
struct Eager {
    receiving: Spin,
    sending: Spin,
}

impl Transport {
    /// A connection over a connected, blocking stream socket of any family.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            sending: Mutex::new(()),
            tls: OnceLock::new(),
            eager: OnceLock::new(),
        }
    }

    /// From now on, looks for a moment whether the peer is there before it sleeps: processor time for latency. Where
    /// that is in vain it does so less and less.
    pub fn be_eager(&self) {
        self.eager.get_or_init(Eager::default);
    }

    /// Changes to TLS: negotiates it, and everything goes through it from then on. Nothing else may use the connection
    /// meanwhile. With a deadline, the negotiation takes no longer; it stays in force afterwards.
    ///
    /// # Errors
    /// The peer fails to negotiate or to prove who it is; failures of the socket; TLS is in use already.
    pub fn start_tls(&self, connection: Connection, deadline: Option<Instant>) -> io::Result<()> {
        let mut state = TlsState::new(connection);
        let receive = |buf: &mut [u8]| {
            deadline.map_or(Ok(()), |deadline| self.set_deadline(deadline))?;
            self.receive_raw(buf)
        };
        state.negotiate(receive, |bytes| self.send_raw(&mut [IoSlice::new(bytes)]))?;
        self.tls
            .set(state)
            .map_err(|_| io::Error::other("the connection uses TLS already"))
    }

    /// Waits for bytes and puts what is there into `buf`. Returns how many; 0 means that no more will come.
    ///
    /// # Errors
    /// Failures of the socket or of TLS; `WouldBlock` or `TimedOut` when a [timeout](Self::set_timeouts) passed.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.tls.get() {
            None => self.receive_raw(buf),
            Some(tls) => tls.receive(buf, |buf| self.receive_raw(buf)),
        }
    }

    /// Sends the parts as one message.
    ///
    /// # Errors
    /// Failures of the socket or of TLS; the connection is of no use then, as a part of the message may have been sent.
    pub fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let _whole = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        match self.tls.get() {
            None => {
                let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                self.send_raw(&mut slices)
            }
            Some(tls) => tls.send(parts, |bytes| self.send_raw(&mut [IoSlice::new(bytes)])),
        }
    }

    fn receive_raw(&self, buf: &mut [u8]) -> io::Result<usize> {
        let look = || not_now(self.receive_with(&mut *buf, RecvFlags::DONTWAIT));
        match self.eager.get().and_then(|eager| eager.receiving.look(look)) {
            Some(found) => found,
            None => self.receive_with(buf, RecvFlags::empty()),
        }
    }

    fn receive_with(&self, buf: &mut [u8], flags: RecvFlags) -> io::Result<usize> {
        let received = retry_on_intr(|| recv(&self.socket, &mut *buf, flags));
        Ok(received.map(|(count, _)| count)?)
    }

    fn send_raw(&self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        // Takes off what is empty.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let look = || not_now(self.send_with(slices, SendFlags::DONTWAIT));
            let sent = match self.eager.get().and_then(|eager| eager.sending.look(look)) {
                Some(found) => found,
                None => self.send_with(slices, SendFlags::empty()),
            };
            match sent? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => IoSlice::advance_slices(&mut slices, count),
            }
        }
        Ok(())
    }

    fn send_with(&self, slices: &[IoSlice<'_>], flags: SendFlags) -> io::Result<usize> {
        let flags = flags | SendFlags::NOSIGNAL;
        Ok(retry_on_intr(|| {
            sendmsg(&self.socket, slices, &mut SendAncillaryBuffer::default(), flags)
        })?)
    }

    /// Lets the next call wait for the peer until `deadline`.
    ///
    /// # Errors
    /// `TimedOut` if that has passed; failures of the socket.
    pub fn set_deadline(&self, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.set_timeouts(Some(left))
    }

    /// How long a call may wait for the peer; `None` waits for ever.
    ///
    /// # Errors
    /// Failures of the socket.
    pub fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_receive_timeout(timeout)?;
        Ok(set_socket_timeout(&self.socket, Timeout::Send, at_least_some(timeout))?)
    }

    /// How long [`receive`](Self::receive) may wait for the peer; `None` waits for ever.
    ///
    /// # Errors
    /// Failures of the socket.
    pub fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.socket, Timeout::Recv, at_least_some(timeout))?)
    }

    /// Ends receiving: a thread that waits is woken, what has arrived can still be received.
    pub fn stop_receiving(&self) {
        // A peer that has gone already is what is wanted.
        let _ = shutdown(&self.socket, Shutdown::Read);
    }

    /// Tells the peer that nothing more will be sent, where TLS has words for that.
    pub fn say_goodbye(&self) {
        if let Some(tls) = self.tls.get() {
            let _whole = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            // A peer that has gone already needs no word.
            let _ = tls.close(|bytes| self.send_raw(&mut [IoSlice::new(bytes)]));
        }
    }

    /// Ends the connection: threads that wait are woken.
    pub fn close(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}

/// What a call that does not wait found; `None` if it would have had to.
fn not_now<T>(result: io::Result<T>) -> Option<io::Result<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        found => Some(found),
    }
}

/// To the system, zero would mean to wait for ever.
fn at_least_some(timeout: Option<Duration>) -> Option<Duration> {
    timeout.map(|timeout| timeout.max(Duration::from_millis(1)))
}
