//! What many hostile clients together can make a server take. By itself, as it measures the process.

mod support;

use std::io::Write as _;
use std::thread;
use std::time::Duration;

use support::probe::Probe;
use support::{Client, Running};
use vhd_nbd::protocol::{Command, CommandFlags, Errno, ReplyStyle, RequestHeader};
use vhd_nbd::server::{Export, ExportSet, MIN_MEMORY, ServerOptions};

const SIZE: u64 = 64 << 20;
const MIB: u64 = 1 << 20;

/// MiB that the process may have beyond the server's budget: the disk, stacks and what the allocator keeps.
const BESIDE: u64 = 48;

/// MiB of memory that this process has, or has had at most.
fn memory(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

/// Requests that cost a server much and a client nothing.
fn greedy(style: ReplyStyle, number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for cookie in 0..40 {
        let (command, flags, length) = match (number + cookie) % 4 {
            // One piece of 32 MiB; the same in pieces; a list; and something that keeps a worker.
            0 => (Command::Read, CommandFlags::DF, 32 * MIB),
            1 => (Command::Read, CommandFlags::empty(), 32 * MIB),
            2 => (Command::BlockStatus, CommandFlags::empty(), SIZE),
            _ => (Command::Cache, CommandFlags::empty(), SIZE),
        };
        let flags = if style == ReplyStyle::Simple {
            CommandFlags::empty()
        } else {
            flags
        };
        let header = RequestHeader {
            flags,
            command,
            cookie,
            offset: 0,
            length,
        };
        header.encode(style.header_style(), &mut bytes);
    }
    // The beginning of a long write, which fills what is received into.
    let header = RequestHeader {
        flags: CommandFlags::empty(),
        command: Command::Write,
        cookie: 99,
        offset: 0,
        length: 32 * MIB,
    };
    header.encode(style.header_style(), &mut bytes);
    bytes.resize(bytes.len() + 200_000, 7);
    bytes
}

#[test]
fn hostile_clients_share_one_budget() {
    const CLIENTS: u64 = 80;
    let dir = tempfile::tempdir().unwrap();
    let probe = Probe::new(SIZE);
    probe.fragment();
    let mut exports = ExportSet::new();
    exports.add(Export::new("disk", probe.disk())).unwrap();
    let options = ServerOptions {
        memory: MIN_MEMORY,
        stall_timeout: Duration::from_secs(1),
        grace: Duration::from_millis(400),
        ..ServerOptions::default()
    };
    let running = Running::start(dir.path(), exports, options);
    let before = memory("VmRSS:");
    let crowd: Vec<Client> = (0..CLIENTS)
        .map(|number| {
            let style = [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended][number as usize % 3];
            let client = Client::connect(&running, style, "disk", &["base:allocation", "qemu:allocation-depth"]);
            let mut stream = client.stream.try_clone().unwrap();
            stream.set_nonblocking(true).unwrap();
            let _ = stream.write(&greedy(style, number));
            client
        })
        .collect();
    // One that behaves is served beside them, sooner or later also with what needs memory: it is told to try again.
    let mut good = Client::connect(&running, ReplyStyle::Structured, "disk", &["base:allocation"]);
    assert!(good.is_alive());
    good.stream.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let mut refused = 0;
    for (command, flags, length) in [
        (Command::Read, CommandFlags::DF, 32 * MIB),
        (Command::BlockStatus, CommandFlags::empty(), SIZE),
    ] {
        while let Some(error) = good.call(command, flags, 0, length).error {
            assert_eq!(error, Errno::NoMem);
            refused += 1;
        }
    }
    for _ in 0..240 {
        if running.server.stats().open_connections <= 1 {
            break;
        }
        thread::sleep(Duration::from_millis(500));
    }
    let peak = memory("VmHWM:");
    let budget = MIN_MEMORY / MIB;
    println!("{before} MiB before, {peak} MiB at most, {CLIENTS} clients, budget {budget} MiB, {refused} refused");
    // The client here holds the replies too.
    let allowed = before + budget + BESIDE + 64;
    assert!(peak <= allowed, "{peak} MiB, {allowed} allowed");
    // All that did not read were sent away.
    assert!(running.server.stats().open_connections <= 1);
    assert!(good.is_alive());
    drop((good, crowd));
}
