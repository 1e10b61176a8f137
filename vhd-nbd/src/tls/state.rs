//! TLS between bytes and bytes, for a thread that receives and others that send.

use std::fmt;
use std::io::{self, Read as _, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::Connection;

/// Bytes of encrypted data that are received at once: several records.
const RECEIVE: usize = 64 << 10;

/// Bytes that are encrypted before they are sent.
const ENCRYPT: usize = 64 << 10;

/// The keys and counters of a connection, and what has arrived and is not decrypted.
pub(crate) struct TlsState {
    /// Never held while the socket waits: who sends must not keep away who receives.
    connection: Mutex<Connection>,
    /// Encrypted bytes; for the one thread that receives.
    arrived: Mutex<Arrived>,
}

struct Arrived {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl fmt::Debug for TlsState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsState")
    }
}

impl TlsState {
    pub(crate) fn new(mut connection: Connection) -> Self {
        connection.set_buffer_limit(None);
        Self {
            connection: Mutex::new(connection),
            arrived: Mutex::new(Arrived {
                buf: vec![0; RECEIVE].into_boxed_slice(),
                start: 0,
                end: 0,
            }),
        }
    }

    /// Negotiates keys.
    pub(crate) fn negotiate(
        &mut self,
        mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
        mut send: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let connection = self.connection.get_mut().unwrap_or_else(PoisonError::into_inner);
        let arrived = self.arrived.get_mut().unwrap_or_else(PoisonError::into_inner);
        loop {
            let outgoing = encrypted(connection)?;
            send(&outgoing)?;
            if !connection.is_handshaking() {
                return Ok(());
            }
            if arrived.is_empty() && !arrived.fill(&mut receive)? {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            if let Err(error) = arrived.decrypt(connection) {
                // The peer learns from an alert what was wrong.
                let _ = send(&encrypted(connection)?);
                return Err(error);
            }
        }
    }

    /// Waits for bytes and decrypts them.
    pub(crate) fn receive(
        &self,
        buf: &mut [u8],
        mut receive: impl FnMut(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let mut arrived = self.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(count) = self.decrypted(&mut arrived, buf)? {
                return Ok(count);
            }
            if !arrived.fill(&mut receive)? {
                // Without a good-bye: somebody may have cut the connection. Requests in it are whole or not executed.
                return Ok(0);
            }
        }
    }

    /// What can be had without waiting; `None` if that is nothing.
    fn decrypted(&self, arrived: &mut Arrived, buf: &mut [u8]) -> io::Result<Option<usize>> {
        let mut connection = self.lock();
        let mut filled = 0;
        loop {
            match connection.reader().read(&mut buf[filled..]) {
                Ok(0) => return Ok(Some(filled)),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if arrived.is_empty() {
                        return Ok((filled > 0).then_some(filled));
                    }
                    arrived.decrypt(&mut connection)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Encrypts and sends.
    pub(crate) fn send(&self, parts: &[&[u8]], mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut gathered = 0;
        for part in parts {
            for piece in part.chunks(ENCRYPT) {
                let mut connection = self.lock();
                connection.writer().write_all(piece)?;
                gathered += piece.len();
                if gathered >= ENCRYPT {
                    gathered = 0;
                    let outgoing = encrypted(&mut connection)?;
                    drop(connection);
                    send(&outgoing)?;
                }
            }
        }
        let outgoing = encrypted(&mut self.lock())?;
        send(&outgoing)
    }

    /// Says good-bye.
    pub(crate) fn close(&self, mut send: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let outgoing = {
            let mut connection = self.lock();
            connection.send_close_notify();
            encrypted(&mut connection)?
        };
        send(&outgoing)
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the connection has to send.
fn encrypted(connection: &mut Connection) -> io::Result<Vec<u8>> {
    let mut outgoing = Vec::new();
    while connection.wants_write() {
        connection.write_tls(&mut outgoing)?;
    }
    Ok(outgoing)
}

impl Arrived {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Waits for bytes; `false` is the end.
    fn fill(&mut self, receive: &mut impl FnMut(&mut [u8]) -> io::Result<usize>) -> io::Result<bool> {
        debug_assert!(self.is_empty(), "all that arrived has been decrypted");
        self.start = 0;
        self.end = 0;
        self.end = receive(&mut self.buf)?;
        Ok(self.end > 0)
    }

    /// Passes a part of what arrived on.
    fn decrypt(&mut self, connection: &mut Connection) -> io::Result<()> {
        let mut bytes = &self.buf[self.start..self.end];
        let count = connection.read_tls(&mut bytes)?;
        self.start += count;
        connection
            .process_new_packets()
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        Ok(())
    }
}
