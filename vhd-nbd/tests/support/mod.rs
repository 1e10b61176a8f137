//! Disks, a server in this process, and a client that says whatever it is told to.
#![allow(dead_code, unreachable_pub, missing_docs)]

pub mod probe;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command as Program;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use vhd_block::Disk;
use vhd_core::chain::{OpenOptions, OpenedDisk, create_child};
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::image::create_dynamic;
use vhd_core::ops::resize::{Opening, ResizableDisk};
use vhd_core::storage::StagedFile;
use vhd_nbd::protocol::{
    Chunk, Command, CommandFlags, Descriptor, Errno, Greeting, HeaderStyle, InfoRequest, MetaContextId,
    MetaContextRequest, OptionReply, OptionReplyHeader, OptionRequest, REPLY_MAGIC_SIZE, ReplyFlags, ReplyHeader,
    ReplyStyle, RequestHeader,
};
use vhd_nbd::server::{ChangedAboveLayer, Export, ExportSet, Listener, Server, ServerOptions};

/// Bytes of the disks here; not a multiple of the block size.
pub const SIZE: u64 = (64 << 20) + 512;

pub fn create(path: &Path, size: u64) {
    let staged = StagedFile::create_beside(path).unwrap();
    create_dynamic(&*staged.storage(), size, DEFAULT_BLOCK_SIZE.into()).unwrap();
    staged.publish(false, false).unwrap();
}

pub fn open(path: &Path, write: bool) -> OpenedDisk {
    OpenOptions::new().write(write).open(path).unwrap()
}

/// The image as a disk that can be resized.
pub fn resizable(path: &Path) -> Arc<ResizableDisk> {
    match ResizableDisk::open(path, &OpenOptions::new()).unwrap() {
        Opening::Resizable(disk) => disk,
        Opening::Plain { reason, .. } => panic!("{reason}"),
    }
}

/// The exports of a disk whose size clients may change, and the same for reading only.
pub fn resizable_exports(disk: &Arc<ResizableDisk>) -> ExportSet {
    let disk = Disk::new(Arc::clone(disk) as _);
    let mut exports = ExportSet::new();
    exports.add(Export::new("disk", disk.clone()).resizable()).unwrap();
    exports
        .add(Export::new("frozen", disk).resizable().read_only())
        .unwrap();
    exports
}

/// A disk with bytes in its base, changed in a child.
pub fn chain(dir: &Path) -> OpenedDisk {
    let (base, child) = (dir.join("base.vhd"), dir.join("child.avhd"));
    create(&base, SIZE);
    let opened = open(&base, true);
    opened.disk().write_at(&[1; 1 << 20], 0).unwrap();
    opened.disk().write_at(&[2; 4096], 32 << 20).unwrap();
    opened.close().unwrap();
    create_child(&child, &base, None, &OpenOptions::new()).unwrap();
    let opened = open(&child, true);
    opened.disk().write_at(&[3; 4096], 4096).unwrap();
    opened
}

/// The exports of most tests: the disk, and the same for reading only.
pub fn exports(opened: &OpenedDisk) -> ExportSet {
    let mut exports = ExportSet::new();
    let export = Export::new("disk", opened.disk()).with_description("a test");
    let export = export.with_changes("base.vhd", Box::new(ChangedAboveLayer { depth: 1 }));
    exports.add(export).unwrap();
    exports.add(Export::new("frozen", opened.disk()).read_only()).unwrap();
    exports
}

/// Whether a program is there.
pub fn has(program: &str) -> bool {
    let found = Program::new(program).arg("--version").output().is_ok();
    if !found {
        assert!(std::env::var_os("CI").is_none(), "there is no {program}");
        println!("left out: there is no {program}");
    }
    found
}

/// An authority, a certificate for `localhost`, and one for a client, by the names that libnbd looks for.
pub fn certificates(dir: &Path) {
    let script = r#"
set -e
cd "$1"
req() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -sha256 "$@" 2>/dev/null; }
req -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem
req -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE \
    -CA ca-cert.pem -CAkey ca-key.pem -keyout server-key.pem -out server-cert.pem
req -subj /CN=client -addext basicConstraints=critical,CA:FALSE \
    -CA ca-cert.pem -CAkey ca-key.pem -keyout client-key.pem -out client-cert.pem
"#;
    let made = Program::new("bash").args(["-c", script, "bash"]).arg(dir).status();
    assert!(made.unwrap().success());
}

/// A server that listens on a unix socket until it is dropped.
pub struct Running {
    pub server: Arc<Server>,
    pub socket: PathBuf,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub fn start(dir: &Path, exports: ExportSet, options: ServerOptions) -> Self {
        let server = Server::new(exports, options).unwrap();
        let socket = dir.join("socket");
        let listener = Listener::unix(&socket).unwrap();
        let serving = Arc::clone(&server);
        let thread = std::thread::spawn(move || serving.serve(&[listener]).unwrap().unwrap());
        Self {
            server,
            socket,
            thread: Some(thread),
        }
    }

    pub fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.server.stop();
        let ended = self.thread.take().unwrap().join();
        assert!(std::thread::panicking() || ended.is_ok());
    }
}

/// What came in reply to a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reply {
    pub error: Option<Errno>,
    pub message: String,
    pub error_offset: Option<u64>,
    pub data: Vec<(u64, Vec<u8>)>,
    pub holes: Vec<(u64, u32)>,
    pub status: Vec<(MetaContextId, Vec<Descriptor>)>,
}

impl Reply {
    pub fn content_chunks(&self) -> usize {
        self.data.len() + self.holes.len()
    }

    /// The bytes of a READ.
    pub fn bytes(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xee; len];
        let mut put = |at: u64, part: &[u8]| {
            let start = usize::try_from(at - offset).unwrap();
            bytes[start..start + part.len()].copy_from_slice(part);
        };
        for (at, data) in &self.data {
            put(*at, data);
        }
        for (at, len) in &self.holes {
            put(*at, &vec![0; usize::try_from(*len).unwrap()]);
        }
        bytes
    }
}

/// A client without manners.
pub struct Client {
    pub stream: UnixStream,
    pub style: ReplyStyle,
    pub contexts: Vec<(MetaContextId, String)>,
    cookie: u64,
}

pub fn read_exact(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

impl Client {
    pub fn connect(running: &Running, style: ReplyStyle, export: &str, queries: &[&str]) -> Self {
        let mut client = Self {
            stream: running.connect(),
            style,
            contexts: Vec::new(),
            cookie: 0,
        };
        Greeting::decode(&read_exact(&mut client.stream, Greeting::SIZE)).unwrap();
        client.stream.write_all(&3u32.to_be_bytes()).unwrap();
        match style {
            ReplyStyle::Simple => {}
            ReplyStyle::Structured => drop(client.option(&OptionRequest::StructuredReply)),
            ReplyStyle::Extended => drop(client.option(&OptionRequest::ExtendedHeaders)),
        }
        if !queries.is_empty() {
            let request = MetaContextRequest {
                export: export.into(),
                queries: queries.iter().map(ToString::to_string).collect(),
            };
            let replies = client.option(&OptionRequest::SetMetaContext(request));
            client.contexts = replies
                .into_iter()
                .filter_map(|reply| match reply {
                    OptionReply::MetaContext { id, name } => Some((id, name)),
                    _ => None,
                })
                .collect();
        }
        let go = InfoRequest {
            name: export.into(),
            items: Vec::new(),
        };
        let replies = client.option(&OptionRequest::Go(go));
        assert_eq!(replies.last(), Some(&OptionReply::Ack));
        client
    }

    pub fn option(&mut self, option: &OptionRequest) -> Vec<OptionReply> {
        let mut bytes = Vec::new();
        option.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
        let mut replies = Vec::new();
        loop {
            let header = OptionReplyHeader::decode(&read_exact(&mut self.stream, OptionReplyHeader::SIZE)).unwrap();
            let data = read_exact(&mut self.stream, header.length.try_into().unwrap());
            let reply = OptionReply::decode(header.reply, &data).unwrap();
            let last = matches!(reply, OptionReply::Ack | OptionReply::Error { .. });
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    pub fn send(&mut self, command: Command, flags: CommandFlags, offset: u64, length: u64, payload: &[u8]) {
        self.cookie += 1;
        let header = RequestHeader {
            flags,
            command,
            cookie: self.cookie,
            offset,
            length,
        };
        let mut bytes = Vec::new();
        header.encode(self.style.header_style(), &mut bytes);
        bytes.extend_from_slice(payload);
        self.stream.write_all(&bytes).unwrap();
    }

    pub fn call(&mut self, command: Command, flags: CommandFlags, offset: u64, length: u64) -> Reply {
        self.send(command, flags, offset, length, &[]);
        self.receive(if command == Command::Read { length } else { 0 })
    }

    pub fn write(&mut self, flags: CommandFlags, offset: u64, data: &[u8]) -> Reply {
        let flags = match self.style.header_style() {
            HeaderStyle::Compact => flags,
            HeaderStyle::Extended => flags | CommandFlags::PAYLOAD_LEN,
        };
        self.send(Command::Write, flags, offset, data.len().try_into().unwrap(), data);
        self.receive(0)
    }

    /// The reply to the only request in flight; `expected` bytes of data come with a simple one.
    pub fn receive(&mut self, expected: u64) -> Reply {
        let mut reply = Reply::default();
        loop {
            let magic = read_exact(&mut self.stream, REPLY_MAGIC_SIZE);
            let style = ReplyStyle::from_magic(magic[..].try_into().unwrap()).unwrap();
            let mut header = magic;
            header.extend(read_exact(&mut self.stream, style.header_size() - REPLY_MAGIC_SIZE));
            match ReplyHeader::decode(style, &header).unwrap() {
                ReplyHeader::Simple(simple) => {
                    assert_ne!(self.style, ReplyStyle::Extended);
                    assert_eq!(simple.cookie, self.cookie);
                    reply.error = simple.error;
                    if simple.error.is_none() && expected > 0 {
                        assert_eq!(self.style, ReplyStyle::Simple);
                        let data = read_exact(&mut self.stream, expected.try_into().unwrap());
                        reply.data.push((0, data));
                    }
                    return reply;
                }
                ReplyHeader::Chunk(header) => {
                    assert_eq!(style, self.style);
                    assert_eq!(header.cookie, self.cookie);
                    let payload = read_exact(&mut self.stream, header.length.try_into().unwrap());
                    match Chunk::decode(header.chunk, &payload).unwrap() {
                        Chunk::None => {}
                        Chunk::OffsetData { offset, data } => reply.data.push((offset, data.to_vec())),
                        Chunk::OffsetHole { offset, length } => reply.holes.push((offset, length)),
                        Chunk::BlockStatus { context, descriptors } => reply.status.push((context, descriptors)),
                        Chunk::Error { error, message, offset } => {
                            reply.error = Some(error);
                            reply.message = message;
                            reply.error_offset = offset;
                        }
                        Chunk::Unknown { number, .. } => panic!("chunk {number}"),
                    }
                    if header.flags.contains(ReplyFlags::DONE) {
                        return reply;
                    }
                }
            }
        }
    }

    /// Whether the server goes on with this client.
    pub fn is_alive(&mut self) -> bool {
        let reply = self.call(Command::Read, CommandFlags::empty(), 0, 512);
        reply.error.is_none() && reply.content_chunks() == 1
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
