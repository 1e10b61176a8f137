//! Every request, in order and out of it, in each style of replies.

mod support;

use std::io::Write as _;

use support::{Client, Running, SIZE, chain, exports};
use vhd_nbd::protocol::{
    Command, CommandFlags, DEFAULT_MAX_PAYLOAD, Descriptor, Errno, MetaContextId, ReplyStyle, StatusFilter,
};
use vhd_nbd::server::ServerOptions;

const STYLES: [ReplyStyle; 3] = [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended];
const NONE: CommandFlags = CommandFlags::empty();

fn in_each_style(export: &str, queries: &[&str], test: impl Fn(&mut Client)) {
    let dir = tempfile::tempdir().unwrap();
    let opened = chain(dir.path());
    let running = Running::start(dir.path(), exports(&opened), ServerOptions::default());
    for style in STYLES {
        let queries = if style == ReplyStyle::Simple { &[] } else { queries };
        let mut client = Client::connect(&running, style, export, queries);
        test(&mut client);
        assert!(client.is_alive(), "{style:?}");
    }
}

#[test]
fn reads() {
    in_each_style("disk", &[], |client| {
        for (offset, len) in [
            (0, 512),
            (4000, 10_000),
            (1, 1),
            (SIZE - 3, 3),
            ((1 << 20) - 5, 10),
            (0, 300_000),
        ] {
            let mut expected = vec![0; usize::try_from(len).unwrap()];
            for (at, byte) in (offset..).zip(&mut expected) {
                *byte = match at {
                    4096..8192 => 3,
                    0..0x10_0000 => 1,
                    _ => 0,
                };
            }
            let reply = client.call(Command::Read, NONE, offset, len);
            assert_eq!(reply.error, None);
            let base = if client.style == ReplyStyle::Simple { 0 } else { offset };
            assert!(reply.bytes(base, expected.len()) == expected, "{offset}+{len}");
        }
    });
}

#[test]
fn holes_are_holes_and_are_data_if_asked() {
    in_each_style("disk", &[], |client| {
        if client.style == ReplyStyle::Simple {
            return;
        }
        let hole = client.call(Command::Read, NONE, 40 << 20, 4096);
        assert_eq!((hole.holes, hole.data.len()), (vec![(40 << 20, 4096)], 0));
        let hole = client.call(Command::Read, NONE, 40 << 20, 1 << 20);
        assert_eq!((hole.holes, hole.data.len()), (vec![(40 << 20, 1 << 20)], 0));
        let mixed = client.call(Command::Read, NONE, 0, 2 << 20);
        assert_eq!(mixed.holes, [(1 << 20, 1 << 20)]);
        let whole = client.call(Command::Read, CommandFlags::DF, 0, 2 << 20);
        assert_eq!((whole.content_chunks(), whole.data.len()), (1, 1));
        assert_eq!(whole.bytes(0, 2 << 20), mixed.bytes(0, 2 << 20));
        let zero = client.call(Command::Read, CommandFlags::DF, 40 << 20, 4096);
        assert_eq!(zero.data, [(40 << 20, vec![0; 4096])]);
        let mut largest = client.call(Command::Read, CommandFlags::DF, 0, DEFAULT_MAX_PAYLOAD.into());
        assert_eq!(largest.data.pop().unwrap().1.len(), 32 << 20);
    });
}

#[test]
fn empty_requests_succeed() {
    in_each_style("disk", &[], |client| {
        for command in [
            Command::Read,
            Command::Trim,
            Command::WriteZeroes,
            Command::Cache,
            Command::Flush,
        ] {
            let reply = client.call(command, NONE, 0, 0);
            assert_eq!((reply.error, reply.content_chunks()), (None, 0), "{command:?}");
        }
        assert_eq!(client.write(NONE, SIZE, &[]).error, None);
    });
}

#[test]
fn writes_of_every_kind() {
    in_each_style("disk", &[], |client| {
        let base = 8 << 20;
        let read = |client: &mut Client, offset: u64, len: u64| {
            let reply = client.call(Command::Read, NONE, offset, len);
            let base = if client.style == ReplyStyle::Simple { 0 } else { offset };
            reply.bytes(base, usize::try_from(len).unwrap())
        };
        for (offset, len) in [(base, 4096), (base + 100, 1), (base + 513, 3_000_000)] {
            let data: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            for flags in [NONE, CommandFlags::FUA] {
                assert_eq!(client.write(flags, offset, &data).error, None);
                assert!(read(client, offset, len) == data);
            }
        }
        for flags in [
            NONE,
            CommandFlags::NO_HOLE,
            CommandFlags::FUA,
            CommandFlags::FUA | CommandFlags::NO_HOLE,
        ] {
            assert_eq!(client.write(NONE, base, &[7; 100_000]).error, None);
            assert_eq!(client.call(Command::WriteZeroes, flags, base + 5, 99_990).error, None);
            let found = read(client, base, 100_000);
            assert_eq!((&found[..5], &found[99_995..]), (&[7; 5][..], &[7; 5][..]));
            assert!(found[5..99_995].iter().all(|&byte| byte == 0));
        }
        assert_eq!(client.call(Command::Trim, CommandFlags::FUA, base, 1 << 20).error, None);
        assert_eq!(client.call(Command::Cache, NONE, 0, 20 << 20).error, None);
        assert_eq!(client.call(Command::Flush, NONE, 0, 0).error, None);
    });
}

#[test]
fn cache_reads_what_is_stored_alone() {
    let dir = tempfile::tempdir().unwrap();
    let opened = chain(dir.path());
    let running = Running::start(dir.path(), exports(&opened), ServerOptions::default());
    let mut client = Client::connect(&running, ReplyStyle::Extended, "disk", &[]);
    for (offset, len, stored) in [
        (0, SIZE, (1 << 20) + 4096),
        (1000, 5000, 5000),
        ((1 << 20) - 100, 30 << 20, 100),
        (2 << 20, 8 << 20, 0),
    ] {
        let before = opened.disk().stats().bytes_read;
        assert_eq!(client.call(Command::Cache, NONE, offset, len).error, None);
        assert_eq!(opened.disk().stats().bytes_read - before, stored, "{offset}+{len}");
    }
}

#[test]
fn fast_zero_is_fast_or_refused() {
    in_each_style("disk", &[], |client| {
        let base = 48 << 20;
        assert_eq!(client.write(NONE, base, &[7; 8192]).error, None);
        let fast = CommandFlags::FAST_ZERO;
        assert_eq!(
            client.call(Command::WriteZeroes, fast, base + 1, 4096).error,
            Some(Errno::NotSup)
        );
        let kept = client.call(Command::Read, NONE, base + 1, 1);
        assert_eq!(kept.data[0].1, [7]);
        // What reads zero anyway is zeroed at no cost.
        assert_eq!(client.call(Command::WriteZeroes, fast, 60 << 20, 1 << 20).error, None);
    });
}

#[test]
fn requests_outside_the_disk() {
    in_each_style("disk", &["base:allocation"], |client| {
        let ranges = [
            (SIZE, 1),
            (SIZE - 1, 2),
            (u64::MAX, 1),
            (u64::MAX - 1, 512),
            (SIZE + 1, 0),
        ];
        for (offset, len) in ranges {
            for command in [Command::Read, Command::Trim, Command::Cache] {
                let error = client.call(command, NONE, offset, len).error;
                assert_eq!(error, Some(Errno::Inval), "{command:?} {offset}+{len}");
            }
            let zeroes = client.call(Command::WriteZeroes, NONE, offset, len);
            assert_eq!(zeroes.error, Some(Errno::NoSpc));
            if len > 0 {
                let data = vec![0; usize::try_from(len).unwrap()];
                assert_eq!(client.write(NONE, offset, &data).error, Some(Errno::NoSpc));
            }
            let status = client.call(Command::BlockStatus, NONE, offset, len);
            assert_eq!(status.error, Some(Errno::Inval));
        }
        let long = client.call(Command::Read, NONE, 0, u64::from(DEFAULT_MAX_PAYLOAD) + 1);
        assert_eq!(long.error, Some(Errno::Overflow));
        if client.style != ReplyStyle::Simple {
            assert!(long.message.contains("33554432"), "{}", long.message);
        }
        // A long payload that is refused is taken off the wire.
        assert_eq!(client.write(NONE, SIZE - 1, &[0; 3 << 20]).error, Some(Errno::NoSpc));
    });
}

#[test]
fn read_only_exports_stay_as_they_are() {
    in_each_style("frozen", &[], |client| {
        assert_eq!(client.write(NONE, 0, &[0; 4096]).error, Some(Errno::Perm));
        assert_eq!(
            client.write(CommandFlags::FUA, 0, &[0; 1 << 20]).error,
            Some(Errno::Perm)
        );
        for command in [Command::Trim, Command::WriteZeroes] {
            assert_eq!(client.call(command, NONE, 0, 4096).error, Some(Errno::Perm));
        }
        assert_eq!(client.call(Command::Flush, NONE, 0, 0).error, None);
        let first = client.call(Command::Read, NONE, 0, 1);
        assert_eq!(first.data[0].1, [1]);
    });
}

#[test]
fn requests_that_are_none() {
    in_each_style("disk", &[], |client| {
        let refused = |client: &mut Client, command, flags, offset, len| {
            let reply = client.call(command, flags, offset, len);
            assert_eq!(reply.error, Some(Errno::Inval), "{command:?} {flags:?}");
        };
        refused(client, Command::Flush, NONE, 512, 0);
        refused(client, Command::Flush, NONE, 0, 512);
        refused(client, Command::Resize, NONE, 0, 1 << 30);
        refused(client, Command::Unknown(77), NONE, 0, 0);
        refused(client, Command::BlockStatus, NONE, 0, 4096);
        refused(client, Command::Read, CommandFlags::NO_HOLE, 0, 512);
        refused(client, Command::Read, CommandFlags::from_bits_retain(1 << 15), 0, 512);
        refused(client, Command::Trim, CommandFlags::REQ_ONE, 0, 512);
        if client.style == ReplyStyle::Simple {
            refused(client, Command::Read, CommandFlags::DF, 0, 512);
        }
        // FUA is accepted where it has no effect.
        assert_eq!(client.call(Command::Cache, CommandFlags::FUA, 0, 512).error, None);
        assert_eq!(client.call(Command::Flush, CommandFlags::FUA, 0, 0).error, None);
    });
}

fn pairs(descriptors: &[Descriptor]) -> Vec<(u64, u64)> {
    descriptors.iter().map(|part| (part.length, part.status)).collect()
}

#[test]
fn status_in_every_context() {
    let queries = ["base:allocation", "qemu:allocation-depth", "qemu:dirty-bitmap:base.vhd"];
    in_each_style("disk", &queries, |client| {
        if client.style == ReplyStyle::Simple {
            return;
        }
        assert_eq!(client.contexts.len(), 3);
        let reply = client.call(Command::BlockStatus, NONE, 0, 4 << 20);
        assert_eq!(reply.error, None);
        let of = |name: &str| {
            let (id, _) = client.contexts.iter().find(|(_, found)| found == name).unwrap();
            let (_, list) = reply.status.iter().find(|(found, _)| found == id).unwrap();
            pairs(list)
        };
        let rest = (4 << 20) - (1 << 20);
        assert_eq!(of(queries[0]), [(1 << 20, 0), (rest, 3)]);
        assert_eq!(
            of(queries[1]),
            [(4096, 2), (4096, 1), ((2 << 20) - 8192, 2), (2 << 20, 0)]
        );
        assert_eq!(of(queries[2]), [(4096, 0), (4096, 1), ((4 << 20) - 8192, 0)]);

        let one = client.call(Command::BlockStatus, CommandFlags::REQ_ONE, 4000, 10_000);
        assert!(one.status.iter().all(|(_, list)| list.len() == 1));
        assert_eq!(pairs(&one.status[1].1), [(96, 2)]);
        assert_eq!(client.call(Command::BlockStatus, NONE, 0, 0).error, Some(Errno::Inval));
    });
}

#[test]
fn a_payload_chooses_contexts() {
    in_each_style("disk", &["base:allocation", "qemu:allocation-depth"], |client| {
        if client.style != ReplyStyle::Extended {
            return;
        }
        let ask = |client: &mut Client, contexts: &[u32]| {
            let filter = StatusFilter {
                length: 4096,
                contexts: contexts.iter().copied().map(MetaContextId).collect(),
            };
            let mut payload = Vec::new();
            filter.encode(&mut payload);
            let len = payload.len().try_into().unwrap();
            client.send(Command::BlockStatus, CommandFlags::PAYLOAD_LEN, 0, len, &payload);
            client.receive(0)
        };
        let [first, second] = [client.contexts[0].0.0, client.contexts[1].0.0];
        let reply = ask(client, &[second]);
        assert_eq!(reply.status.len(), 1);
        assert_eq!(
            (reply.status[0].0.0, pairs(&reply.status[0].1)),
            (second, vec![(4096, 2)])
        );
        assert_eq!(ask(client, &[first, second]).status.len(), 2);
        for wrong in [&[][..], &[99], &[first, first], &[1; 1000]] {
            assert_eq!(ask(client, wrong).error, Some(Errno::Inval), "{wrong:?}");
        }
        for (command, len) in [
            (Command::Read, 512),
            (Command::Flush, 5),
            (Command::Unknown(50), 100_000),
        ] {
            let payload = vec![0; usize::try_from(len).unwrap()];
            client.send(command, CommandFlags::PAYLOAD_LEN, 0, len, &payload);
            assert_eq!(client.receive(0).error, Some(Errno::Inval));
        }
    });
}

/// qemu (10.0 for one) agrees on extended headers, and sends the payload of a write without saying so.
#[test]
fn a_write_has_a_payload_whatever_it_says() {
    in_each_style("disk", &[], |client| {
        for len in [1, 4096, 5_000_000] {
            let data: Vec<u8> = (0..len).map(|n| (n % 253) as u8).collect();
            let len = u64::try_from(len).unwrap();
            for (offset, error) in [(9 << 20, None), (SIZE - len + 1, Some(Errno::NoSpc))] {
                client.send(Command::Write, CommandFlags::FUA, offset, len, &data);
                assert_eq!(client.receive(0).error, error, "{offset}+{len}");
            }
            let reply = client.call(Command::Read, NONE, 9 << 20, len);
            let base = if client.style == ReplyStyle::Simple { 0 } else { 9 << 20 };
            assert!(reply.bytes(base, data.len()) == data);
        }
    });
}

#[test]
fn what_ends_a_session() {
    let dir = tempfile::tempdir().unwrap();
    let opened = chain(dir.path());
    let running = Running::start(dir.path(), exports(&opened), ServerOptions::default());
    for style in STYLES {
        let mut client = Client::connect(&running, style, "disk", &[]);
        client.send(Command::Disconnect, NONE, 0, 0, &[]);
        assert!(client.is_closed());

        let mut client = Client::connect(&running, style, "disk", &[]);
        client.stream.write_all(&[0x11; 32]).unwrap();
        assert!(client.is_closed());

        let mut client = Client::connect(&running, style, "disk", &[]);
        let flags = CommandFlags::PAYLOAD_LEN;
        client.send(Command::Write, flags, 0, u64::from(DEFAULT_MAX_PAYLOAD) + 1, &[]);
        assert!(client.is_closed());
        let mut client = Client::connect(&running, style, "disk", &[]);
        client.send(Command::Write, NONE, 0, u64::from(DEFAULT_MAX_PAYLOAD) + 1, &[]);
        assert!(client.is_closed());

        // Gone in the middle of a write: the server and the disk are there for the next.
        let mut client = Client::connect(&running, style, "disk", &[]);
        client.send(Command::Write, flags, 0, 1 << 20, &[1; 5000]);
        drop(client);
        assert!(Client::connect(&running, style, "disk", &[]).is_alive());
    }
}

#[test]
fn many_requests_in_one_breath() {
    let dir = tempfile::tempdir().unwrap();
    let opened = chain(dir.path());
    let running = Running::start(dir.path(), exports(&opened), ServerOptions::default());
    let mut client = Client::connect(&running, ReplyStyle::Simple, "disk", &[]);
    let mut writer = client.stream.try_clone().unwrap();
    const COUNT: u64 = 5000;
    let sender = std::thread::spawn(move || {
        for cookie in 0..COUNT {
            let header = vhd_nbd::protocol::RequestHeader {
                flags: if cookie % 50 == 0 { CommandFlags::FUA } else { NONE },
                command: Command::Write,
                cookie,
                offset: (cookie % 16) * 4096 + (16 << 20),
                length: 4096,
            };
            let mut bytes = Vec::new();
            header.encode(vhd_nbd::protocol::HeaderStyle::Compact, &mut bytes);
            bytes.resize(bytes.len() + 4096, 9);
            writer.write_all(&bytes).unwrap();
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
    // A request is counted when its reply is on the way: the last ones a moment after we have seen it.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while running.server.stats().writes < COUNT && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    let stats = running.server.stats();
    assert_eq!((stats.writes, stats.errors), (COUNT, 0));
    assert_eq!(stats.bytes_written, COUNT * 4096);
}
