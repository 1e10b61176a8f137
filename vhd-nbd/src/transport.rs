//! A connection: bytes in, bytes out, from any number of threads.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};

use crate::spin::Spin;
use crate::tls::{Connection, TlsState};

/// Bytes of a message that the peer must take within the time for sending: a longer message has that time for each of
/// them.
const STRETCH: usize = 1 << 20;

/// How long a peer has to take the last word.
const GOODBYE: Duration = Duration::from_secs(1);

/// A connected stream socket, with TLS or without. One thread receives; any thread sends, whole messages at a time.
#[derive(Debug)]
pub struct Transport {
    socket: OwnedFd,
    /// Held while a message is sent.
    sending: Mutex<()>,
    /// How long sending may take.
    patience: Mutex<Patience>,
    /// This side has ended the connection.
    closed: AtomicBool,
    tls: OnceLock<TlsState>,
    eager: OnceLock<Eager>,
}

/// How long a peer may take to receive.
#[derive(Clone, Copy, Debug)]
enum Patience {
    Endless,
    /// So long for each message, or for each [`STRETCH`] of a long one.
    Each(Duration),
    /// Until then for all messages together.
    Until(Instant),
}

/// A message that is being sent.
#[derive(Default)]
struct Sending {
    /// When it must be sent, or the present stretch of it. The clock is not looked at before the peer makes it wait.
    deadline: Option<Instant>,
    /// Bytes sent since then.
    sent: usize,
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
            patience: Mutex::new(Patience::Endless),
            closed: AtomicBool::new(false),
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
        let in_time = || deadline.map_or(Ok(()), |deadline| self.set_deadline(deadline));
        let receive = |buf: &mut [u8]| {
            in_time()?;
            self.receive_raw(buf)
        };
        in_time()?;
        state.negotiate(receive, |bytes| {
            self.send_raw(&mut [IoSlice::new(bytes)], &mut Sending::default())
        })?;
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
    /// Failures of the socket or of TLS; `TimedOut` when the peer took longer to receive than it
    /// [may](Self::set_timeouts). The connection is closed then, as a part of the message may have been sent.
    pub fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let _whole = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
        let mut message = Sending::default();
        let sent = match self.tls.get() {
            None => {
                let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
                self.send_raw(&mut slices, &mut message)
            }
            Some(tls) => tls.send(parts, |bytes| self.send_raw(&mut [IoSlice::new(bytes)], &mut message)),
        };
        if sent.is_err() {
            self.close();
        }
        sent
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

    fn send_raw(&self, mut slices: &mut [IoSlice<'_>], message: &mut Sending) -> io::Result<()> {
        // Takes off what is empty.
        IoSlice::advance_slices(&mut slices, 0);
        while !slices.is_empty() {
            let look = || not_now(self.send_with(slices));
            let sent = match self.eager.get() {
                Some(eager) => eager.sending.look(look),
                None => look(),
            };
            match sent {
                None => self.wait_until_sendable(message)?,
                Some(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Some(Ok(count)) => {
                    message.sent += count;
                    IoSlice::advance_slices(&mut slices, count);
                }
                Some(Err(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Waits until the peer has made room.
    fn wait_until_sendable(&self, message: &mut Sending) -> io::Result<()> {
        let patience = *self.patience.lock().unwrap_or_else(PoisonError::into_inner);
        let deadline = match patience {
            Patience::Endless => None,
            Patience::Until(deadline) => Some(deadline),
            Patience::Each(time) => {
                if message.sent >= STRETCH {
                    *message = Sending::default();
                }
                Some(*message.deadline.get_or_insert_with(|| Instant::now() + time))
            }
        };
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut socket = [PollFd::new(&self.socket, PollFlags::OUT)];
        match poll(&mut socket, left.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn send_with(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
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
        self.set_patience(Patience::Until(deadline));
        self.set_receive_timeout(Some(left))
    }

    /// How long a call may wait for the peer; `None` waits for ever. A message of more than 1 MiB may take so long for
    /// each.
    ///
    /// # Errors
    /// Failures of the socket.
    pub fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        self.set_patience(timeout.map_or(Patience::Endless, Patience::Each));
        self.set_receive_timeout(timeout)
    }

    fn set_patience(&self, patience: Patience) {
        *self.patience.lock().unwrap_or_else(PoisonError::into_inner) = patience;
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
        if let Some(tls) = self.tls.get()
            && !self.is_closed()
        {
            self.set_patience(Patience::Until(Instant::now() + GOODBYE));
            let _whole = self.sending.lock().unwrap_or_else(PoisonError::into_inner);
            // A peer that has gone already needs no word.
            let _ = tls.close(|bytes| self.send_raw(&mut [IoSlice::new(bytes)], &mut Sending::default()));
        }
    }

    /// Ends the connection: threads that wait are woken.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        let _ = shutdown(&self.socket, Shutdown::Both);
    }

    /// Whether this side has ended the connection.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    /// Whether the peer sends nothing more, or has gone; what it has sent before may not have been received.
    #[must_use]
    pub fn has_peer_closed(&self) -> bool {
        let mut socket = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let found = poll(&mut socket, Some(&Timespec::default()));
        found.is_ok_and(|count| count > 0)
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
