//! Servers that say anything: errors in time, and no more memory than what was asked for.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use vhd_block::ErrorKind;
use vhd_block::{BlockDevice as _, ByteRange, DeviceError, Disk, ZeroOptions};
use vhd_nbd::client::{ClientError, ClientOptions, NbdDevice};
use vhd_nbd::kinds;
use vhd_nbd::protocol::{
    Chunk, ChunkHeader, ChunkType, Command, Descriptor, Errno, Greeting, HandshakeFlags, HeaderStyle, InfoItem,
    MetaContextId, OptionHeader, OptionReply, OptionReplyHeader, OptionType, ReplyError, ReplyFlags, RequestHeader,
    SimpleReply, TransmissionFlags,
};

pub(crate) const SIZE: u64 = 1 << 20;

/// A server that runs a function for each connection.
pub(crate) struct Hostile {
    dir: tempfile::TempDir,
    connections: Arc<AtomicUsize>,
}

impl Hostile {
    pub(crate) fn start(serve: impl Fn(UnixStream) -> Option<()> + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&connections);
        let serve = Arc::new(serve);
        // Ends with the test's process.
        thread::spawn(move || {
            for stream in listener.incoming() {
                counted.fetch_add(1, Ordering::Relaxed);
                let serve = Arc::clone(&serve);
                thread::spawn(move || serve(stream.unwrap()));
            }
        });
        Self { dir, connections }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn open(&self) -> Result<Arc<NbdDevice>, ClientError> {
        self.open_with(Duration::from_secs(5))
    }

    pub(crate) fn open_with(&self, reconnect: Duration) -> Result<Arc<NbdDevice>, ClientError> {
        let options = ClientOptions {
            write: true,
            connections: 1,
            connect_timeout: Duration::from_millis(600),
            request_timeout: Duration::from_millis(600),
            reconnect,
        };
        let uri = format!("nbd+unix:///?socket={}", self.socket().display());
        NbdDevice::open(&uri.parse().unwrap(), options)
    }
}

fn receive<const N: usize>(stream: &mut UnixStream) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

pub(crate) fn send(stream: &mut UnixStream, bytes: &[u8]) -> Option<()> {
    stream.write_all(bytes).ok()
}

fn greet(stream: &mut UnixStream) -> Option<()> {
    let mut bytes = Vec::new();
    let flags = HandshakeFlags::all();
    Greeting { flags }.encode(&mut bytes);
    send(stream, &bytes)?;
    receive::<4>(stream)?;
    Some(())
}

fn option(stream: &mut UnixStream) -> Option<OptionType> {
    let header = OptionHeader::decode(&receive::<{ OptionHeader::SIZE }>(stream)?).ok()?;
    let mut data = vec![0; header.length.try_into().ok()?];
    stream.read_exact(&mut data).ok()?;
    Some(header.option)
}

fn reply(stream: &mut UnixStream, option: OptionType, replies: &[OptionReply]) -> Option<()> {
    let mut bytes = Vec::new();
    replies.iter().for_each(|reply| reply.encode(option, &mut bytes));
    send(stream, &bytes)
}

/// What an export of these tests can do.
pub(crate) const FLAGS: TransmissionFlags = TransmissionFlags::HAS_FLAGS
    .union(TransmissionFlags::SEND_FLUSH)
    .union(TransmissionFlags::SEND_WRITE_ZEROES);

fn export(size: u64) -> OptionReply {
    let flags = FLAGS;
    OptionReply::Info(InfoItem::Export { size, flags })
}

/// Negotiates as it should be, with structured replies.
fn negotiate(stream: &mut UnixStream) -> Option<()> {
    negotiate_export(stream, SIZE, FLAGS)
}

/// The same for an export of this size.
pub(crate) fn negotiate_export(stream: &mut UnixStream, size: u64, flags: TransmissionFlags) -> Option<()> {
    greet(stream)?;
    loop {
        let asked = option(stream)?;
        let context = OptionReply::MetaContext {
            id: MetaContextId(7),
            name: "base:allocation".into(),
        };
        let refused = OptionReply::Error {
            error: ReplyError::Unsupported,
            message: String::new(),
        };
        match asked {
            OptionType::Go => {
                let export = OptionReply::Info(InfoItem::Export { size, flags });
                reply(stream, asked, &[export, OptionReply::Ack])?;
                return Some(());
            }
            OptionType::SetMetaContext => reply(stream, asked, &[context, OptionReply::Ack])?,
            OptionType::StructuredReply => reply(stream, asked, &[OptionReply::Ack])?,
            _ => reply(stream, asked, &[refused])?,
        }
    }
}

pub(crate) fn request(stream: &mut UnixStream) -> Option<RequestHeader> {
    let bytes = receive::<{ HeaderStyle::Compact.request_size() }>(stream)?;
    RequestHeader::decode(HeaderStyle::Compact, &bytes).ok()
}

/// Answers the first request of each connection, and stays.
fn answering(answer: impl Fn(&RequestHeader) -> Vec<u8> + Send + Sync + 'static) -> Hostile {
    Hostile::start(move |mut stream| {
        negotiate(&mut stream)?;
        let request = request(&mut stream)?;
        send(&mut stream, &answer(&request))?;
        thread::sleep(Duration::from_secs(20));
        Some(())
    })
}

fn chunk(chunk: &Chunk<'_>, flags: ReplyFlags, cookie: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    chunk.encode(HeaderStyle::Compact, flags, cookie, 0, &mut bytes);
    bytes
}

/// Bytes of memory that this process had at most.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

#[test]
fn negotiations_that_go_wrong() {
    let before = peak();
    let huge = |asked: OptionType| {
        let mut bytes = Vec::new();
        let header = OptionReplyHeader {
            option: asked,
            reply: 3,
            length: u32::MAX,
        };
        header.encode(&mut bytes);
        bytes
    };
    let blocks = |minimum, maximum| {
        OptionReply::Info(InfoItem::BlockSize {
            minimum,
            preferred: 4096,
            maximum,
        })
    };
    let ack = OptionReply::Ack;
    let at_go = |replies: Vec<OptionReply>| {
        Hostile::start(move |mut stream| {
            greet(&mut stream)?;
            loop {
                let asked = option(&mut stream)?;
                reply(
                    &mut stream,
                    asked,
                    if asked == OptionType::Go {
                        &replies
                    } else {
                        &[OptionReply::Ack]
                    },
                )?;
            }
        })
    };
    let cases: Vec<(&str, Hostile, ErrorKind)> = vec![
        (
            "nothing",
            Hostile::start(|_| {
                thread::sleep(Duration::from_secs(20));
                None
            }),
            kinds::UNREACHABLE,
        ),
        ("an end", Hostile::start(|_| None), kinds::UNREACHABLE),
        (
            "noise",
            Hostile::start(|mut stream| send(&mut stream, &[0x5a; 4096])),
            kinds::SERVER_PROTOCOL,
        ),
        (
            "a byte at a time",
            Hostile::start(|mut stream| {
                loop {
                    send(&mut stream, b"N")?;
                    thread::sleep(Duration::from_millis(50));
                }
            }),
            kinds::UNREACHABLE,
        ),
        (
            "a long reply",
            Hostile::start(move |mut stream| {
                greet(&mut stream)?;
                let asked = option(&mut stream)?;
                send(&mut stream, &huge(asked))
            }),
            kinds::SERVER_PROTOCOL,
        ),
        (
            "replies without end",
            Hostile::start(|mut stream| {
                greet(&mut stream)?;
                let asked = option(&mut stream)?;
                loop {
                    reply(&mut stream, asked, &[export(1)])?;
                }
            }),
            kinds::SERVER_PROTOCOL,
        ),
        (
            "another option's reply",
            Hostile::start(|mut stream| {
                greet(&mut stream)?;
                option(&mut stream)?;
                reply(&mut stream, OptionType::List, &[OptionReply::Ack])
            }),
            kinds::SERVER_PROTOCOL,
        ),
        ("no size", at_go(vec![ack.clone()]), kinds::SERVER_PROTOCOL),
        (
            "a huge size",
            at_go(vec![export(u64::MAX), ack.clone()]),
            kinds::SERVER_PROTOCOL,
        ),
        (
            "odd blocks",
            at_go(vec![export(SIZE), blocks(3, 1 << 20), ack.clone()]),
            kinds::SERVER_PROTOCOL,
        ),
        (
            "large blocks",
            at_go(vec![export(SIZE), blocks(1 << 30, 1 << 30), ack.clone()]),
            kinds::SERVER_PROTOCOL,
        ),
        (
            "no room",
            at_go(vec![export(SIZE), blocks(4096, 100), ack]),
            kinds::SERVER_PROTOCOL,
        ),
    ];
    for (name, server, expected) in cases {
        let begun = Instant::now();
        let error = server.open().unwrap_err();
        assert_eq!(error.kind(), expected, "{name}: {error:?}");
        assert!(
            begun.elapsed() < Duration::from_secs(3),
            "{name}: {:?}",
            begun.elapsed()
        );
    }
    assert!(peak() - before < 32 << 20, "{} MiB", (peak() - before) >> 20);
}

/// Reads 4 KiB, and must get an error of the protocol, at once and for good.
fn refuses(name: &str, server: &Hostile) {
    let disk = Disk::new(server.open().unwrap());
    let begun = Instant::now();
    for _ in 0..2 {
        let error = disk.read_at(&mut [0; 4096], 8192).unwrap_err();
        assert_eq!(error.kind(), kinds::SERVER_PROTOCOL, "{name}: {error}");
    }
    assert!(
        begun.elapsed() < Duration::from_secs(2),
        "{name}: {:?}",
        begun.elapsed()
    );
    assert_eq!(server.connections.load(Ordering::Relaxed), 1, "{name}");
}

#[test]
fn replies_that_make_no_sense() {
    let before = peak();
    let data = |offset, len: usize| {
        chunk(
            &Chunk::OffsetData {
                offset,
                data: &vec![1; len],
            },
            ReplyFlags::empty(),
            1,
        )
    };
    let hole = |offset, length| chunk(&Chunk::OffsetHole { offset, length }, ReplyFlags::empty(), 1);
    let done = chunk(&Chunk::None, ReplyFlags::DONE, 1);
    let long = |chunk, length| {
        let mut bytes = Vec::new();
        let header = ChunkHeader {
            flags: ReplyFlags::DONE,
            chunk,
            cookie: 1,
            offset: 0,
            length,
        };
        header.encode(HeaderStyle::Compact, &mut bytes);
        bytes
    };
    let status = Chunk::BlockStatus {
        context: MetaContextId(7),
        descriptors: vec![Descriptor {
            length: 4096,
            status: 0,
        }],
    };
    let simple = SimpleReply { error: None, cookie: 1 }.to_bytes();
    let cases = [
        ("noise", vec![0xa5; 4096]),
        ("a simple reply", [&simple[..], &[1; 4096]].concat()),
        ("nothing of it", done.clone()),
        ("a half", [data(8192, 2048), done.clone()].concat()),
        ("another place", data(0, 4096)),
        ("over the end", data(8192 + 4000, 4096)),
        ("twice", [data(8192, 4096), data(8192, 512)].concat()),
        ("a hole over data", [data(8192, 512), hole(8192, 4096)].concat()),
        ("a long hole", hole(8192, u32::MAX)),
        ("a hole at the end of all", hole(u64::MAX, 1)),
        ("no data", long(ChunkType::OffsetData, 8)),
        (
            "4 GiB of data",
            [
                long(ChunkType::OffsetData, u32::MAX.into()),
                8192_u64.to_be_bytes().to_vec(),
            ]
            .concat(),
        ),
        ("4 GiB of error", long(ChunkType::Error, u32::MAX.into())),
        ("4 GiB of nothing", long(ChunkType::None, u32::MAX.into())),
        ("4 GiB of anything", long(ChunkType::Unknown(99), u32::MAX.into())),
        ("status", chunk(&status, ReplyFlags::DONE, 1)),
        ("another cookie", chunk(&Chunk::None, ReplyFlags::DONE, 0x1234)),
    ];
    for (name, answer) in cases {
        refuses(name, &answering(move |_| answer.clone()));
    }
    let mut random = fastrand::Rng::with_seed(0x5eed);
    for round in 0..100 {
        let mut answer = [hole(8192, 2048), data(8192 + 2048, 2048), done.clone()].concat();
        let at = random.usize(..answer.len());
        let bit = 1 << random.u8(..8);
        answer[at] ^= bit;
        let server = answering(move |_| answer.clone());
        let disk = Disk::new(server.open_with(Duration::ZERO).unwrap());
        let begun = Instant::now();
        // What is changed may be the data, or make a server of it that says less than it should.
        let _ = disk.read_at(&mut [0; 4096], 8192);
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "round {round}: byte {at}, bit {bit}"
        );
    }
    assert!(peak() - before < 32 << 20, "{} MiB", (peak() - before) >> 20);
}

/// A block of data that is not said to be the last of its reply.
fn data_without_end(request: &RequestHeader) -> Vec<u8> {
    let data = Chunk::OffsetData {
        offset: request.offset,
        data: &[1; 4096],
    };
    chunk(&data, ReplyFlags::empty(), request.cookie)
}

#[test]
fn half_replies_without_end_are_given_up() {
    let server = Hostile::start(|mut stream| {
        negotiate(&mut stream)?;
        let request = request(&mut stream)?;
        let answer = data_without_end(&request);
        send(&mut stream, &answer[..answer.len() / 2])
    });
    let disk = Disk::new(server.open().unwrap());
    let error = disk.read_at(&mut [0; 4096], 8192).unwrap_err();
    assert_eq!(error.kind(), kinds::UNREACHABLE, "{error}");
    assert_eq!(server.connections.load(Ordering::Relaxed), 8);
}

#[test]
fn a_byte_at_a_time_is_too_slow() {
    let server = Hostile::start(|mut stream| {
        negotiate(&mut stream)?;
        let request = request(&mut stream)?;
        let answer = data_without_end(&request);
        for byte in answer {
            send(&mut stream, &[byte])?;
            thread::sleep(Duration::from_millis(20));
        }
        None
    });
    let disk = Disk::new(server.open_with(Duration::ZERO).unwrap());
    let begun = Instant::now();
    let error = disk.read_at(&mut [0; 4096], 8192).unwrap_err();
    assert_eq!(error.kind(), kinds::UNREACHABLE, "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn statuses_that_make_no_sense() {
    let status = |context, descriptors: &[(u64, u64)], cookie| {
        let descriptors = descriptors
            .iter()
            .map(|&(length, status)| Descriptor { length, status });
        let chunk_of = Chunk::BlockStatus {
            context: MetaContextId(context),
            descriptors: descriptors.collect(),
        };
        chunk(&chunk_of, ReplyFlags::DONE, cookie)
    };
    let walk = |server: &Hostile| -> Result<Vec<u64>, DeviceError> {
        let device = server.open().unwrap();
        let mut lengths = Vec::new();
        let visit = &mut |extent: vhd_block::Extent| {
            lengths.push(extent.range.len);
            std::ops::ControlFlow::Continue(())
        };
        device.extents(ByteRange::new(0, SIZE), visit)?;
        Ok(lengths)
    };
    // More than was asked for is cut.
    let long = answering(move |request| status(7, &[(4096, 3), (u32::MAX.into(), 0)], request.cookie));
    assert_eq!(walk(&long).unwrap(), [4096, SIZE - 4096]);
    // Less than a block is nothing that helps.
    let short = answering(move |request| status(7, &[(100, 3)], request.cookie));
    assert_eq!(walk(&short).unwrap(), [SIZE]);
    let other = answering(move |request| status(8, &[(4096, 3)], request.cookie));
    assert_eq!(walk(&other).unwrap_err().kind(), kinds::SERVER_PROTOCOL);
    let none = answering(|request| chunk(&Chunk::None, ReplyFlags::DONE, request.cookie));
    assert_eq!(walk(&none).unwrap_err().kind(), kinds::SERVER_PROTOCOL);
}

/// Negotiates as it should be, with extended headers.
fn negotiate_extended(stream: &mut UnixStream) -> Option<()> {
    greet(stream)?;
    loop {
        let asked = option(stream)?;
        let context = OptionReply::MetaContext {
            id: MetaContextId(7),
            name: "base:allocation".into(),
        };
        match asked {
            OptionType::Go => return reply(stream, asked, &[export(SIZE), OptionReply::Ack]),
            OptionType::SetMetaContext => reply(stream, asked, &[context, OptionReply::Ack])?,
            _ => reply(stream, asked, &[OptionReply::Ack])?,
        }
    }
}

/// Answers requests in extended headers, with an offset and chunk that depend on the request.
fn extended(answer: impl Fn(&RequestHeader) -> (u64, Chunk<'static>) + Send + Sync + 'static) -> Hostile {
    Hostile::start(move |mut stream| {
        negotiate_extended(&mut stream)?;
        loop {
            let bytes = receive::<{ HeaderStyle::Extended.request_size() }>(&mut stream)?;
            let request = RequestHeader::decode(HeaderStyle::Extended, &bytes).ok()?;
            let (offset, chunk) = answer(&request);
            let mut bytes = Vec::new();
            chunk.encode(
                HeaderStyle::Extended,
                ReplyFlags::DONE,
                request.cookie,
                offset,
                &mut bytes,
            );
            send(&mut stream, &bytes)?;
        }
    })
}

#[test]
fn a_reply_repeats_the_offset_of_its_request() {
    let hole = |offset| Chunk::OffsetHole { offset, length: 4096 };
    let good = extended(move |request| (request.offset, hole(request.offset)));
    let disk = Disk::new(good.open().unwrap());
    disk.read_at(&mut [1; 4096], 8192).unwrap();
    refuses(
        "another offset",
        &extended(move |request| (request.offset + 512, hole(request.offset))),
    );
    refuses("no offset", &extended(move |request| (0, hole(request.offset))));
}

#[test]
fn replies_of_a_kind_that_was_not_asked_for() {
    let status = || Chunk::BlockStatus {
        context: MetaContextId(7),
        descriptors: vec![Descriptor {
            length: 4096,
            status: 0,
        }],
    };
    refuses(
        "a status for a read",
        &extended(move |request| (request.offset, status())),
    );
    for wrong in [
        OptionReply::Server {
            name: "disk".into(),
            description: String::new(),
        },
        OptionReply::MetaContext {
            id: MetaContextId(1),
            name: "base:allocation".into(),
        },
        OptionReply::Unknown {
            number: 99,
            data: vec![1],
        },
    ] {
        let server = Hostile::start(move |mut stream| {
            greet(&mut stream)?;
            loop {
                let asked = option(&mut stream)?;
                let replies = match asked {
                    OptionType::Go => vec![wrong.clone(), export(SIZE), OptionReply::Ack],
                    _ => vec![OptionReply::Ack],
                };
                reply(&mut stream, asked, &replies)?;
            }
        });
        assert_eq!(server.open().unwrap_err().kind(), kinds::SERVER_PROTOCOL);
    }
}

#[test]
fn a_server_that_is_of_no_use_is_told_good_bye() {
    let (told, heard) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let server = Hostile::start(move |mut stream| {
        greet(&mut stream)?;
        loop {
            let asked = option(&mut stream)?;
            told.lock().unwrap().send(asked).unwrap();
            let error = OptionReply::Error {
                error: ReplyError::Unknown,
                message: "\u{1b}[2Jno \u{9b}1m\u{202e}disk\r\n".into(),
            };
            reply(&mut stream, asked, &[error])?;
        }
    });
    let error = vhd_block::with_causes(&server.open().unwrap_err());
    assert!(error.contains("\\u{1b}[2Jno \\u{9b}1m\\u{202e}disk\\r\\n"), "{error}");
    assert!(!error.contains(char::is_control), "{error:?}");
    let last = heard.iter().find(|asked| *asked == OptionType::Abort);
    assert_eq!(last, Some(OptionType::Abort));

    // One that gives the export, and makes no sense.
    let (told, heard) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let server = Hostile::start(move |mut stream| {
        negotiate_export(&mut stream, u64::MAX, FLAGS)?;
        let request = request(&mut stream)?;
        told.lock().unwrap().send(request.command).unwrap();
        None
    });
    assert_eq!(server.open().unwrap_err().kind(), kinds::SERVER_PROTOCOL);
    assert_eq!(heard.recv_timeout(Duration::from_secs(10)), Ok(Command::Disconnect));
}

#[test]
fn a_server_that_takes_less_is_asked_for_less() {
    // It does not say so while it is asked for anything: by errors only.
    const TAKES: u64 = 3 * 4096;
    let (told, heard) = std::sync::mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let server = Hostile::start(move |mut stream| {
        negotiate(&mut stream)?;
        loop {
            let request = request(&mut stream)?;
            let mut payload = vec![0; request.payload_length(HeaderStyle::Compact).try_into().ok()?];
            stream.read_exact(&mut payload).ok()?;
            told.lock().unwrap().send(request.length).ok()?;
            let (offset, length) = (request.offset, u32::try_from(request.length).ok()?);
            let answer = match request.command {
                _ if request.length > TAKES => Chunk::Error {
                    error: Errno::Overflow,
                    message: "too long".into(),
                    offset: None,
                },
                Command::Read => Chunk::OffsetHole { offset, length },
                _ => Chunk::None,
            };
            send(&mut stream, &chunk(&answer, ReplyFlags::DONE, request.cookie))?;
        }
    });
    let device = server.open().unwrap();
    let mut read = vec![1; 100 << 10];
    device.read_at(&mut read, 0).unwrap();
    assert!(read.iter().all(|&byte| byte == 0));
    device
        .write_vectored_at(&[std::io::IoSlice::new(&read)], 0, false)
        .unwrap();
    device
        .write_zeroes(ByteRange::new(0, SIZE), ZeroOptions::default())
        .unwrap();
    drop(device);
    let asked: Vec<u64> = heard.iter().take_while(|length| *length > 0).collect();
    assert!(asked.contains(&(100 << 10)), "{asked:?}");
    // It learns: the second pass begins with what the server takes.
    assert!(asked.iter().filter(|length| **length > TAKES).count() < 20, "{asked:?}");
}

#[test]
fn a_server_that_cannot_tell_what_it_stores() {
    for errno in [Errno::Io, Errno::Overflow, Errno::NoMem, Errno::NotSup] {
        let server = Hostile::start(move |mut stream| {
            negotiate(&mut stream)?;
            loop {
                let request = request(&mut stream)?;
                let error = Chunk::Error {
                    error: errno,
                    message: String::new(),
                    offset: None,
                };
                send(&mut stream, &chunk(&error, ReplyFlags::DONE, request.cookie))?;
            }
        });
        let disk = Disk::new(server.open().unwrap());
        let mut stored = 0;
        disk.extents(ByteRange::new(0, SIZE), &mut |extent| {
            assert_eq!(extent.kind, vhd_block::ExtentKind::Data);
            stored += extent.range.len;
            std::ops::ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(stored, SIZE, "{errno:?}");
    }
}
