//! RESIZE: an export that gets another size while clients use it.

mod support;

use std::path::Path;
use std::process::Command as Program;
use std::sync::Arc;

use support::{Client, Reply, Running, create, has, resizable, resizable_exports};
use vhd_core::ops::resize::ResizableDisk;
use vhd_nbd::protocol::{Command, CommandFlags, Errno, InfoItem, InfoRequest, OptionReply, OptionRequest, ReplyStyle};
use vhd_nbd::protocol::{RequestHeader, TransmissionFlags};
use vhd_nbd::server::ServerOptions;

const STYLES: [ReplyStyle; 3] = [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended];
const NONE: CommandFlags = CommandFlags::empty();
const SIZE: u64 = 8 << 20;

fn start(dir: &Path) -> (Arc<ResizableDisk>, Running) {
    let path = dir.join("disk.vhd");
    create(&path, SIZE);
    let disk = resizable(&path);
    let running = Running::start(dir, resizable_exports(&disk), ServerOptions::default());
    (disk, running)
}

fn resize(client: &mut Client, size: u64) -> Option<Errno> {
    client.call(Command::Resize, NONE, size, 0).error
}

/// The bytes of a READ, in each style.
fn read(client: &mut Client, offset: u64, len: u64) -> Vec<u8> {
    let reply = client.call(Command::Read, NONE, offset, len);
    assert_eq!(reply.error, None, "{offset}+{len}");
    let base = if client.style == ReplyStyle::Simple { 0 } else { offset };
    reply.bytes(base, usize::try_from(len).unwrap())
}

/// What an export says of itself to a client that connects now.
fn agreed(running: &Running, export: &str) -> (u64, TransmissionFlags) {
    let mut client = Client::connect(running, ReplyStyle::Simple, export, &[]);
    // Another connection that stays in the negotiation.
    client.stream = running.connect();
    support::read_exact(&mut client.stream, vhd_nbd::protocol::Greeting::SIZE);
    std::io::Write::write_all(&mut client.stream, &3u32.to_be_bytes()).unwrap();
    let replies = client.option(&OptionRequest::Info(InfoRequest {
        name: export.into(),
        items: Vec::new(),
    }));
    let found = replies.iter().find_map(|reply| match reply {
        OptionReply::Info(InfoItem::Export { size, flags }) => Some((*size, *flags)),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn every_connection_has_the_new_size() {
    for style in STYLES {
        let dir = tempfile::tempdir().unwrap();
        let (disk, running) = start(dir.path());
        let queries: &[&str] = if style == ReplyStyle::Simple {
            &[]
        } else {
            &["base:allocation"]
        };
        let mut client = Client::connect(&running, style, "disk", queries);
        let mut other = Client::connect(&running, style, "disk", queries);
        assert_eq!(client.write(NONE, SIZE - 512, &[1; 512]).error, None);
        // More than 32 bits, in whichever header: the size stands in the offset.
        let large = 5 << 30;
        for size in [large, SIZE + 512] {
            assert_eq!(resize(&mut client, size), None, "{style:?}");
            for client in [&mut client, &mut other] {
                assert_eq!(read(client, size - 512, 512), [0; 512]);
                assert_eq!(read(client, SIZE - 512, 512), [1; 512]);
                assert_eq!(client.write(NONE, size - 512, &[2; 512]).error, None);
                assert_eq!(read(client, size - 512, 512), [2; 512]);
                let zeroed = client.call(Command::WriteZeroes, CommandFlags::FUA, size - 512, 512);
                assert_eq!(zeroed.error, None);
            }
            assert_eq!(agreed(&running, "disk").0, size);
            assert_eq!(agreed(&running, "frozen").0, size);
        }
        if style != ReplyStyle::Simple {
            let status = other.call(Command::BlockStatus, NONE, SIZE - (4 << 20), (4 << 20) + 512);
            let total: u64 = status.status[0].1.iter().map(|part| part.length).sum();
            assert_eq!((status.error, total), (None, (4 << 20) + 512));
        }
        // What was cut off is out of space; what never was there is out of range.
        for client in [&mut client, &mut other] {
            for command in [Command::Read, Command::Trim, Command::Cache, Command::WriteZeroes] {
                assert_eq!(client.call(command, NONE, SIZE + 512, 512).error, Some(Errno::NoSpc));
                assert_eq!(client.call(command, NONE, large - 512, 512).error, Some(Errno::NoSpc));
            }
            assert_eq!(client.write(NONE, SIZE + 512, &[0; 512]).error, Some(Errno::NoSpc));
            assert_eq!(client.call(Command::Read, NONE, large, 512).error, Some(Errno::Inval));
            assert!(client.is_alive());
        }
        drop(running);
        disk.close().unwrap();
        assert_eq!(
            support::open(&dir.path().join("disk.vhd"), false).disk().size(),
            SIZE + 512
        );
    }
}

#[test]
fn sizes_that_are_refused() {
    for style in STYLES {
        let dir = tempfile::tempdir().unwrap();
        let (_disk, running) = start(dir.path());
        let mut client = Client::connect(&running, style, "disk", &[]);
        assert_eq!(client.write(NONE, SIZE - 512, &[1; 512]).error, None);
        let says = |reply: &Reply, text: &str| style == ReplyStyle::Simple || reply.message.contains(text);
        for size in [0, 1, SIZE + 1, (2040 << 30) + 512, u64::MAX] {
            let reply = client.call(Command::Resize, NONE, size, 0);
            assert_eq!(reply.error, Some(Errno::Inval), "{style:?} {size}");
            assert!(says(&reply, "sizes are multiples of 512"), "{}", reply.message);
        }
        let reply = client.call(Command::Resize, NONE, SIZE / 2, 0);
        assert_eq!(reply.error, Some(Errno::Perm));
        assert!(
            says(&reply, "can't be cut off: data at 0x7ffe00..0x800000") || says(&reply, "0x7ffe00"),
            "{}",
            reply.message
        );
        for (flags, size, length) in [
            (NONE, 2 * SIZE, 1),
            (NONE, 0, 2 * SIZE),
            (CommandFlags::NO_HOLE, 2 * SIZE, 0),
            (CommandFlags::DF, 2 * SIZE, 0),
            (CommandFlags::REQ_ONE, 2 * SIZE, 0),
            (CommandFlags::from_bits_retain(1 << 15), 2 * SIZE, 0),
        ] {
            let reply = client.call(Command::Resize, flags, size, length);
            assert_eq!(reply.error, Some(Errno::Inval), "{style:?} {flags:?} {length}");
        }
        if style == ReplyStyle::Extended {
            client.send(Command::Resize, CommandFlags::PAYLOAD_LEN, 2 * SIZE, 8, &[0; 8]);
            assert_eq!(client.receive(0).error, Some(Errno::Inval));
        }
        assert_eq!(agreed(&running, "disk").0, SIZE);
        // FUA is accepted everywhere; the same size is one more.
        assert_eq!(client.call(Command::Resize, CommandFlags::FUA, SIZE, 0).error, None);
        assert!(client.is_alive());
    }
}

#[test]
fn only_an_export_that_offers_it_is_resized() {
    let dir = tempfile::tempdir().unwrap();
    let (_disk, running) = start(dir.path());
    assert!(agreed(&running, "disk").1.contains(TransmissionFlags::SEND_RESIZE));
    assert!(!agreed(&running, "frozen").1.contains(TransmissionFlags::SEND_RESIZE));
    let mut client = Client::connect(&running, ReplyStyle::Structured, "frozen", &[]);
    assert_eq!(resize(&mut client, 2 * SIZE), Some(Errno::Inval));
    assert!(client.is_alive());
    assert_eq!(agreed(&running, "disk").0, SIZE);
    // A disk that can't be resized does not offer it, even if its export would.
    let path = dir.path().join("plain.vhd");
    create(&path, SIZE);
    let opened = support::open(&path, true);
    let export = vhd_nbd::server::Export::new("plain", opened.disk()).resizable();
    assert!(!export.is_resizable());
    assert!(
        !export
            .flags(ReplyStyle::Simple)
            .contains(TransmissionFlags::SEND_RESIZE)
    );
    // Nor does one that can, without being told to.
    let export = vhd_nbd::server::Export::new("quiet", vhd_block::Disk::new(resizable_image(dir.path())));
    assert!(!export.is_resizable());
}

fn resizable_image(dir: &Path) -> Arc<ResizableDisk> {
    let path = dir.join("other.vhd");
    create(&path, SIZE);
    resizable(&path)
}

/// Requests of many clients' kind in flight, and a resize among them: each is answered once, and the server goes on.
#[test]
fn a_resize_among_many_requests() {
    const COUNT: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let (disk, running) = start(dir.path());
    let mut client = Client::connect(&running, ReplyStyle::Simple, "disk", &[]);
    let mut writer = client.stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || {
        for cookie in 0..COUNT {
            let (command, offset, length) = match cookie % 100 {
                99 => (Command::Resize, SIZE * (2 + cookie / 100 % 2), 0),
                50 => (Command::Flush, 0, 0),
                _ => (Command::Write, cookie % 1000 * 4096, 4096),
            };
            let header = RequestHeader {
                flags: NONE,
                command,
                cookie,
                offset,
                length,
            };
            let mut bytes = Vec::new();
            header.encode(vhd_nbd::protocol::HeaderStyle::Compact, &mut bytes);
            bytes.resize(bytes.len() + usize::try_from(length).unwrap(), 9);
            std::io::Write::write_all(&mut writer, &bytes).unwrap();
        }
    });
    let mut seen = vec![false; usize::try_from(COUNT).unwrap()];
    for _ in 0..COUNT {
        let bytes = support::read_exact(&mut client.stream, 16);
        assert_eq!(bytes[4..8], [0; 4]);
        let cookie = u64::from_be_bytes(bytes[8..].try_into().unwrap());
        assert!(!std::mem::replace(&mut seen[usize::try_from(cookie).unwrap()], true));
    }
    sender.join().unwrap();
    for (cell, found) in read(&mut client, 0, 1000 * 4096).chunks(4096).enumerate() {
        let fill = if [50, 99].contains(&(cell % 100)) { 0 } else { 9 };
        assert!(found.iter().all(|&byte| byte == fill), "cell {cell}");
    }
    drop(running);
    disk.close().unwrap();
}

#[test]
fn programs_see_the_new_size_when_they_connect() {
    if !has("nbdinfo") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (_disk, running) = start(dir.path());
    let size = || {
        let output = Program::new("nbdinfo")
            .args(["--size", &running.uri("disk")])
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse::<u64>().unwrap()
    };
    assert_eq!(size(), SIZE);
    let mut client = Client::connect(&running, ReplyStyle::Simple, "disk", &[]);
    for wanted in [3 * SIZE, SIZE / 2] {
        assert_eq!(resize(&mut client, wanted), None);
        assert_eq!(size(), wanted);
    }
}

/// Any size at any time: an error says why it can't be, and a success is what every later request goes by.
#[test]
fn random_sizes_and_writes() {
    let seed = vhd_testkit::rng::seed(0x5123);
    println!("{}={seed:#x}", vhd_testkit::rng::SEED_VARIABLE);
    let mut rng = vhd_testkit::rng::rng(seed);
    let dir = tempfile::tempdir().unwrap();
    let (disk, running) = start(dir.path());
    let mut clients = STYLES.map(|style| Client::connect(&running, style, "disk", &[]));
    // Bytes of the disk, the end of what was written, and the most bytes that it had.
    let (mut size, mut used, mut most) = (SIZE, 0, SIZE);
    for _ in 0..600 {
        let client = &mut clients[rng.usize(..3)];
        if rng.bool() {
            let at = rng.u64(..(2 * size).min(1 << 30) / 512) * 512;
            let expected = (at + 512 > size).then_some(Errno::NoSpc);
            assert_eq!(client.write(NONE, at, &[1; 512]).error, expected, "{at} of {size}");
            if expected.is_none() {
                used = used.max(at + 512);
            }
            let reply = client.call(Command::Read, NONE, at, 512);
            let cut_off = if at + 512 <= most { Errno::NoSpc } else { Errno::Inval };
            assert_eq!(reply.error, expected.map(|_| cut_off), "{at} of {size}");
            continue;
        }
        let wanted = match rng.u8(..6) {
            0 => rng.u64(..),
            1 => used,
            2 => used.saturating_sub(512),
            3 => rng.u64(..1 << 22) * 512,
            4 => rng.u64(..1 << 41),
            _ => rng.u64(..1 << 15) * 512,
        };
        let expected = match wanted {
            same if same == size => None,
            none if none == 0 || none > 2040 << 30 || none % 512 != 0 => Some(Errno::Inval),
            less if less < used => Some(Errno::Perm),
            _ => None,
        };
        assert_eq!(
            resize(client, wanted),
            expected,
            "{wanted}, {size} of which {used} are used"
        );
        if expected.is_none() {
            size = wanted;
            most = most.max(size);
        }
        assert_eq!(agreed(&running, "disk").0, size);
    }
    drop(running);
    disk.close().unwrap();
    let file = std::fs::File::open(dir.path().join("disk.vhd")).unwrap();
    let report = vhd_core::check::check(&vhd_core::storage::HostFile::from_file(file).unwrap()).unwrap();
    let bad = |finding: &&vhd_core::check::Finding| finding.severity == vhd_core::check::Severity::Corrupt;
    assert_eq!(report.findings.iter().find(bad), None);
}
