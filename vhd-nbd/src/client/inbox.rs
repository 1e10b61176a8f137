//! Bytes from a server: small ones through a buffer, long ones straight to where they belong.

use std::io;
use std::time::Instant;

use super::broken::Break;
use crate::protocol::{ChunkHeader, REPLY_MAGIC_SIZE, ReplyHeader, ReplyStyle};
use crate::transport::Transport;

/// Bytes: a few headers, or a short read with its header.
const BUFFER: usize = 16 << 10;

/// What has arrived and nobody has taken.
#[derive(Debug)]
pub(super) struct Inbox {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

/// A thread's right to receive, for as long as its own request may take.
pub(super) struct Receiver<'a> {
    pub(super) inbox: &'a mut Inbox,
    pub(super) transport: &'a Transport,
    /// When the request of the thread must be answered.
    pub(super) deadline: Instant,
}

impl Inbox {
    pub(super) fn new() -> Self {
        Self {
            buf: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
        }
    }

    /// Moves what is there to `out` and returns how much that was.
    fn take(&mut self, out: &mut [u8]) -> usize {
        let count = out.len().min(self.end - self.start);
        out[..count].copy_from_slice(&self.buf[self.start..self.start + count]);
        self.start += count;
        count
    }
}

impl Receiver<'_> {
    /// Fills `out`.
    pub(super) fn fill(&mut self, mut out: &mut [u8]) -> Result<(), Break> {
        loop {
            let taken = self.inbox.take(out);
            out = &mut out[taken..];
            if out.is_empty() {
                return Ok(());
            }
            if out.len() >= BUFFER {
                let count = self.receive(out)?;
                out = &mut out[count..];
            } else {
                let mut buf = std::mem::take(&mut self.inbox.buf);
                let received = self.receive(&mut buf);
                self.inbox.buf = buf;
                self.inbox.start = 0;
                self.inbox.end = 0;
                self.inbox.end = received?;
            }
        }
    }

    /// Waits for bytes.
    fn receive(&self, out: &mut [u8]) -> Result<usize, Break> {
        loop {
            // Also for a server that sends a byte now and then.
            if Instant::now() >= self.deadline {
                return Err(Break::silent());
            }
            match self.transport.receive(out) {
                Ok(0) => return Err(Break::closed(&io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => return Ok(count),
                // The system's timeout is only there to look at the clock.
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(Break::of_io(&error)),
            }
        }
    }

    /// The next header of a reply, in a session of this style.
    pub(super) fn header(&mut self, session: ReplyStyle) -> Result<ReplyHeader, Break> {
        let mut bytes = [0; ChunkHeader::MAX_SIZE];
        let (magic, _) = bytes.split_at_mut(REPLY_MAGIC_SIZE);
        self.fill(magic)?;
        let magic = <[u8; REPLY_MAGIC_SIZE]>::try_from(&*magic).expect("a magic number's size");
        let style = ReplyStyle::from_magic(magic)?;
        if style != session && (style, session) != (ReplyStyle::Simple, ReplyStyle::Structured) {
            return Err(Break::protocol("a reply in a style that was not agreed on"));
        }
        let size = style.header_size();
        self.fill(&mut bytes[REPLY_MAGIC_SIZE..size])?;
        Ok(ReplyHeader::decode(style, &bytes[..size])?)
    }

    /// A payload of `length` bytes, which must be no more than `limit`. Memory is taken as the bytes arrive.
    pub(super) fn payload(&mut self, length: u64, limit: usize) -> Result<Vec<u8>, Break> {
        let Some(length) = usize::try_from(length).ok().filter(|length| *length <= limit) else {
            return Err(Break::protocol(format!(
                "a chunk of {length} bytes where {limit} are enough"
            )));
        };
        let mut payload = Vec::new();
        while payload.len() < length {
            let start = payload.len();
            payload.resize(length.min(start + BUFFER.max(start)), 0);
            self.fill(&mut payload[start..])?;
        }
        Ok(payload)
    }
}
