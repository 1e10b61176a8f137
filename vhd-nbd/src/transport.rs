//! A connection: bytes in, bytes out, from any number of threads.

use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown};

/// A connected stream socket. One thread receives; any thread sends, whole messages at a time.
#[derive(Debug)]
pub struct Transport {
    socket: OwnedFd,
    /// Held while a message is sent.
    sending: Mutex<()>,
}

impl Transport {
    /// A connection over a connected, blocking stream socket of any family.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            sending: Mutex::new(()),
        }
    }

    /// Waits for bytes and puts what is there into `buf`. Returns how many; 0 means that no more will come.
    ///
    /// # Errors
    /// Failures of the socket; `WouldBlock` or `TimedOut` when a [timeout](Self::set_timeouts) passed.
    pub fn receive(&self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match recv(&self.socket, &mut *buf, RecvFlags::empty()) {
                Ok((count, _)) => return Ok(count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Sends the parts as one message.
    ///
    /// # Errors
    /// Failures of the socket; the connection is of no use then, as a part of the message may have been sent.
    pub fn send(&self, parts: &[&[u8]]) -> io::Result<()> {
        let _whole = self.lock_sending();
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut left = &mut slices[..];
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            match sendmsg(&self.socket, left, &mut SendAncillaryBuffer::default(), SendFlags::NOSIGNAL) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => IoSlice::advance_slices(&mut left, count),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn lock_sending(&self) -> MutexGuard<'_, ()> {
        self.sending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a call may wait for the peer; `None` waits for ever.
    ///
    /// # Errors
    /// Failures of the socket.
    pub fn set_timeouts(&self, timeout: Option<Duration>) -> io::Result<()> {
        // Zero would mean to wait for ever.
        let timeout = timeout.map(|timeout| timeout.max(Duration::from_millis(1)));
        set_socket_timeout(&self.socket, Timeout::Recv, timeout)?;
        set_socket_timeout(&self.socket, Timeout::Send, timeout)?;
        Ok(())
    }

    /// How long [`receive`](Self::receive) may wait for the peer; `None` waits for ever.
    ///
    /// # Errors
    /// Failures of the socket.
    pub fn set_receive_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        Ok(set_socket_timeout(&self.socket, Timeout::Recv, timeout)?)
    }

    /// Ends receiving: a thread that waits is woken, what has arrived can still be received.
    pub fn stop_receiving(&self) {
        // A peer that has gone already is what is wanted.
        let _ = shutdown(&self.socket, Shutdown::Read);
    }

    /// Ends the connection: threads that wait are woken.
    pub fn close(&self) {
        let _ = shutdown(&self.socket, Shutdown::Both);
    }
}
