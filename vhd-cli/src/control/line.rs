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
