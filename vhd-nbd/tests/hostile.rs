//! Peers that mean no good: nobody else is disturbed, nothing grows.

mod support;

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use support::{Client, Running, chain, exports};
use vhd_nbd::protocol::{Command, CommandFlags, Greeting, OptionRequest, ReplyStyle};
use vhd_nbd::server::ServerOptions;

const NONE: CommandFlags = CommandFlags::empty();

/// MiB that a process with a small disk and a hostile peer or two may take.
const MEMORY: u64 = 150;

fn seed() -> u64 {
    let seed = std::env::var("VHD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("VHD_TEST_SEED={seed}");
    seed
}

/// MiB of memory that this process has now.
fn memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

fn start(options: ServerOptions) -> (tempfile::TempDir, vhd_core::chain::OpenedDisk, Running) {
    let dir = tempfile::tempdir().unwrap();
    let opened = chain(dir.path());
    let running = Running::start(dir.path(), exports(&opened), options);
    (dir, opened, running)
}

fn assert_serving(running: &Running) {
    assert!(Client::connect(running, ReplyStyle::Structured, "disk", &[]).is_alive());
}

/// Sends what the server may refuse to take, and takes what it says until it hangs up or has nothing more to say.
fn throw(mut stream: UnixStream, bytes: &[u8]) {
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let _ = writer.write_all(bytes);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        });
        let mut sink = vec![0; 64 << 10];
        while matches!(stream.read(&mut sink), Ok(count) if count > 0) {}
    });
}

#[test]
fn random_bytes_instead_of_options() {
    let (_dir, _opened, running) = start(ServerOptions::default());
    let mut rng = fastrand::Rng::with_seed(seed());
    for round in 0..150 {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        for _ in 0..rng.usize(..8) {
            let mut option = Vec::new();
            OptionRequest::Unknown {
                number: rng.u32(..14),
                data: (0..rng.usize(..100)).map(|_| rng.u8(..)).collect(),
            }
            .encode(&mut option);
            if rng.bool() {
                let at = rng.usize(..option.len());
                option[at] ^= 1 << rng.u8(..8);
            }
            bytes.extend(option);
        }
        if round % 3 == 0 {
            bytes = (0..rng.usize(..5000)).map(|_| rng.u8(..)).collect();
        }
        throw(running.connect(), &bytes);
    }
    assert_serving(&running);
    assert!(memory() < MEMORY, "{} MiB", memory());
}

#[test]
fn random_requests() {
    let (_dir, _opened, running) = start(ServerOptions::default());
    let mut rng = fastrand::Rng::with_seed(seed());
    for round in 0..150 {
        let style = [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended][round % 3];
        let client = Client::connect(&running, style, "disk", &["base:allocation", "qemu:allocation-depth"]);
        let mut bytes = Vec::new();
        for cookie in 0..rng.u64(1..60) {
            let length = match rng.u8(..4) {
                0 => rng.u64(..),
                1 => rng.u64(..64 << 20),
                _ => rng.u64(..9000),
            };
            let header = vhd_nbd::protocol::RequestHeader {
                flags: CommandFlags::from_bits_retain(if rng.bool() { 0 } else { rng.u16(..64) }),
                command: Command::from_number(rng.u16(..10)),
                cookie,
                offset: if rng.u8(..5) == 0 {
                    rng.u64(..)
                } else {
                    rng.u64(..64 << 20)
                },
                length: if style == ReplyStyle::Extended {
                    length
                } else {
                    length & 0xffff_ffff
                },
            };
            header.encode(style.header_style(), &mut bytes);
            let payload = header.payload_length(style.header_style());
            let payload = usize::try_from(payload.min(20_000)).unwrap();
            bytes.resize(bytes.len() + payload, rng.u8(..));
        }
        if rng.u8(..4) == 0 {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
        }
        throw(client.stream, &bytes);
    }
    assert_serving(&running);
    assert!(memory() < MEMORY, "{} MiB", memory());
}

#[test]
fn negotiations_that_never_end_are_ended() {
    let options = ServerOptions {
        handshake_timeout: Duration::from_millis(700),
        ..ServerOptions::default()
    };
    let (_dir, _opened, running) = start(options);
    let mut slow = running.connect();
    let begun = Instant::now();
    support::read_exact(&mut slow, Greeting::SIZE);
    let mut script = 3u32.to_be_bytes().to_vec();
    OptionRequest::List.encode(&mut script);
    // A byte now and then: each arrives in time, all together do not.
    let mut sent = 0;
    for byte in script.iter().cycle() {
        if slow.write_all(&[*byte]).is_err() {
            break;
        }
        sent += 1;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!((5..100).contains(&sent), "{sent} bytes");
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_serving(&running);
}

#[test]
fn a_client_that_does_not_listen_is_not_waited_for_while_negotiating() {
    let options = ServerOptions {
        handshake_timeout: Duration::from_millis(700),
        ..ServerOptions::default()
    };
    let (_dir, _opened, running) = start(options);
    let mut deaf = running.connect();
    deaf.write_all(&3u32.to_be_bytes()).unwrap();
    let mut options = Vec::new();
    for _ in 0..1000 {
        OptionRequest::List.encode(&mut options);
    }
    while deaf.write_all(&options).is_ok() {}
    assert_serving(&running);
}

#[test]
fn a_thousand_connections() {
    let options = ServerOptions {
        max_connections: 300,
        ..ServerOptions::default()
    };
    let (_dir, _opened, running) = start(options);
    let mut client = Client::connect(&running, ReplyStyle::Structured, "disk", &[]);
    let before = memory();
    let crowd: Vec<UnixStream> = (0..1000)
        .filter_map(|_| UnixStream::connect(&running.socket).ok())
        .collect();
    assert!(crowd.len() > 900);
    // Who was there before is served, and who comes now finds room.
    assert!(client.is_alive());
    assert_serving(&running);
    let grown = memory() - before.min(memory());
    assert!(grown < 100, "{grown} MiB more");
    assert!(running.server.stats().open_connections <= 300 + 20);
    drop(crowd);
    assert_serving(&running);
}

#[test]
fn a_client_that_does_not_read_blocks_itself_alone() {
    let options = ServerOptions {
        grace: Duration::from_millis(300),
        ..ServerOptions::default()
    };
    let (_dir, _opened, running) = start(options);
    let mut deaf = Client::connect(&running, ReplyStyle::Structured, "disk", &[]);
    deaf.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut requests = Vec::new();
    for cookie in 0..2000 {
        let header = vhd_nbd::protocol::RequestHeader {
            flags: CommandFlags::DF,
            command: Command::Read,
            cookie,
            offset: 0,
            length: 1 << 20,
        };
        header.encode(deaf.style.header_style(), &mut requests);
    }
    let _ = deaf.stream.write_all(&requests);
    let mut other = Client::connect(&running, ReplyStyle::Structured, "disk", &[]);
    assert!(other.is_alive());
    assert_eq!(other.call(Command::Flush, NONE, 0, 0).error, None);
    assert!(memory() < MEMORY, "{} MiB", memory());
    // The server stops although the client still does not read: Running waits for it.
    drop(other);
}
