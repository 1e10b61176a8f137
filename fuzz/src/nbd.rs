//! Any bytes from a client, to a server in this process.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vhd_core::chain::{OpenOptions, OpenedDisk};
use vhd_core::format::DEFAULT_BLOCK_SIZE;
use vhd_core::image::create_dynamic;
use vhd_core::storage::StagedFile;
use vhd_nbd::protocol::{ExportNameReply, Greeting, InfoRequest, MetaContextRequest, OptionRequest};
use vhd_nbd::server::{ChangedAboveLayer, Export, ExportSet, Server, ServerOptions};

/// Bytes of the disk. Small, because input that happens to write writes a real file.
const SIZE: u64 = 4 << 20;
/// How long the server may take for one input; it answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);
const CLIENT_FLAGS: u32 = 3;

/// A server with a small disk.
pub struct Target {
    server: Arc<Server>,
    opened: OpenedDisk,
    _dir: tempfile::TempDir,
}

impl Default for Target {
    fn default() -> Self {
        Self::new()
    }
}

impl Target {
    /// A server that input can be thrown at.
    #[must_use]
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("there is a directory for temporary files");
        let path = dir.path().join("disk.vhd");
        let staged = StagedFile::create_beside(&path).expect("it can be written to");
        create_dynamic(&*staged.storage(), SIZE, DEFAULT_BLOCK_SIZE.into()).expect("the size is possible");
        staged.publish(false, false).expect("the name is free");
        let opened = OpenOptions::new().write(true).open(&path).expect("it is an image");
        let changes = Box::new(ChangedAboveLayer { depth: 1 });
        let mut exports = ExportSet::new();
        exports
            .add(Export::new("disk", opened.disk()).with_changes("base", changes))
            .unwrap();
        exports.add(Export::new("frozen", opened.disk()).read_only()).unwrap();
        let server = Server::new(exports, ServerOptions::default()).expect("there is a pipe");
        Self {
            server,
            opened,
            _dir: dir,
        }
    }

    /// Input in the place of options.
    pub fn handshake(&self, input: &[u8]) {
        let mut client = self.connect();
        read_exact(&mut client, Greeting::SIZE);
        throw(&client, input);
        self.assert_serving();
    }

    /// Input in the place of requests; its first byte chooses the style of replies.
    pub fn transmission(&self, input: &[u8]) {
        let Some((style, requests)) = input.split_first() else {
            return;
        };
        let mut options = Vec::new();
        let style = [
            None,
            Some(OptionRequest::StructuredReply),
            Some(OptionRequest::ExtendedHeaders),
        ]
        .into_iter()
        .nth(usize::from(style % 3))
        .flatten();
        if let Some(style) = style {
            let queries = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:base"];
            options.push(style);
            options.push(OptionRequest::SetMetaContext(MetaContextRequest {
                export: "disk".into(),
                queries: queries.map(String::from).to_vec(),
            }));
        }
        options.push(OptionRequest::Go(InfoRequest {
            name: "disk".into(),
            items: Vec::new(),
        }));
        let mut bytes = CLIENT_FLAGS.to_be_bytes().to_vec();
        options.iter().for_each(|option| option.encode(&mut bytes));
        bytes.extend_from_slice(requests);
        throw(&self.connect(), &bytes);
        assert_eq!(self.opened.disk().size(), SIZE);
        self.assert_serving();
    }

    fn connect(&self) -> UnixStream {
        let (client, served) = UnixStream::pair().expect("there are sockets");
        client.set_read_timeout(Some(PATIENCE)).expect("a socket has timeouts");
        self.server.serve_socket(served.into(), "fuzz".into());
        client
    }

    /// The next client is told the size of the disk.
    fn assert_serving(&self) {
        let mut client = self.connect();
        let mut bytes = CLIENT_FLAGS.to_be_bytes().to_vec();
        OptionRequest::ExportName("disk".into()).encode(&mut bytes);
        client.write_all(&bytes).expect("the server takes options");
        let reply = read_exact(&mut client, Greeting::SIZE + ExportNameReply::SIZE);
        assert_eq!(reply[Greeting::SIZE..][..8], SIZE.to_be_bytes());
    }
}

fn read_exact(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).expect("the server says so much");
    bytes
}

/// Sends what the server may refuse to take, and takes what it says until it hangs up.
fn throw(stream: &UnixStream, bytes: &[u8]) {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = (&mut &*stream).write_all(bytes);
            let _ = stream.shutdown(Shutdown::Write);
        });
        let mut sink = vec![0; 64 << 10];
        loop {
            match (&mut &*stream).read(&mut sink) {
                Ok(0) => return,
                Ok(_) => {}
                // libFuzzer has an alarm clock.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // It hung up on what we had still to say.
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("the server does not end the connection: {error}"),
            }
        }
    });
}
