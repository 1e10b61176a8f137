//! What a client has sent and nobody has looked at yet.

use std::io;
use std::sync::Arc;

use super::budget::{Budget, Buffer};
use crate::transport::Transport;

/// Bytes of the buffer that every connection has; with memory for it, one of [`PIECE`](super::budget::PIECE) bytes takes
/// its place.
const NARROW: usize = 32 << 10;

/// A buffer that one receive call fills with many requests, or with a part of a large one that the cache holds.
pub(super) struct Inbox {
    buf: Buffer,
    start: usize,
    end: usize,
    /// There was more than the buffer can hold.
    wants_more: bool,
}

impl Inbox {
    /// A buffer that begins with what came behind the negotiation.
    pub(super) fn new(budget: &Arc<Budget>, rest: &[u8]) -> io::Result<Self> {
        let mut buf = Buffer::new(budget, NARROW.max(rest.len()))?;
        buf[..rest.len()].copy_from_slice(rest);
        Ok(Self {
            buf,
            start: 0,
            end: rest.len(),
            wants_more: false,
        })
    }

    /// What is there.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Bytes of a long payload that are waited for before they are written: so few that the client can go on sending
    /// meanwhile, for a socket holds some 200 KiB.
    pub(super) fn piece(&mut self) -> usize {
        self.buf.widen(self.end);
        self.buf.len() / 2
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
        if std::mem::take(&mut self.wants_more) {
            self.buf.widen(self.end);
        }
        // Moving a part of a request is cheaper than receiving in small pieces.
        if self.start > 0 && self.buf.len() - self.end < self.buf.len() / 2 {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let count = transport.receive(&mut self.buf[self.end..])?;
        self.end += count;
        self.wants_more = self.end == self.buf.len();
        Ok(count > 0)
    }

    /// The client rests: gives memory back.
    pub(super) fn relax(&mut self) {
        if self.bytes().is_empty() {
            self.buf.relax();
        }
    }
}
