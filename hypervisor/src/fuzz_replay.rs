//! The fuzz target of devices on PCI, for a bounded time.

use super::virtio_pci;
use crate::virtio::ring::Descriptor;

#[path = "../../fuzz/src/replay.rs"]
mod replay;

#[test]
fn accesses_to_devices_on_pci() {
    replay::replay("virtio_pci", 1500, virtio_pci);
}

/// Writes the corpus anew.
#[test]
#[ignore = "writes into fuzz/corpus"]
fn write_the_corpus() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/virtio_pci");
    std::fs::create_dir_all(dir).unwrap();
    let files: [(&str, Vec<u8>); 6] = [
        ("disk-read", [vec![0], driver(1 << 9), request(0, 512)].concat()),
        ("disk-write", [vec![0], driver(1 << 9), request(1, 4096)].concat()),
        (
            "disk-discard",
            [vec![0], driver(1 << 13 | 1 << 9), request(11, 16)].concat(),
        ),
        ("rng", [vec![1], driver(0), buffer(64)].concat()),
        ("indirect", [vec![0], driver(1 << 28 | 1 << 29), indirect()].concat()),
        ("moved", [vec![0], moved(), driver(1 << 9), request(4, 0)].concat()),
    ];
    for (name, bytes) in files {
        std::fs::write(format!("{dir}/{name}"), bytes).unwrap();
    }
}

const CONFIG: u8 = 0;
const REGISTERS: u8 = 1;
const MEMORY: u8 = 2;
const BELL: u8 = 3;

/// A write, as the target takes it.
fn write(place: u8, at: u32, data: &[u8]) -> Vec<u8> {
    let how = place | u8::try_from(data.len().ilog2()).unwrap() << 2;
    [&[how][..], &at.to_le_bytes(), data].concat()
}

/// A driver that gets ready with these features.
fn driver(features: u32) -> Vec<u8> {
    let mut accesses: Vec<Vec<u8>> = [1, 3].map(|status: u8| write(REGISTERS, 0x14, &[status])).into();
    for (at, value) in [(0x08, 0_u32), (0x0c, features), (0x08, 1), (0x0c, 1)] {
        accesses.push(write(REGISTERS, at, &value.to_le_bytes()));
    }
    accesses.push(write(REGISTERS, 0x14, &[11]));
    accesses.push(write(REGISTERS, 0x18, &16_u16.to_le_bytes()));
    for (at, address) in [(0x20, 0x8000_u32), (0x28, 0x9000), (0x30, 0xa000)] {
        accesses.push(write(REGISTERS, at, &address.to_le_bytes()));
    }
    accesses.push(write(REGISTERS, 0x1c, &[1, 0]));
    accesses.push(write(REGISTERS, 0x14, &[15]));
    accesses.concat()
}

fn descriptor(table: u32, number: u16, address: u64, len: u32, flags: u16) -> Vec<u8> {
    let next = number + 1;
    let it = Descriptor {
        address,
        len,
        flags,
        next,
    };
    let at = u32::try_from(Descriptor::place(table.into(), number)).unwrap();
    let bytes = it.bytes();
    [write(MEMORY, at, &bytes[..8]), write(MEMORY, at + 8, &bytes[8..])].concat()
}

/// Makes the first descriptor available, and rings.
fn submit() -> Vec<u8> {
    let available = write(MEMORY, 0x9002, &1_u16.to_le_bytes());
    [available, write(BELL, 0, &[0])].concat()
}

fn request(kind: u32, len: u32) -> Vec<u8> {
    let fills = if kind == 0 { 2 } else { 0 };
    [
        write(MEMORY, 0xb000, &kind.to_le_bytes()),
        write(MEMORY, 0xb008, &3_u64.to_le_bytes()),
        descriptor(0x8000, 0, 0xb000, 16, 1),
        descriptor(0x8000, 1, 0xc000, len, 1 | fills),
        descriptor(0x8000, 2, 0xe000, 1, 2),
        submit(),
    ]
    .concat()
}

fn buffer(len: u32) -> Vec<u8> {
    [descriptor(0x8000, 0, 0xc000, len, 2), submit()].concat()
}

fn indirect() -> Vec<u8> {
    [
        descriptor(0xb000, 0, 0xc000, 16, 1),
        descriptor(0xb000, 1, 0xd000, 512, 1 | 2),
        descriptor(0xb000, 2, 0xe000, 1, 2),
        descriptor(0x8000, 0, 0xb000, 48, 4),
        submit(),
    ]
    .concat()
}

/// The window goes elsewhere, messages are switched on.
fn moved() -> Vec<u8> {
    [
        write(CONFIG, 0x10, &0xd100_0000_u32.to_le_bytes()),
        write(CONFIG, 4, &[6, 0]),
        write(CONFIG, 0x43, &[0x80]),
        write(REGISTERS, 0x4000, &0xfee0_0000_u64.to_le_bytes()),
        write(REGISTERS, 0x4008, &0x31_u64.to_le_bytes()),
        write(REGISTERS, 0x10, &[0, 0]),
        write(REGISTERS, 0x1a, &[1, 0]),
    ]
    .concat()
}
