//! A server that says anything, to a client in this process.

use std::io::{ErrorKind, IoSlice, Read as _, Write as _};
use std::net::Shutdown;
use std::ops::ControlFlow;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use vhd_block::{ByteRange, DeviceError, Disk, ZeroOptions};
use vhd_nbd::client::{ClientOptions, NbdDevice, NbdUri};
use vhd_nbd::kinds;
use vhd_nbd::protocol::{
    ChunkHeader, ChunkType, ClientFlags, Command, Greeting, HandshakeFlags, HeaderStyle, InfoItem, MetaContextId,
    OptionHeader, OptionReply, OptionType, ReplyError, ReplyFlags, RequestHeader, TransmissionFlags,
};

/// Bytes of the export, where the server says what it should.
const SIZE: u64 = 1 << 20;

/// How long anything may take. The server ends the connection behind the input, so nothing does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bytes; no input can make a client read more than this: it has so few requests.
const MAX_PAYLOAD: u64 = 4 << 20;

/// A client, and a server for it that says what it is given.
pub struct Target {
    uri: NbdUri,
    inputs: Sender<Vec<u8>>,
}

impl Default for Target {
    fn default() -> Self {
        Self::new()
    }
}

impl Target {
    /// A server that listens in no directory.
    #[must_use]
    pub fn new() -> Self {
        static TARGETS: AtomicU32 = AtomicU32::new(0);
        let number = TARGETS.fetch_add(1, Ordering::Relaxed);
        let name = format!("vhd-fuzz-client-{}-{number}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("the name is short");
        let listener = UnixListener::bind_addr(&address).expect("the name is free");
        let (inputs, queue) = channel();
        thread::spawn(move || serve(&listener, &queue));
        let uri = format!("nbd+unix:///disk?socket=%00{name}").parse().expect("a URI");
        Self { uri, inputs }
    }

    /// What the server says to a client that opens the export and uses it. The first byte says how the server begins:
    /// with what comes from the input, or with a good negotiation in one of two styles.
    pub fn run(&self, input: &[u8]) {
        self.inputs.send(input.to_vec()).expect("the server runs");
        let options = ClientOptions {
            write: input.first().is_some_and(|first| first & 0x80 != 0),
            connections: 1,
            connect_timeout: PATIENCE,
            request_timeout: PATIENCE,
            reconnect: Duration::ZERO,
        };
        let Ok(device) = NbdDevice::open(&self.uri, options) else {
            return;
        };
        // A failure that ends the connection ends this too: another one would not be served.
        let _ = use_all(&Disk::new(device));
    }
}

/// Asks for everything. What the server refuses is no failure.
fn use_all(disk: &Disk) -> Result<(), DeviceError> {
    let size = disk.size();
    let mut buffer = vec![0xee; 8192.min(usize::try_from(size).unwrap_or(usize::MAX))];
    let mut seen = 0;
    let range = ByteRange::new(0, size.min(1 << 30));
    let walked = disk.extents(range, &mut |extent| {
        assert_eq!(extent.range.start, seen, "extents have no gaps");
        assert!(extent.range.len > 0);
        seen = extent.range.end();
        ControlFlow::Continue(())
    });
    assert!(walked.is_err() || seen >= range.end() || range.len == 0);
    let sector = ByteRange::new(0, size.min(512));
    go_on(walked)?;
    go_on(disk.read_at(&mut buffer, 0))?;
    go_on(disk.write_vectored_at(&[IoSlice::new(&buffer)], 0, true))?;
    go_on(disk.write_zeroes(sector, ZeroOptions::default()))?;
    go_on(disk.discard(sector))?;
    buffer.truncate(512);
    go_on(disk.read_at(&mut buffer, 0))?;
    go_on(disk.flush())?;
    go_on(disk.resize(512))
}

fn go_on(result: Result<(), DeviceError>) -> Result<(), DeviceError> {
    match result {
        Err(error) if error.kind() == kinds::UNREACHABLE => Err(error),
        _ => Ok(()),
    }
}

fn serve(listener: &UnixListener, queue: &Receiver<Vec<u8>>) {
    for input in queue {
        let Ok((mut stream, _)) = listener.accept() else {
            return;
        };
        stream.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
        stream.set_write_timeout(Some(PATIENCE)).expect("a socket has timeouts");
        let Some((&first, said)) = input.split_first() else {
            continue;
        };
        // The client may have gone; that is the end of it.
        let _ = match first % 3 {
            0 => say(&stream, said),
            style => converse(&mut stream, style == 2, said),
        };
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// Says all of the input, and takes what the client says until it hangs up.
fn say(stream: &UnixStream, said: &[u8]) -> Option<()> {
    thread::scope(|scope| {
        scope.spawn(move || {
            let _ = (&mut &*stream).write_all(said);
            let _ = stream.shutdown(Shutdown::Write);
        });
        let mut sink = [0; 4096];
        loop {
            match (&mut &*stream).read(&mut sink) {
                Ok(1..) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                _ => return None,
            }
        }
    })
}

/// Negotiates well, and then answers each request with what the input has for it.
fn converse(stream: &mut UnixStream, extended: bool, mut said: &[u8]) -> Option<()> {
    negotiate(stream, extended, &mut said)?;
    let style = if extended {
        HeaderStyle::Extended
    } else {
        HeaderStyle::Compact
    };
    loop {
        let header = receive(stream, style.request_size())?;
        let request = RequestHeader::decode(style, &header).ok()?;
        if request.command == Command::Disconnect {
            return None;
        }
        let payload = request.payload_length(style);
        assert!(payload <= MAX_PAYLOAD, "the client sends what it was given");
        receive(stream, usize::try_from(payload).ok()?)?;
        loop {
            let (script, rest) = said.split_at_checked(4)?;
            let flags = ReplyFlags::from_bits_retain(script[0].into());
            let length = usize::from(script[3]) * if script[0] & 2 == 0 { 1 } else { 64 };
            let (payload, rest) = rest.split_at_checked(length.min(rest.len()))?;
            said = rest;
            let number = u16::from(script[1] & 0x7f) | u16::from(script[1] & 0x80) << 8;
            let chunk = ChunkHeader {
                flags,
                chunk: ChunkType::from_number(number),
                cookie: request.cookie,
                offset: request.offset.wrapping_add(script[2].into()),
                length: payload.len().try_into().ok()?,
            };
            let mut bytes = Vec::new();
            chunk.encode(style, &mut bytes);
            bytes.extend_from_slice(payload);
            stream.write_all(&bytes).ok()?;
            if flags.contains(ReplyFlags::DONE) {
                break;
            }
        }
    }
}

fn negotiate(stream: &mut UnixStream, extended: bool, said: &mut &[u8]) -> Option<()> {
    let mut bytes = Vec::new();
    let flags = HandshakeFlags::FIXED_NEWSTYLE | HandshakeFlags::NO_ZEROES;
    Greeting { flags }.encode(&mut bytes);
    stream.write_all(&bytes).ok()?;
    let flags = u32::from_be_bytes(receive(stream, 4)?.try_into().ok()?);
    ClientFlags::from_bits(flags)?;
    let (numbers, rest) = said.split_at_checked(6)?;
    *said = rest;
    loop {
        let option = OptionHeader::decode(&receive(stream, OptionHeader::SIZE)?).ok()?;
        receive(stream, usize::try_from(option.length).ok()?)?;
        let mut replies = match option.option {
            OptionType::ExtendedHeaders if !extended => vec![OptionReply::Error {
                error: ReplyError::Unsupported,
                message: String::new(),
            }],
            OptionType::SetMetaContext => vec![OptionReply::MetaContext {
                id: MetaContextId(1),
                name: "base:allocation".into(),
            }],
            OptionType::Go => vec![
                OptionReply::Info(InfoItem::Export {
                    size: SIZE + u64::from(numbers[0]),
                    flags: TransmissionFlags::from_bits_retain(u16::from_be_bytes([numbers[1], numbers[2]])),
                }),
                OptionReply::Info(InfoItem::BlockSize {
                    minimum: 1 << (numbers[3] % 18),
                    preferred: 1 << (numbers[4] % 32),
                    maximum: 1 << (numbers[5] % 32),
                }),
            ],
            _ => Vec::new(),
        };
        if !matches!(replies.last(), Some(OptionReply::Error { .. })) {
            replies.push(OptionReply::Ack);
        }
        let mut bytes = Vec::new();
        replies.iter().for_each(|reply| reply.encode(option.option, &mut bytes));
        stream.write_all(&bytes).ok()?;
        match option.option {
            OptionType::Go => return Some(()),
            OptionType::Abort => return None,
            _ => {}
        }
    }
}

fn receive(stream: &mut UnixStream, len: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}
