//! Messages as lines of JSON on a unix socket: bounded, and received within a time.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Bytes in the longest line.
const LONGEST: u64 = 64 << 10;

/// How long a peer may take for a line that it has only to send.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Sends a message as one line.
pub(crate) fn send<T: Serialize>(mut stream: &UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Receives one line, no longer than is sensible; the whole of it until a moment, if one is given. What follows the line is
/// still to be read.
pub(crate) fn receive<T: DeserializeOwned>(stream: &UnixStream, until: Option<Instant>) -> io::Result<T> {
    let mut line = Vec::new();
    // Byte by byte, so that nothing behind the line is taken.
    let mut bytes = BufReader::with_capacity(1, Until { stream, until }.take(LONGEST));
    bytes.read_until(b'\n', &mut line)?;
    match line.last() {
        None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(b'\n') => serde_json::from_slice(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "it is no whole line")),
    }
}

/// The lines that a peer sends.
pub(crate) struct Lines<'a> {
    stream: &'a UnixStream,
    longest: usize,
    /// What was received behind the last line.
    rest: Vec<u8>,
}

impl<'a> Lines<'a> {
    /// No line is longer than `longest` bytes.
    pub(crate) fn new(stream: &'a UnixStream, longest: usize) -> Self {
        Self {
            stream,
            longest,
            rest: Vec::new(),
        }
    }

    /// The next message; `None` if the whole line is not there by a moment, which does not move with each byte. What came of
    /// it is kept.
    ///
    /// # Errors
    /// `UnexpectedEof` behind the last line.
    pub(crate) fn next<T: DeserializeOwned>(&mut self, until: Instant) -> io::Result<Option<T>> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.rest[seen..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=seen + end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            seen = self.rest.len();
            if seen >= self.longest {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no whole line"));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 4096];
            match (&mut &*self.stream).read(&mut bytes) {
                Ok(0) if self.rest.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no whole line")),
                Ok(read) => self.rest.extend(&bytes[..read]),
                Err(error) if is_pause(&error) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Nothing came in time, or a signal did.
fn is_pause(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// What a peer sends until a moment: one that sends byte after byte does not get more time with each.
struct Until<'a> {
    stream: &'a UnixStream,
    until: Option<Instant>,
}

impl Read for Until<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let left = self.until.map(|until| until.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(left)?;
        let mut stream = self.stream;
        stream.read(buf)
    }
}
