//! What a client has sent and nobody has looked at yet.

use std::io;

use crate::transport::Transport;

/// Bytes that are received at once at most: many small requests, or a part of a large one that the cache holds.
pub(super) const INBOX_SIZE: usize = 256 << 10;

/// A buffer that one receive call fills with many requests.
pub(super) struct Inbox {
    buf: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    /// A buffer that begins with what came behind the negotiation.
    pub(super) fn new(rest: &[u8]) -> Self {
        let mut buf = vec![0; INBOX_SIZE.max(rest.len())].into_boxed_slice();
        buf[..rest.len()].copy_from_slice(rest);
        Self {
            buf,
            start: 0,
            end: rest.len(),
        }
    }

    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// The first `count` bytes are done with.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Waits for more. Returns whether any came; `false` is the end.
    pub(super) fn fill(&mut self, transport: &Transport) -> io::Result<bool> {
        // Moving a part of a request is cheaper than receiving in small pieces.
        if self.start > 0 && self.buf.len() - self.end < self.buf.len() / 2 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = transport.receive(&mut self.buf[self.end..])?;
        self.end += count;
        Ok(count > 0)
    }
}
