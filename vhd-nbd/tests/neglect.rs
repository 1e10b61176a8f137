//! Clients that leave things undone: they stop reading, they go, they wait; and a server that stops meanwhile.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use support::probe::Probe;
use support::{Client, Running, read_exact};
use vhd_nbd::protocol::{
    Command, CommandFlags, Errno, Greeting, MAX_STRING, OptionReply, OptionReplyHeader, OptionRequest, ReplyError,
    ReplyStyle, RequestHeader,
};
use vhd_nbd::server::{Export, ExportSet, ServerOptions};

const NONE: CommandFlags = CommandFlags::empty();
const SIZE: u64 = 64 << 20;
const STYLE: ReplyStyle = ReplyStyle::Structured;

/// A server of one disk, `disk`, that does what it is told.
fn start(options: ServerOptions) -> (tempfile::TempDir, Arc<Probe>, Running) {
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new(SIZE);
    let mut exports = ExportSet::new();
    exports.add(Export::new("disk", probe.disk())).unwrap();
    let running = Running::start(dir.path(), exports, options);
    (dir, probe, running)
}

fn options(stall: u64, idle: Option<u64>) -> ServerOptions {
    ServerOptions {
        stall_timeout: Duration::from_millis(stall),
        idle_timeout: idle.map(Duration::from_millis),
        ..ServerOptions::default()
    }
}

fn client(running: &Running) -> Client {
    Client::connect(running, STYLE, "disk", &["base:allocation"])
}

fn requests(command: Command, flags: CommandFlags, count: u64, length: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..count {
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset: 0,
            length,
        };
        header.encode(STYLE.header_style(), &mut bytes);
    }
    bytes
}

/// Waits until the server has no connection.
fn await_no_connections(running: &Running) {
    for _ in 0..4000 {
        if running.server.stats().open_connections == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("a connection stays");
}

#[test]
fn a_client_that_stops_reading_is_disconnected() {
    // With an idle timeout and without: what it does not take is not idleness.
    for options in [options(300, None), options(60_000, Some(300))] {
        let (_dir, _probe, running) = start(options);
        for flags in [NONE, CommandFlags::DF] {
            let mut deaf = client(&running);
            deaf.stream
                .write_all(&requests(Command::Read, flags, 8, 4 << 20))
                .unwrap();
            await_no_connections(&running);
        }
        assert!(client(&running).is_alive());
    }
}

#[test]
fn a_client_that_reads_a_little_now_and_then_is_disconnected() {
    let (_dir, _probe, running) = start(options(300, None));
    let mut slow = client(&running);
    slow.stream
        .write_all(&requests(Command::Read, CommandFlags::DF, 1, 32 << 20))
        .unwrap();
    let mut stream = slow.stream.try_clone().unwrap();
    let reader = thread::spawn(move || {
        let mut got = 0;
        while let Ok(count @ 1..) = stream.read(&mut [0; 512]) {
            got += count;
            thread::sleep(Duration::from_millis(20));
        }
        got
    });
    await_no_connections(&running);
    drop(slow);
    assert!(reader.join().unwrap() < 4 << 20);
}

#[test]
fn a_client_that_stops_in_the_middle_of_a_request_is_disconnected() {
    let (_dir, _probe, running) = start(options(300, None));
    for (length, sent) in [(4096, 100), (4096, 0), (1 << 20, 300_000)] {
        let mut half = client(&running);
        let mut bytes = requests(Command::Write, NONE, 1, length);
        bytes.resize(bytes.len() + sent, 1);
        half.stream.write_all(&bytes).unwrap();
        await_no_connections(&running);
    }
    let mut half = client(&running);
    half.stream
        .write_all(&requests(Command::Read, NONE, 1, 512)[..11])
        .unwrap();
    await_no_connections(&running);
}

#[test]
fn a_client_that_waits_for_its_own_request_is_not_idle() {
    let (_dir, probe, running) = start(options(200, Some(200)));
    let mut waiting = client(&running);
    probe.hold();
    waiting.send(Command::Flush, NONE, 0, 0, &[]);
    probe.await_flushes(1);
    thread::sleep(Duration::from_millis(900));
    probe.release();
    assert_eq!(waiting.receive(0).error, None);
    assert!(waiting.is_alive());
    // One that waits for nothing is.
    assert!(waiting.is_closed());
}

#[test]
fn a_slow_negotiation_ends_in_time_however_it_is_read() {
    let options = ServerOptions {
        handshake_timeout: Duration::from_millis(600),
        ..ServerOptions::default()
    };
    let (_dir, _probe, running) = start(options);
    let mut slow = running.connect();
    let mut script = 3u32.to_be_bytes().to_vec();
    for _ in 0..20_000 {
        OptionRequest::List.encode(&mut script);
    }
    let mut writer = slow.try_clone().unwrap();
    let writing = thread::spawn(move || writer.write_all(&script).is_err());
    let mut reads = 0;
    // Each read makes room for a part of an answer: the server never waits for long.
    while let Ok(1..) = slow.read(&mut [0; 2048]) {
        reads += 1;
        thread::sleep(Duration::from_millis(20));
    }
    assert!(writing.join().unwrap());
    assert!(reads < 400, "{reads}");
    assert!(client(&running).is_alive());
}

#[test]
fn what_a_client_asked_for_ends_with_it() {
    let (_dir, probe, running) = start(ServerOptions::default());
    for good_bye in [false, true] {
        let before = probe.reads.load(Ordering::SeqCst);
        let gone = client(&running);
        // Something that keeps a worker, and shows when the others have begun.
        let mut bytes = requests(Command::Cache, NONE, 20_000, 8 << 20);
        if good_bye {
            bytes.extend(requests(Command::Disconnect, NONE, 1, 0));
        }
        let mut stream = gone.stream.try_clone().unwrap();
        let writing = thread::spawn(move || stream.write_all(&bytes));
        while probe.reads.load(Ordering::SeqCst) == before {
            thread::yield_now();
        }
        gone.stream.shutdown(std::net::Shutdown::Both).unwrap();
        drop(writing.join().unwrap());
        drop(gone);
        await_no_connections(&running);
        let reads = probe.reads.load(Ordering::SeqCst) - before;
        // All of it would be 20,000 times 32.
        assert!(reads < 100_000, "{reads}");
    }
}

#[test]
fn a_flush_is_executed_after_good_bye() {
    let (_dir, probe, running) = start(ServerOptions::default());
    probe.hold();
    let mut gone = client(&running);
    gone.send(Command::Flush, NONE, 0, 0, &[]);
    probe.await_flushes(1);
    gone.send(Command::Write, CommandFlags::FUA, 0, 512, &[9; 512]);
    gone.send(Command::Disconnect, NONE, 0, 0, &[]);
    drop(gone);
    probe.release();
    await_no_connections(&running);
    assert_eq!(probe.flushes.load(Ordering::SeqCst), 2);
}

#[test]
fn a_flush_that_panics_keeps_no_other_waiting() {
    let (_dir, probe, running) = start(ServerOptions::default());
    let mut other = client(&running);
    for _ in 0..3 {
        let mut unlucky = client(&running);
        probe.hold();
        probe.panics.store(true, Ordering::SeqCst);
        let begun = probe.flushes.load(Ordering::SeqCst);
        // One is executed, and the others wait for it.
        for _ in 0..3 {
            unlucky.send(Command::Flush, NONE, 0, 0, &[]);
        }
        unlucky.send(Command::Cache, NONE, 0, 4096, &[]);
        probe.await_flushes(begun + 1);
        probe.release();
        assert!(unlucky.is_closed());
        assert_eq!(other.call(Command::Flush, NONE, 0, 0).error, None);
    }
    drop(other);
    await_no_connections(&running);
}

#[test]
fn a_server_that_stops_says_so() {
    let (_dir, probe, running) = start(ServerOptions::default());
    let mut busy = client(&running);
    let mut quiet = client(&running);
    let mut negotiating = running.connect();
    negotiating.write_all(&3u32.to_be_bytes()).unwrap();
    read_exact(&mut negotiating, Greeting::SIZE);
    probe.hold();
    busy.send(Command::Flush, NONE, 0, 0, &[]);
    probe.await_flushes(1);
    running.server.stop();
    // What was received before is executed; what comes now is refused, on every connection.
    for client in [&mut quiet, &mut busy] {
        let mut refused = None;
        for _ in 0..2000 {
            // The first ones may be in time.
            client.send(Command::Read, NONE, 0, 512, &[]);
            let error = match client.style {
                _ if refused.is_some() => break,
                _ => client.receive(512).error,
            };
            refused = error;
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(refused, Some(Errno::Shutdown));
    }
    let mut option = Vec::new();
    OptionRequest::List.encode(&mut option);
    negotiating.write_all(&option).unwrap();
    let header = OptionReplyHeader::decode(&read_exact(&mut negotiating, OptionReplyHeader::SIZE)).unwrap();
    let data = read_exact(&mut negotiating, header.length.try_into().unwrap());
    assert!(matches!(
        OptionReply::decode(header.reply, &data).unwrap(),
        OptionReply::Error {
            error: ReplyError::Shutdown,
            ..
        }
    ));
    probe.release();
    drop((quiet, busy, negotiating));
}

#[test]
fn a_server_that_stops_does_not_wait_for_long_requests() {
    let options = ServerOptions {
        grace: Duration::from_millis(400),
        ..ServerOptions::default()
    };
    let (_dir, probe, running) = start(options);
    let mut busy = client(&running);
    busy.stream
        .write_all(&requests(Command::Cache, NONE, 5000, 8 << 20))
        .unwrap();
    while probe.reads.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    // Returns when the server has ended, with most of it undone.
    drop(running);
    let reads = probe.reads.load(Ordering::SeqCst);
    assert!(reads < 5000 * 32, "{reads}");
    drop(busy);
}

#[test]
fn refusals_fit_the_protocol_whatever_was_asked() {
    let (_dir, _probe, running) = start(ServerOptions::default());
    for name in [
        "\u{1b}".repeat(MAX_STRING),
        "\"".repeat(MAX_STRING),
        "\u{e4}".repeat(MAX_STRING / 2),
    ] {
        let mut stream = running.connect();
        read_exact(&mut stream, Greeting::SIZE);
        let mut bytes = 3u32.to_be_bytes().to_vec();
        let info = vhd_nbd::protocol::InfoRequest {
            name,
            items: Vec::new(),
        };
        OptionRequest::Go(info).encode(&mut bytes);
        stream.write_all(&bytes).unwrap();
        let header = OptionReplyHeader::decode(&read_exact(&mut stream, OptionReplyHeader::SIZE)).unwrap();
        assert!(header.length <= 4096, "{header:?}");
        let data = read_exact(&mut stream, header.length.try_into().unwrap());
        assert!(std::str::from_utf8(&data).is_ok());
    }
}

#[test]
fn connections_that_were_passed_half_open_end() {
    let (_dir, _probe, running) = start(options(300, None));
    let (ours, theirs) = UnixStream::pair().unwrap();
    running.server.serve_socket(theirs.into(), "a test".into());
    drop(ours);
    await_no_connections(&running);
}
