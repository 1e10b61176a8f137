//! The negotiation against scripts of bytes.

use std::sync::Arc;

use proptest::prelude::*;
use vhd_block::Disk;
use vhd_core::device::RawDevice;
use vhd_core::storage::{MemoryFile, StorageFile as _};

use super::*;
use crate::protocol::{ExportNameReply, InfoItem, OptionReplyHeader, TransmissionFlags};

const SIZE: u64 = 1 << 20;

fn disk() -> Disk {
    let file = MemoryFile::new();
    file.set_len(SIZE).unwrap();
    Disk::new(Arc::new(RawDevice::new(Arc::new(file), true).unwrap()))
}

fn exports() -> ExportSet {
    let mut exports = ExportSet::new();
    let changes = Box::new(crate::server::ChangedAboveLayer { depth: 1 });
    let first = Export::new("first", disk())
        .with_description("of two")
        .with_changes("base", changes);
    exports.add(first).unwrap();
    exports.add(Export::new("second", disk()).read_only()).unwrap();
    exports
}

/// Options behind the client's flags, as bytes.
fn script(flags: u32, options: &[OptionRequest]) -> Vec<u8> {
    let mut bytes = flags.to_be_bytes().to_vec();
    for option in options {
        option.encode(&mut bytes);
    }
    bytes
}

fn replies(mut bytes: &[u8]) -> Vec<OptionReply> {
    let mut replies = Vec::new();
    while let Some((header, rest)) = bytes.split_at_checked(OptionReplyHeader::SIZE) {
        let header = OptionReplyHeader::decode(header).unwrap();
        let (data, rest) = rest.split_at(usize::try_from(header.length).unwrap());
        replies.push(OptionReply::decode(header.reply, data).unwrap());
        bytes = rest;
    }
    assert!(bytes.is_empty());
    replies
}

/// What comes of a script: the replies, and the last step or failure.
fn run(tls: TlsPolicy, options: &[OptionRequest]) -> (Vec<OptionReply>, Result<Step, HandshakeError>) {
    let exports = exports();
    let mut handshake = Handshake::new(&exports, tls);
    let mut out = Vec::new();
    let step = handshake.advance(&script(3, options), &mut out).map(|(_, step)| step);
    (replies(&out), step)
}

fn go(name: &str, items: &[InfoType]) -> OptionRequest {
    OptionRequest::Go(InfoRequest {
        name: name.into(),
        items: items.to_vec(),
    })
}

fn contexts(export: &str, queries: &[&str]) -> MetaContextRequest {
    MetaContextRequest {
        export: export.into(),
        queries: queries.iter().map(ToString::to_string).collect(),
    }
}

fn errors(replies: &[OptionReply]) -> Vec<ReplyError> {
    let errors = replies.iter().filter_map(|reply| match reply {
        OptionReply::Error { error, .. } => Some(*error),
        _ => None,
    });
    errors.collect()
}

fn names(replies: &[OptionReply]) -> Vec<&str> {
    let names = replies.iter().filter_map(|reply| match reply {
        OptionReply::MetaContext { name, .. } => Some(name.as_str()),
        _ => None,
    });
    names.collect()
}

#[test]
fn go_tells_everything_and_ends() {
    let (replies, step) = run(TlsPolicy::Off, &[go("", &[InfoType::Name, InfoType::Description])]);
    assert!(replies.contains(&OptionReply::Info(InfoItem::Name("first".into()))));
    assert!(replies.contains(&OptionReply::Info(InfoItem::Description("of two".into()))));
    let block_sizes = InfoItem::BlockSize {
        minimum: 1,
        preferred: 4096,
        maximum: DEFAULT_MAX_PAYLOAD,
    };
    assert!(replies.contains(&OptionReply::Info(block_sizes)));
    assert_eq!(replies.last(), Some(&OptionReply::Ack));
    let Ok(Step::Transmission(negotiated)) = step else {
        panic!("{step:?}");
    };
    assert_eq!(negotiated.export.name(), "first");
    assert_eq!((negotiated.style, negotiated.contexts.len()), (ReplyStyle::Simple, 0));
}

#[test]
fn flags_depend_on_what_was_agreed_on() {
    let flags = |options: &[OptionRequest]| {
        let (replies, _) = run(TlsPolicy::Off, options);
        let flags = replies.iter().find_map(|reply| match reply {
            OptionReply::Info(InfoItem::Export { size: SIZE, flags }) => Some(*flags),
            _ => None,
        });
        flags.unwrap()
    };
    let simple = flags(&[go("first", &[])]);
    let structured = flags(&[OptionRequest::StructuredReply, go("first", &[])]);
    let extended = flags(&[OptionRequest::ExtendedHeaders, go("first", &[])]);
    assert!(simple.contains(TransmissionFlags::CAN_MULTI_CONN | TransmissionFlags::SEND_FUA));
    assert_eq!(structured, simple | TransmissionFlags::SEND_DF);
    assert_eq!(extended, structured);
    // Contexts of this export, and of no other, can be chosen by a payload.
    let with_contexts = |export: &str| {
        let contexts = OptionRequest::SetMetaContext(contexts(export, &["base:allocation"]));
        flags(&[OptionRequest::ExtendedHeaders, contexts, go("first", &[])])
    };
    assert_eq!(
        with_contexts("first"),
        extended | TransmissionFlags::BLOCK_STATUS_PAYLOAD
    );
    assert_eq!(with_contexts("second"), extended);
    let read_only = flags(&[go("second", &[])]);
    assert!(read_only.contains(TransmissionFlags::READ_ONLY | TransmissionFlags::CAN_MULTI_CONN));
    assert!(!read_only.intersects(TransmissionFlags::SEND_TRIM | TransmissionFlags::SEND_WRITE_ZEROES));
    assert!(!(simple | extended).contains(TransmissionFlags::SEND_RESIZE));
}

#[test]
fn refusals_keep_the_negotiation_going() {
    let unknown = OptionRequest::Unknown {
        number: 4711,
        data: vec![1; 100],
    };
    let (replies, step) = run(
        TlsPolicy::Off,
        &[
            unknown,
            go("third", &[]),
            OptionRequest::StartTls,
            OptionRequest::SetMetaContext(contexts("first", &["base:allocation"])),
            OptionRequest::ExtendedHeaders,
            OptionRequest::StructuredReply,
            OptionRequest::SetMetaContext(contexts("first", &["nonsense"])),
            OptionRequest::ListMetaContext(contexts("third", &[])),
            OptionRequest::List,
        ],
    );
    let expected = [
        ReplyError::Unsupported,
        ReplyError::Unknown,
        ReplyError::Policy,
        ReplyError::Invalid,
        ReplyError::ExtendedHeaderRequired,
        ReplyError::Invalid,
        ReplyError::Unknown,
    ];
    assert_eq!(errors(&replies), expected);
    assert!(matches!(step, Ok(Step::NeedBytes)), "{step:?}");
    let servers = replies
        .iter()
        .filter(|reply| matches!(reply, OptionReply::Server { .. }));
    assert_eq!(servers.count(), 2);
}

#[test]
fn contexts_are_listed_and_chosen() {
    let list = |queries: &[&str]| {
        let options = [
            OptionRequest::StructuredReply,
            OptionRequest::ListMetaContext(contexts("first", queries)),
        ];
        names(&run(TlsPolicy::Off, &options).0).join(" ")
    };
    let all = "base:allocation qemu:allocation-depth qemu:dirty-bitmap:base";
    assert_eq!(list(&[]), all);
    assert_eq!(list(&["base:", "qemu:", "base:allocation"]), all);
    assert_eq!(list(&["qemu:dirty-bitmap:"]), "qemu:dirty-bitmap:base");
    assert_eq!(list(&["qemu:dirty-bitmap:other", "x:y"]), "");

    let choose = |export: &str, queries: &[&str]| {
        let options = [
            OptionRequest::StructuredReply,
            OptionRequest::SetMetaContext(contexts(export, queries)),
            go("first", &[]),
        ];
        match run(TlsPolicy::Off, &options).1 {
            Ok(Step::Transmission(negotiated)) => negotiated.contexts,
            other => panic!("{other:?}"),
        }
    };
    let chosen = choose(
        "first",
        &["qemu:dirty-bitmap:base", "base:allocation", "base:allocation", "base:"],
    );
    let expected = [
        (MetaContextId(1), Context::Changes(0)),
        (MetaContextId(2), Context::Allocation),
    ];
    assert_eq!(chosen, expected);
    // Chosen for another export, or for the same under another name, they don't count.
    assert_eq!(choose("second", &["base:allocation"]), []);
    assert_eq!(choose("first", &[]), []);
}

#[test]
fn a_failed_choice_takes_back_the_one_before() {
    let mut bytes = script(
        3,
        &[
            OptionRequest::StructuredReply,
            OptionRequest::SetMetaContext(contexts("first", &["base:allocation"])),
        ],
    );
    let header = OptionHeader {
        option: OptionType::SetMetaContext,
        length: 3,
    };
    header.encode(&mut bytes);
    bytes.extend([0; 3]);
    go("first", &[]).encode(&mut bytes);
    let exports = exports();
    let step = Handshake::new(&exports, TlsPolicy::Off).advance(&bytes, &mut Vec::new());
    match step {
        Ok((_, Step::Transmission(negotiated))) => assert_eq!(negotiated.contexts, []),
        other => panic!("{other:?}"),
    }
}

#[test]
fn export_name_is_answered_in_its_own_way() {
    let exports = exports();
    for (client, len) in [(3, ExportNameReply::SIZE), (1, ExportNameReply::SIZE + 124)] {
        let mut out = Vec::new();
        let bytes = script(client, &[OptionRequest::ExportName("second".into())]);
        let (_, step) = Handshake::new(&exports, TlsPolicy::Off)
            .advance(&bytes, &mut out)
            .unwrap();
        assert!(matches!(step, Step::Transmission(_)));
        assert_eq!(out.len(), len);
    }
    let failed = run(TlsPolicy::Off, &[OptionRequest::ExportName("third".into())]).1;
    assert!(matches!(failed, Err(HandshakeError::NoExport(_))));
    let options = [
        OptionRequest::ExtendedHeaders,
        OptionRequest::ExportName("first".into()),
    ];
    assert!(matches!(
        run(TlsPolicy::Off, &options).1,
        Err(HandshakeError::ExportNameAfterExtended)
    ));
}

#[test]
fn without_tls_nothing_is_told() {
    let (replies, step) = run(
        TlsPolicy::Required,
        &[
            OptionRequest::List,
            go("first", &[]),
            go("third", &[]),
            OptionRequest::StartTls,
        ],
    );
    assert_eq!(errors(&replies), [ReplyError::TlsRequired; 3]);
    assert_eq!(replies.len(), 4);
    assert!(matches!(step, Ok(Step::StartTls)));
    let failed = run(TlsPolicy::Required, &[OptionRequest::ExportName("first".into())]).1;
    assert!(matches!(failed, Err(HandshakeError::TlsRequired)));
}

#[test]
fn tls_forgets_what_was_agreed_on() {
    let exports = exports();
    let mut handshake = Handshake::new(&exports, TlsPolicy::Off);
    let mut out = Vec::new();
    handshake
        .advance(&script(3, &[OptionRequest::StructuredReply]), &mut out)
        .unwrap();
    handshake.restart_with_tls();
    let mut bytes = Vec::new();
    OptionRequest::StartTls.encode(&mut bytes);
    go("first", &[]).encode(&mut bytes);
    out.clear();
    let (_, step) = handshake.advance(&bytes, &mut out).unwrap();
    assert_eq!(errors(&replies(&out)), [ReplyError::Invalid]);
    assert!(matches!(
        step,
        Step::Transmission(Negotiated {
            style: ReplyStyle::Simple,
            ..
        })
    ));
}

#[test]
fn options_that_are_too_long_are_skipped() {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    let header = OptionHeader {
        option: OptionType::List,
        length: MAX_OPTION_LENGTH + 1,
    };
    header.encode(&mut bytes);
    bytes.resize(bytes.len() + MAX_OPTION_LENGTH as usize + 1, 0xee);
    OptionRequest::Abort.encode(&mut bytes);
    let exports = exports();
    let mut out = Vec::new();
    let (taken, step) = Handshake::new(&exports, TlsPolicy::Off)
        .advance(&bytes, &mut out)
        .unwrap();
    assert_eq!(taken, bytes.len());
    assert!(matches!(step, Step::Aborted));
    assert_eq!(errors(&replies(&out)), [ReplyError::TooBig]);
}

#[test]
fn strangers_are_turned_away() {
    let exports = exports();
    for bytes in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0, 0, 0, 4],
        &[0, 0, 0, 3, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        let failed = Handshake::new(&exports, TlsPolicy::Off).advance(bytes, &mut Vec::new());
        assert!(matches!(failed, Err(HandshakeError::Protocol(_))), "{failed:?}");
    }
}

/// However a script is cut, the same comes of it.
fn in_parts(bytes: &[u8], parts: &[usize]) -> (Vec<u8>, String) {
    let exports = exports();
    let mut handshake = Handshake::new(&exports, TlsPolicy::Off);
    let (mut out, mut input, mut last) = (Vec::new(), Vec::new(), String::new());
    let mut rest = bytes;
    let mut lens = parts.iter().copied().cycle();
    while !rest.is_empty() {
        let (part, left) = rest.split_at(lens.next().unwrap_or(1).clamp(1, rest.len()));
        rest = left;
        input.extend_from_slice(part);
        match handshake.advance(&input, &mut out) {
            Ok((taken, Step::NeedBytes)) => drop(input.drain(..taken)),
            Ok((_, step)) => {
                last = format!("{:?}", std::mem::discriminant(&step));
                break;
            }
            Err(error) => {
                last = error.to_string();
                break;
            }
        }
    }
    (out, last)
}

proptest! {
    #[test]
    fn parts_make_no_difference(
        options in prop::collection::vec((0u32..14, prop::collection::vec(any::<u8>(), 0..40)), 0..6),
        parts in prop::collection::vec(1usize..30, 1..5),
    ) {
        let mut bytes = 3u32.to_be_bytes().to_vec();
        for (number, data) in options {
            let option = OptionType::from_number(number);
            OptionHeader { option, length: data.len().try_into().unwrap() }.encode(&mut bytes);
            bytes.extend(data);
        }
        prop_assert_eq!(in_parts(&bytes, &parts), in_parts(&bytes, &[bytes.len()]));
    }

    #[test]
    fn any_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..400), parts in prop::collection::vec(1usize..50, 1..5)) {
        let mut bytes = bytes;
        bytes.splice(0..0, [0, 0, 0, 3]);
        let (out, _) = in_parts(&bytes, &parts);
        prop_assert!(out.len() < 100 * (bytes.len() + 10));
    }
}
