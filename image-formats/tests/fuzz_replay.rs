//! The fuzz targets of other programs' formats, for a bounded time.
#![allow(unreachable_pub, reason = "parts of another package")]

#[path = "../../fuzz/src/probe.rs"]
mod probe;
#[path = "../../fuzz/src/qcow2.rs"]
mod qcow2;
#[path = "../../fuzz/src/replay.rs"]
mod replay;
mod support;
#[path = "../../fuzz/src/vhdx.rs"]
mod vhdx;

use std::collections::BTreeMap;

use support::vhdx_writer::{Block, Change, Image, MIB, Parent, TABLE, write_log};

#[test]
fn qcow2_files() {
    replay::replay("qcow2", 3000, qcow2::qcow2);
}

#[test]
fn vhdx_files() {
    replay::replay("vhdx", 1500, vhdx::vhdx);
}

/// Writes the corpus anew.
#[test]
#[ignore = "writes into fuzz/corpus"]
fn write_the_corpus_of_vhdx() {
    let mut image = Image::new(MIB, 512, 2 * MIB);
    image.blocks.insert(0, Block::Full(vec![0; MIB]));
    let mut child = Image::new(MIB, 4096, 3 * MIB);
    child.parent = Some(Parent {
        linkage: [1; 16],
        keys: vec![("relative_path".into(), "..\\base.vhdx".into())],
    });
    let present = (0..256).map(|sector| sector % 3 == 0).collect();
    child.blocks = BTreeMap::from([(0, Block::Partial(present, vec![0; MIB])), (2, Block::Zero)]);
    let mut logged = image.build();
    let table = logged[TABLE..TABLE + 4096].to_vec();
    let entries = [
        vec![Change::Sector(TABLE as u64, table)],
        vec![Change::Zero(4 << 20, 8192)],
    ];
    write_log(&mut logged, 0, 1, &entries);
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus/vhdx");
    std::fs::create_dir_all(dir).unwrap();
    for (name, file) in [("dynamic", image.build()), ("child", child.build()), ("log", logged)] {
        std::fs::write(format!("{dir}/{name}"), encode(&file)).unwrap();
    }
}

fn encode(file: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(file.len().div_ceil(64 << 10))
        .unwrap()
        .to_le_bytes()
        .to_vec();
    for (number, piece) in (0_u16..).zip(file.chunks_exact(512)) {
        if piece.iter().any(|byte| *byte != 0) {
            bytes.extend(number.to_le_bytes());
            bytes.extend(piece);
        }
    }
    bytes
}
