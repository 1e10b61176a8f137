//! Servers of others: the contract of a disk over each, with what they can and can't do.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vhd_block::ErrorKind;
use vhd_block::{BlockDevice, Disk};
use vhd_nbd::client::{ClientError, ClientOptions, NbdDevice};
use vhd_nbd::kinds;
use vhd_testkit::Conformance;

use crate::support::has;

/// A program that serves a socket, killed in the end.
pub(crate) struct Served {
    pub(crate) child: Child,
    pub(crate) socket: PathBuf,
}

impl Served {
    /// Starts a program, in whose arguments SOCKET stands for the socket, and waits for that.
    pub(crate) fn start(dir: &Path, program: &str, arguments: &[&str]) -> Self {
        let socket = dir.join("other.sock");
        // Left behind by one that was killed.
        let _ = std::fs::remove_file(&socket);
        let arguments = arguments
            .iter()
            .map(|argument| argument.replace("SOCKET", socket.to_str().unwrap()));
        let child = Command::new(program)
            .args(arguments)
            .current_dir(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).is_err() {
            assert!(Instant::now() < deadline, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, socket }
    }

    pub(crate) fn nbdkit(dir: &Path, arguments: &[&str]) -> Self {
        Self::start(dir, "nbdkit", &[&["-f", "-U", "SOCKET"], arguments].concat())
    }

    pub(crate) fn uri(&self, export: &str) -> String {
        format!("nbd+unix:///{export}?socket={}", self.socket.display())
    }

    pub(crate) fn open(&self, options: ClientOptions) -> Result<Arc<NbdDevice>, ClientError> {
        NbdDevice::open(&self.uri("").parse().unwrap(), options)
    }

    /// As if the power failed.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn writing() -> ClientOptions {
    ClientOptions {
        write: true,
        ..ClientOptions::default()
    }
}

/// Runs the suite over a file that a program serves.
fn contract(program: &str, arguments: &[&str]) {
    if !has(program) {
        return;
    }
    let servers = Mutex::new(Vec::new());
    let suite = Conformance {
        torn_reads: true,
        steps: 20,
        ..Conformance::default()
    };
    suite.run(&|_, content| {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("disk.raw"), content).unwrap();
        let served = Served::start(dir.path(), program, arguments);
        let device = served.open(writing()).unwrap();
        servers.lock().unwrap().push((served, dir));
        device
    });
}

#[test]
fn nbdkit() {
    contract("nbdkit", &["-f", "-U", "SOCKET", "file", "disk.raw"]);
}

#[test]
fn nbdkit_with_simple_replies_and_little_else() {
    let filters = ["--filter=nozero", "--filter=fua", "file", "disk.raw"];
    contract("nbdkit", &[&["-f", "-U", "SOCKET", "--no-sr"], &filters[..]].concat());
}

#[test]
fn nbdkit_of_the_old_days() {
    // Without fixed newstyle there is one option, and no answer to another.
    contract(
        "nbdkit",
        &["-f", "-U", "SOCKET", "--mask-handshake=0", "file", "disk.raw"],
    );
}

#[test]
fn nbdkit_that_refuses_what_is_not_aligned() {
    let policy = [
        "--filter=blocksize-policy",
        "file",
        "disk.raw",
        "blocksize-error-policy=error",
        "blocksize-minimum=4096",
        "blocksize-preferred=64K",
        "blocksize-maximum=128K",
    ];
    contract("nbdkit", &[&["-f", "-U", "SOCKET"], &policy[..]].concat());
}

#[test]
fn qemu_nbd() {
    let arguments = [
        "-t",
        "-e",
        "4",
        "-k",
        "SOCKET",
        "-f",
        "raw",
        "--discard=unmap",
        "disk.raw",
    ];
    contract("qemu-nbd", &arguments);
}

#[test]
fn extents_are_those_of_the_file() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let served = Served::nbdkit(dir.path(), &["data", "@0x100000 1 @0x1fffff 2 @0x7fffff 3"]);
    let device = served.open(ClientOptions::default()).unwrap();
    let mut found = Vec::new();
    let whole = vhd_block::ByteRange::new(0, device.size_bytes());
    let visit = &mut |extent: vhd_block::Extent| {
        found.push((extent.range.start, extent.range.len, extent.kind));
        std::ops::ControlFlow::Continue(())
    };
    device.extents(whole, visit).unwrap();
    use vhd_block::ExtentKind::{Data, Hole};
    let mib = 1 << 20;
    let page = 32 << 10;
    // The plugin keeps pages of 32 KiB.
    assert_eq!(
        found,
        [
            (0, mib, Hole),
            (mib, page, Data),
            (mib + page, mib - 2 * page, Hole),
            (2 * mib - page, page, Data),
            (2 * mib, 6 * mib - page, Hole),
            (8 * mib - page, page, Data),
        ]
    );
}

#[test]
fn odd_sizes_are_read_and_not_written() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..100_003_u32).map(|at| at.to_le_bytes()[0] | 1).collect();
    std::fs::write(dir.path().join("odd"), &bytes).unwrap();
    let served = Served::nbdkit(dir.path(), &["file", "odd"]);
    let device = served.open(ClientOptions::default()).unwrap();
    let disk = Disk::new(device);
    assert_eq!(disk.size(), 100_352);
    let mut read = vec![0xee; 100_352];
    disk.read_at(&mut read, 0).unwrap();
    assert!(read[..bytes.len()] == bytes && read[bytes.len()..].iter().all(|&byte| byte == 0));
    let mut count = 0;
    let visit = &mut |extent: vhd_block::Extent| {
        count += extent.range.len;
        std::ops::ControlFlow::Continue(())
    };
    disk.extents(vhd_block::ByteRange::new(0, disk.size()), visit).unwrap();
    assert_eq!(count, disk.size());
    assert!(matches!(served.open(writing()), Err(ClientError::OddSize { .. })));
}

#[test]
fn sizes_that_are_no_whole_blocks_of_the_server_are_read() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes: Vec<u8> = (0..100_352_u32).map(|at| at.to_le_bytes()[0] | 1).collect();
    std::fs::write(dir.path().join("odd"), &bytes).unwrap();
    let blocks = [
        "--filter=blocksize-policy",
        "file",
        "odd",
        "blocksize-minimum=4096",
        "blocksize-preferred=4096",
    ];
    let served = Served::nbdkit(dir.path(), &[&blocks[..], &["blocksize-maximum=64K"]].concat());
    let disk = Disk::new(served.open(ClientOptions::default()).unwrap());
    assert_eq!(disk.size(), 102_400);
    let mut read = vec![0xee; 102_400];
    disk.read_at(&mut read, 0).unwrap();
    assert!(read[..bytes.len()] == bytes && read[bytes.len()..].iter().all(|&byte| byte == 0));
    assert!(matches!(served.open(writing()), Err(ClientError::OddSize { .. })));
}

#[test]
fn a_server_whose_extents_fail_is_read_in_full() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk"), vec![5; 1 << 20]).unwrap();
    let errors = ["error-extents=EIO", "error-rate=0%", "error-extents-rate=100%"];
    let served = Served::nbdkit(dir.path(), &[&["--filter=error", "file", "disk"], &errors[..]].concat());
    let disk = Disk::new(served.open(ClientOptions::default()).unwrap());
    let mut stored = 0;
    let visit = &mut |extent: vhd_block::Extent| {
        assert_eq!(extent.kind, vhd_block::ExtentKind::Data);
        stored += extent.range.len;
        std::ops::ControlFlow::Continue(())
    };
    disk.extents(vhd_block::ByteRange::new(0, disk.size()), visit).unwrap();
    assert_eq!(stored, 1 << 20);
}

#[test]
fn failures_of_the_server_are_told() {
    if !has("nbdkit") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let errors = ["error-pread=EIO", "error-pwrite=ENOSPC", "error-rate=100%"];
    let served = Served::nbdkit(dir.path(), &[&["--filter=error", "memory", "1M"], &errors[..]].concat());
    let device = served.open(writing()).unwrap();
    let disk = Disk::new(device);
    let read = disk.read_at(&mut [0; 512], 4096).unwrap_err();
    assert_eq!(read.kind(), ErrorKind::Io);
    assert!(
        read.to_string().contains("other.sock answers Io to Read at 0x1000"),
        "{read}"
    );
    assert_eq!(disk.write_at(&[1; 512], 0).unwrap_err().kind(), ErrorKind::NoSpace);
}

#[test]
fn what_is_not_there_is_said() {
    if !has("nbdkit") || !has("qemu-nbd") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("disk.raw"), [0; 4096]).unwrap();
    let kind = |served: &Served, export: &str, options| {
        let opened = NbdDevice::open(&served.uri(export).parse().unwrap(), options);
        opened.err().map(|error| error.kind())
    };
    {
        let qemu = ["-t", "-r", "-k", "SOCKET", "-f", "raw", "-x", "here", "disk.raw"];
        let served = Served::start(dir.path(), "qemu-nbd", &qemu);
        assert_eq!(
            kind(&served, "there", ClientOptions::default()),
            Some(kinds::SERVER_REFUSED)
        );
        assert_eq!(kind(&served, "here", writing()), Some(ErrorKind::ReadOnly));
        assert_eq!(kind(&served, "here", ClientOptions::default()), None);
    }
    let old = Served::nbdkit(dir.path(), &["-o", "memory", "1M"]);
    assert_eq!(kind(&old, "", ClientOptions::default()), Some(kinds::SERVER_PROTOCOL));
    drop(old);
    std::fs::remove_file(dir.path().join("other.sock")).ok();
    let gone = format!("nbd+unix:///?socket={}", dir.path().join("gone").display());
    let gone = NbdDevice::open(&gone.parse().unwrap(), ClientOptions::default());
    assert_eq!(gone.unwrap_err().kind(), kinds::UNREACHABLE);
}
