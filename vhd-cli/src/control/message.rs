//! What is said over a control socket: one line each way.

use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vhd_core::snapshot::Snapshot;

/// Changes when a message changes its meaning.
pub(super) const VERSION: u32 = 1;

/// Bytes in the longest line.
const LONGEST: u64 = 16 << 10;

/// How long a peer may take for a line that it has only to send.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// What a command asks for.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Request {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) job: Job,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(super) enum Job {
    /// Keep the present state of the disk under a name.
    SnapshotCreate { name: String },
    /// Delete a snapshot, or with `subtree` all that descend from it too.
    SnapshotDelete { name: String, subtree: bool },
}

/// What the server answers.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Taken(Taken),
    Deleted(Deleted),
    /// Why not, as a code of the command and a message for people.
    Failed {
        code: String,
        message: String,
    },
}

/// A snapshot that was taken of the disk in use.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Taken {
    /// The snapshot.
    pub(crate) snapshot: Snapshot,
    /// The name of the file that is written to from here on, beside the base.
    pub(crate) active: String,
    /// Microseconds that requests had to wait at most.
    pub(crate) paused_us: u64,
}

/// A snapshot that was deleted of the disk in use. Files are names beside the base.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Deleted {
    /// What is written to from here on.
    pub(crate) active: String,
    pub(crate) removed: Vec<String>,
    pub(crate) merged: Vec<String>,
    pub(crate) waiting: Vec<WaitingFile>,
}

/// The file of a deleted snapshot that stays for now.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct WaitingFile {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) dependants: u64,
    pub(crate) reason: Option<String>,
}

impl Deleted {
    pub(super) fn files(&self) -> impl Iterator<Item = &String> {
        let waiting = self.waiting.iter().map(|waiting| &waiting.file);
        let gone = self.removed.iter().chain(&self.merged);
        gone.chain(waiting).chain([&self.active])
    }
}

/// Sends a message as one line.
pub(super) fn send<T: Serialize>(mut stream: &UnixStream, message: &T) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// Receives one line, no longer than is sensible; the whole of it until a moment, if one is given.
pub(super) fn receive<T: DeserializeOwned>(stream: &UnixStream, until: Option<Instant>) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(Until { stream, until }.take(LONGEST)).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Err(io::ErrorKind::UnexpectedEof.into()),
        Some(b'\n') => Ok(serde_json::from_slice(&line)?),
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
