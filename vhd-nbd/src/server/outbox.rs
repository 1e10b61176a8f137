//! Replies that wait to be sent together.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::{Budget, Buffer, PIECE};
use crate::protocol::{Chunk, ChunkHeader, ChunkType, Errno, ReplyFlags, ReplyStyle, RequestHeader, SimpleReply};
use crate::transport::Transport;

/// Bytes of replies that are kept at most by a connection, while it has no more memory than every one has; with it,
/// [`PIECE`].
const NARROW: usize = 32 << 10;

/// The same for a worker, whose replies are short: what it reads does not go through here.
const WORKER: usize = 4 << 10;

/// Bytes; a longer buffer for messages is given back after its use.
const KEEP: usize = 8 << 10;

/// Bytes of replies from which on they are sent although more requests are there: so client and server work at the
/// same time.
const SEND_FROM: usize = 96 << 10;

/// Bytes that stand before the data of a reply to READ, at most.
const MAX_PREFIX: usize = ChunkHeader::MAX_SIZE + Chunk::DATA_PREFIX;

/// Bytes; the longest data that is read into the outbox itself.
const MAX_IN_PLACE: usize = PIECE / 2;

/// Encodes the replies of one style, and sends many of them with one call.
pub(super) struct Outbox<'a> {
    transport: &'a Transport,
    style: ReplyStyle,
    buf: Buffer,
    len: usize,
    /// For messages that are encoded before they are put in place.
    small: Vec<u8>,
    /// Time spent in sending: that of the client, if it is slow to receive.
    sending: Duration,
}

impl<'a> Outbox<'a> {
    /// The replies of a connection.
    pub(super) fn new(transport: &'a Transport, style: ReplyStyle, budget: &Arc<Budget>) -> io::Result<Self> {
        Self::with_size(transport, style, budget, NARROW)
    }

    /// The replies of a worker.
    pub(super) fn of_worker(transport: &'a Transport, style: ReplyStyle, budget: &Arc<Budget>) -> io::Result<Self> {
        Self::with_size(transport, style, budget, WORKER)
    }

    fn with_size(transport: &'a Transport, style: ReplyStyle, budget: &Arc<Budget>, size: usize) -> io::Result<Self> {
        Ok(Self {
            transport,
            style,
            buf: Buffer::new(budget, size)?,
            len: 0,
            small: Vec::new(),
            sending: Duration::ZERO,
        })
    }

    /// The style of the replies.
    pub(super) fn style(&self) -> ReplyStyle {
        self.style
    }

    /// Sends what is there.
    pub(super) fn send(&mut self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let began = Instant::now();
        let len = std::mem::take(&mut self.len);
        let sent = self.transport.send(&[&self.buf[..len]]);
        self.sending += began.elapsed();
        sent
    }

    /// How long sending took since this was last asked.
    pub(super) fn take_sending(&mut self) -> Duration {
        std::mem::take(&mut self.sending)
    }

    /// Sends what is there if that is enough for the client to go on with.
    pub(super) fn send_if_much(&mut self) -> io::Result<()> {
        if self.len >= SEND_FROM { self.send() } else { Ok(()) }
    }

    /// Says that a request without data in its reply is done.
    pub(super) fn done(&mut self, request: &RequestHeader) -> io::Result<()> {
        if self.style == ReplyStyle::Extended {
            return self.chunk(request, true, &Chunk::None);
        }
        // The shorter reply is allowed for all but READ.
        self.simple(request, None)
    }

    /// Says that a request failed.
    pub(super) fn error(
        &mut self,
        request: &RequestHeader,
        error: Errno,
        message: String,
        offset: Option<u64>,
    ) -> io::Result<()> {
        match self.style {
            ReplyStyle::Simple => self.simple(request, Some(error)),
            ReplyStyle::Structured | ReplyStyle::Extended => {
                self.chunk(request, true, &Chunk::Error { error, message, offset })
            }
        }
    }

    fn simple(&mut self, request: &RequestHeader, error: Option<Errno>) -> io::Result<()> {
        let cookie = request.cookie;
        self.put(&SimpleReply { error, cookie }.to_bytes())
    }

    /// A chunk of a reply.
    pub(super) fn chunk(&mut self, request: &RequestHeader, last: bool, chunk: &Chunk<'_>) -> io::Result<()> {
        let mut small = std::mem::take(&mut self.small);
        small.clear();
        let size = chunk.size(self.style.header_style());
        small.try_reserve(size).map_err(io::Error::from)?;
        let flags = if last { ReplyFlags::DONE } else { ReplyFlags::empty() };
        chunk.encode(
            self.style.header_style(),
            flags,
            request.cookie,
            request.offset,
            &mut small,
        );
        let result = self.put(&small);
        if small.capacity() <= KEEP {
            self.small = small;
        }
        result
    }

    fn put(&mut self, message: &[u8]) -> io::Result<()> {
        if self.buf.len() - self.len < message.len() {
            self.send()?;
        }
        if self.buf.len() < message.len() {
            return self.transport.send(&[message]);
        }
        self.buf[self.len..self.len + message.len()].copy_from_slice(message);
        self.len += message.len();
        Ok(())
    }

    /// Room for `len` bytes of a reply to READ, to be filled and then committed; `None` if that is not to be had.
    pub(super) fn room(&mut self, len: usize) -> io::Result<Option<&mut [u8]>> {
        if len > MAX_IN_PLACE {
            return Ok(None);
        }
        let needed = MAX_PREFIX + len;
        if self.buf.len() - self.len < needed {
            // A client that fills the buffer is worth a larger one.
            self.buf.widen(self.len);
        }
        if self.buf.len() - self.len < needed {
            self.send()?;
        }
        if self.buf.len() < needed {
            return Ok(None);
        }
        let start = self.len + self.data_prefix();
        Ok(Some(&mut self.buf[start..start + len]))
    }

    /// The room holds the whole reply to a READ.
    pub(super) fn commit(&mut self, request: &RequestHeader, len: usize) {
        self.encode_data_prefix(request, true, request.offset, len);
        let prefix = self.small.len();
        self.buf[self.len..self.len + prefix].copy_from_slice(&self.small);
        self.len += prefix + len;
    }

    /// Sends data of a READ from elsewhere, behind what is there: `len` bytes in parts.
    pub(super) fn send_data<'data>(
        &mut self,
        request: &RequestHeader,
        last: bool,
        offset: u64,
        len: usize,
        data: impl Iterator<Item = &'data [u8]>,
    ) -> io::Result<()> {
        self.encode_data_prefix(request, last, offset, len);
        let began = Instant::now();
        let waiting = std::mem::take(&mut self.len);
        let mut parts: Vec<&[u8]> = vec![&self.buf[..waiting], &self.small];
        for part in data {
            parts.push(part);
        }
        let sent = self.transport.send(&parts);
        self.sending += began.elapsed();
        sent
    }

    /// The client rests: gives memory back.
    pub(super) fn relax(&mut self) {
        if self.len == 0 {
            self.buf.relax();
        }
    }

    fn data_prefix(&self) -> usize {
        match self.style {
            ReplyStyle::Simple => SimpleReply::SIZE,
            style => style.header_size() + Chunk::DATA_PREFIX,
        }
    }

    /// What stands before the data, into `small`.
    fn encode_data_prefix(&mut self, request: &RequestHeader, last: bool, offset: u64, len: usize) {
        self.small.clear();
        let cookie = request.cookie;
        if self.style == ReplyStyle::Simple {
            self.small.extend(SimpleReply { error: None, cookie }.to_bytes());
            return;
        }
        let header = ChunkHeader {
            flags: if last { ReplyFlags::DONE } else { ReplyFlags::empty() },
            chunk: ChunkType::OffsetData,
            cookie,
            offset: request.offset,
            length: u64::try_from(Chunk::DATA_PREFIX + len).unwrap_or(u64::MAX),
        };
        header.encode(self.style.header_style(), &mut self.small);
        self.small.extend(offset.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::net::UnixStream;
    use std::thread;

    use super::*;
    use crate::protocol::{Command, CommandFlags};

    #[test]
    fn the_time_that_a_slow_client_takes_is_known() {
        const LEN: usize = 4 << 20;
        const SLOW: Duration = Duration::from_millis(60);
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let transport = Transport::new(ours.into());
        let (budget, _) = Budget::new(0, 1, false);
        let mut outbox = Outbox::new(&transport, ReplyStyle::Simple, &budget).unwrap();
        let request = RequestHeader {
            flags: CommandFlags::empty(),
            command: Command::Read,
            cookie: 1,
            offset: 0,
            length: LEN.try_into().unwrap(),
        };
        thread::scope(|scope| {
            scope.spawn(move || {
                thread::sleep(SLOW);
                theirs.read_exact(&mut vec![0; SimpleReply::SIZE + LEN]).unwrap();
            });
            let data = vec![1; LEN];
            outbox
                .send_data(&request, true, 0, LEN, [&data[..]].into_iter())
                .unwrap();
        });
        assert!(outbox.take_sending() >= SLOW / 2);
        assert_eq!(outbox.take_sending(), Duration::ZERO);
    }
}
