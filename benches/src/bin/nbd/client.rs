//! A client that costs as little as one can: it keeps a number of requests in flight, receives replies as they come and
//! sends the requests that follow them with one call. A client that costs more would hide what the server costs.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hdrhistogram::Histogram;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use vhd_nbd::protocol::{
    ChunkType, Command, CommandFlags, Greeting, InfoItem, InfoRequest, OptionReply, OptionReplyHeader, OptionRequest,
    REPLY_MAGIC_SIZE, ReplyFlags, ReplyHeader, ReplyStyle, RequestHeader, SimpleReply,
};
use vhd_nbd::transport::Transport;

use crate::images::{STAMPED, stamp};
use crate::load::{Load, Place};

/// Bytes received at once at most: at depth 32 half of the replies, so that client and server work at the same time.
const INBOX: usize = 64 << 10;

/// The client's first words: fixed newstyle, no padding.
const CLIENT_FLAGS: u32 = 3;

/// Bytes; longer payloads are sent from where they are.
const TOGETHER: usize = 16 << 10;

const USTAMPED: usize = STAMPED as usize;

/// What a load did.
pub(crate) struct Outcome {
    pub(crate) requests: u64,
    pub(crate) seconds: f64,
    pub(crate) p99: Duration,
}

/// A connection to a server.
pub(crate) struct Client {
    transport: Arc<Transport>,
    size: u64,
    inbox: Vec<u8>,
    start: usize,
    end: usize,
}

impl Client {
    /// Connects; with the certificate of an authority through TLS.
    pub(crate) fn connect(socket: &Path, authority: Option<&Path>) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut client = Self {
            transport: Arc::new(Transport::new(stream.into())),
            size: 0,
            inbox: vec![0; INBOX],
            start: 0,
            end: 0,
        };
        client.await_bytes(Greeting::SIZE)?;
        Greeting::decode(client.take(Greeting::SIZE))?;
        client.transport.send(&[&CLIENT_FLAGS.to_be_bytes()])?;
        if let Some(authority) = authority {
            client.option(&OptionRequest::StartTls)?;
            client.transport.start_tls(tls(authority)?.into(), None)?;
        }
        client.option(&OptionRequest::StructuredReply)?;
        client.option(&OptionRequest::Go(InfoRequest {
            name: String::new(),
            items: Vec::new(),
        }))?;
        Ok(client)
    }

    /// Bytes of the export.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    fn option(&mut self, option: &OptionRequest) -> Result<()> {
        let mut bytes = Vec::new();
        option.encode(&mut bytes);
        self.transport.send(&[&bytes])?;
        loop {
            self.await_bytes(OptionReplyHeader::SIZE)?;
            let header = OptionReplyHeader::decode(self.take(OptionReplyHeader::SIZE))?;
            let length = usize::try_from(header.length)?;
            self.await_bytes(length)?;
            match OptionReply::decode(header.reply, self.take(length))? {
                OptionReply::Ack => return Ok(()),
                OptionReply::Info(InfoItem::Export { size, .. }) => self.size = size,
                OptionReply::Error { error, message } => bail!("{option:?} is refused: {error:?} {message}"),
                _ => {}
            }
        }
    }

    /// Waits until so many bytes are there, at most [`INBOX`].
    fn await_bytes(&mut self, len: usize) -> Result<()> {
        while self.end - self.start < len {
            if self.inbox.len() - self.start < len || self.start == self.end {
                self.inbox.copy_within(self.start..self.end, 0);
                self.end -= self.start;
                self.start = 0;
            }
            let count = self.transport.receive(&mut self.inbox[self.end..])?;
            ensure!(count > 0, "the server closed the connection");
            self.end += count;
        }
        Ok(())
    }

    fn take(&mut self, len: usize) -> &[u8] {
        self.start += len;
        &self.inbox[self.start - len..self.start]
    }

    /// Keeps `load.depth` requests in flight until the time is over or the places are used up.
    pub(crate) fn run(
        &mut self,
        load: &Load,
        places: &mut impl Iterator<Item = Place>,
        time: Duration,
    ) -> Result<Outcome> {
        let mut batch = Batch::new(Arc::clone(&self.transport), load);
        let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
        let (began, mut requests) = (Instant::now(), 0);
        let mut now = began;
        for place in places.by_ref().take(load.depth) {
            batch.push(place)?;
        }
        while batch.in_flight() > 0 {
            if !self.has_reply() {
                batch.send()?;
                self.await_bytes(1)?;
                now = Instant::now();
            }
            let Some(slot) = self.reply(&batch)? else {
                continue;
            };
            latency.saturating_record(u64::try_from((now - batch.sent_at(slot)).as_nanos())?);
            requests += 1;
            batch.free(slot);
            if now - began < time
                && let Some(place) = places.next()
            {
                batch.push(place)?;
            }
        }
        Ok(Outcome {
            requests,
            seconds: began.elapsed().as_secs_f64(),
            p99: Duration::from_nanos(latency.value_at_quantile(0.99)),
        })
    }

    /// Whether a reply is there as a whole; if not, the requests that are ready must not wait for the rest of it.
    fn has_reply(&self) -> bool {
        let there = &self.inbox[self.start..self.end];
        let size = ReplyStyle::Structured.header_size();
        match there
            .get(..size)
            .map(|header| ReplyHeader::decode(ReplyStyle::Structured, header))
        {
            Some(Ok(ReplyHeader::Chunk(header))) => {
                usize::try_from(header.length).is_ok_and(|length| there.len() - size >= length)
            }
            _ => there.len() >= SimpleReply::SIZE,
        }
    }

    /// Takes one chunk; the slot of its request if that is done.
    fn reply(&mut self, batch: &Batch<'_>) -> Result<Option<usize>> {
        self.await_bytes(REPLY_MAGIC_SIZE)?;
        let magic = self.inbox[self.start..self.start + REPLY_MAGIC_SIZE].try_into()?;
        let style = ReplyStyle::from_magic(magic)?;
        self.await_bytes(style.header_size())?;
        match ReplyHeader::decode(style, self.take(style.header_size()))? {
            ReplyHeader::Simple(reply) => {
                ensure!(reply.error.is_none(), "a request failed: {reply:?}");
                Ok(Some(usize::try_from(reply.cookie)?))
            }
            ReplyHeader::Chunk(header) => {
                ensure!(!header.chunk.is_error(), "a request failed: {header:?}");
                let slot = usize::try_from(header.cookie)?;
                let length = usize::try_from(header.length)?;
                if header.chunk == ChunkType::OffsetData {
                    self.data(length, batch.load)?;
                } else {
                    self.await_bytes(length)?;
                    self.take(length);
                }
                Ok(header.flags.contains(ReplyFlags::DONE).then_some(slot))
            }
        }
    }

    /// Takes data, whose first bytes must be those of its place.
    fn data(&mut self, mut length: usize, load: &Load) -> Result<()> {
        self.await_bytes(16)?;
        let offset = u64::from_be_bytes(self.take(8).try_into()?);
        length -= 8;
        let found = u64::from_be_bytes(self.inbox[self.start..self.start + 8].try_into()?);
        let stamped = offset.is_multiple_of(STAMPED) && load.is_stamped;
        ensure!(
            !stamped || found == stamp(offset),
            "wrong data at {offset:#x}: {found:#x}"
        );
        while length > 0 {
            self.await_bytes(1)?;
            let part = length.min(self.end - self.start);
            self.take(part);
            length -= part;
        }
        Ok(())
    }
}

/// Requests that are sent together.
struct Batch<'a> {
    transport: Arc<Transport>,
    load: &'a Load,
    free: Vec<usize>,
    sent: Vec<Instant>,
    unsent: Vec<usize>,
    bytes: Vec<u8>,
    payload: Vec<u8>,
}

impl<'a> Batch<'a> {
    fn new(transport: Arc<Transport>, load: &'a Load) -> Self {
        Self {
            transport,
            load,
            free: (0..load.depth).collect(),
            sent: vec![Instant::now(); load.depth],
            unsent: Vec::new(),
            bytes: Vec::new(),
            payload: vec![0xa5; load.length],
        }
    }

    fn sent_at(&self, slot: usize) -> Instant {
        self.sent[slot]
    }

    fn free(&mut self, slot: usize) {
        self.free.push(slot);
    }

    fn in_flight(&self) -> usize {
        self.load.depth - self.free.len()
    }

    /// Adds a request. There must be a free slot.
    fn push(&mut self, Place(offset): Place) -> Result<()> {
        let slot = self.free.pop().expect("as many requests as replies");
        let header = RequestHeader {
            flags: CommandFlags::empty(),
            command: self.load.command,
            cookie: slot.try_into().unwrap_or(u64::MAX),
            offset,
            length: self.load.length.try_into().unwrap_or(u64::MAX),
        };
        header.encode(ReplyStyle::Structured.header_style(), &mut self.bytes);
        self.unsent.push(slot);
        if self.load.command == Command::Write {
            let mut at = offset;
            for part in self.payload.chunks_mut(USTAMPED) {
                part[..8].copy_from_slice(&stamp(at).to_be_bytes());
                at += STAMPED;
            }
            if self.payload.len() <= TOGETHER {
                self.bytes.extend_from_slice(&self.payload);
            } else {
                self.send_with(true)?;
            }
        }
        Ok(())
    }

    /// Sends what was added.
    fn send(&mut self) -> Result<()> {
        if self.bytes.is_empty() {
            Ok(())
        } else {
            self.send_with(false)
        }
    }

    fn send_with(&mut self, payload: bool) -> Result<()> {
        let now = Instant::now();
        for slot in self.unsent.drain(..) {
            self.sent[slot] = now;
        }
        let payload: &[u8] = if payload { &self.payload } else { &[] };
        let sent = self.transport.send(&[&self.bytes, payload]);
        self.bytes.clear();
        sent.context("the server takes no more")
    }
}

fn tls(authority: &Path) -> Result<ClientConnection> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(ClientConnection::new(
        Arc::new(config),
        ServerName::try_from("localhost")?,
    )?)
}
