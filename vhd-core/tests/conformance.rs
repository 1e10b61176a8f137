//! Every kind of disk passes the suite of the test kit, in memory and on the host's file system.
#![cfg(not(loom))]

mod support;

use std::io::IoSlice;
use std::sync::Arc;

use support::forge::Forge;
use support::{any_parent, open};
use vhd_core::device::{BlockDevice, LayeredDevice, RawDevice};
use vhd_core::image::{Image, OpenMode, Preallocate, create_differencing, create_dynamic, create_fixed};
use vhd_core::storage::{HostFile, MemoryFile, StorageFile};
use vhd_core::units::{BlockIndex, u64_from, usize_from};
use vhd_testkit::{Conformance, CrashFile, Support};

const SECTOR: usize = 512;
const KIB: u64 = 1 << 10;

/// Sectors that one layer of a chain has in one piece: fewer than a block's, and no multiple of a bitmap byte.
const STRIPE: usize = 43 * SECTOR;

type NewFile = fn() -> Arc<dyn StorageFile>;

fn memory() -> Arc<dyn StorageFile> {
    Arc::new(MemoryFile::new())
}

fn host() -> Arc<dyn StorageFile> {
    let file = tempfile::tempfile().expect("a temporary file");
    Arc::new(HostFile::from_file(file).expect("a regular file"))
}

/// How one layer of a chain is made.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Raw,
    Fixed,
    /// With blocks of this size; differencing where there is a layer below.
    Blocks(u64),
}

/// The files of a chain, the base first.
struct Chain {
    files: Vec<Arc<dyn StorageFile>>,
    kinds: Vec<Kind>,
}

impl Chain {
    /// Makes a chain whose leaf reads `content`. Stripes of it are spread over the layers; what a layer holds
    /// that one above it answers is something else.
    fn with_content(new_file: NewFile, kinds: &[Kind], content: &[u8]) -> Self {
        let mut chain = Self {
            files: Vec::new(),
            kinds: Vec::new(),
        };
        for (depth, &kind) in kinds.iter().enumerate() {
            chain.push(new_file(), kind, u64_from(content.len()));
            let device = chain.device(true);
            for (index, stripe) in content.chunks(STRIPE).enumerate() {
                let offset = u64_from(index * STRIPE);
                match index % kinds.len() {
                    owner if owner == depth => write(&*device, offset, stripe),
                    owner if owner > depth && index % 2 == 0 => write(&*device, offset, &vec![0xBB; stripe.len()]),
                    _ => {}
                }
            }
            device.flush().expect("the content is durable");
        }
        chain
    }

    fn push(&mut self, file: Arc<dyn StorageFile>, kind: Kind, size: u64) {
        let created = match kind {
            Kind::Raw => file.set_len(size).map_err(Into::into),
            Kind::Fixed => create_fixed(&*file, size, Preallocate::Off)
                .map(drop)
                .map_err(Into::into),
            Kind::Blocks(block) if self.files.is_empty() => {
                create_dynamic(&*file, size, block).map(drop).map_err(Into::into)
            }
            Kind::Blocks(block) => create_differencing(&*file, size, block, &any_parent())
                .map(drop)
                .map_err(Into::into),
        };
        created.unwrap_or_else(|error: Box<dyn std::error::Error>| panic!("{kind:?}: {error}"));
        self.files.push(file);
        self.kinds.push(kind);
    }

    fn device(&self, writable: bool) -> Arc<dyn BlockDevice> {
        let (leaf, ancestors) = self.files.split_last().expect("a chain has a base");
        if let [Kind::Raw] = self.kinds[..] {
            return Arc::new(RawDevice::new(Arc::clone(leaf), writable).expect("a raw disk"));
        }
        let mode = if writable {
            OpenMode::read_write()
        } else {
            OpenMode::read_only()
        };
        let parents: Vec<_> = ancestors.iter().rev().cloned().collect();
        Arc::new(open(Arc::clone(leaf), &parents, &mode).expect("the chain opens"))
    }
}

fn write(device: &dyn BlockDevice, offset: u64, bytes: &[u8]) {
    device
        .write_vectored_at(&[IoSlice::new(bytes)], offset, false)
        .expect("the content is written");
}

/// Runs the suite on chains of these layers, the base first: writable and read-only.
fn conforms(new_file: NewFile, torn_reads: bool, kinds: &[Kind]) {
    for read_only in [false, true] {
        let options = Conformance {
            size: 1500 * KIB + 512 * 3,
            steps: 150,
            read_only,
            torn_reads,
            ..Conformance::default()
        };
        options.run(&|_, content| Chain::with_content(new_file, kinds, content).device(!read_only));
    }
}

macro_rules! conformance_of {
    ($($name:ident: [$($kind:expr),+ $(,)?];)+) => {
        mod in_memory {
            use super::*;
            $(#[test] fn $name() { conforms(memory, false, &[$($kind),+]); })+
        }
        mod on_the_host {
            use super::*;
            $(#[test] fn $name() { conforms(host, true, &[$($kind),+]); })+
        }
    };
}

conformance_of! {
    raw: [Kind::Raw];
    fixed: [Kind::Fixed];
    dynamic_512_kib: [Kind::Blocks(512 * KIB)];
    dynamic_2_mib: [Kind::Blocks(2048 * KIB)];
    differencing_over_raw: [Kind::Raw, Kind::Blocks(512 * KIB)];
    differencing_over_fixed: [Kind::Fixed, Kind::Blocks(2048 * KIB)];
    differencing_over_dynamic: [Kind::Blocks(2048 * KIB), Kind::Blocks(512 * KIB)];
    chain_of_eight: [
        Kind::Blocks(1024 * KIB),
        Kind::Blocks(512 * KIB),
        Kind::Blocks(2048 * KIB),
        Kind::Blocks(512 * KIB),
        Kind::Blocks(4096 * KIB),
        Kind::Blocks(512 * KIB),
        Kind::Blocks(1024 * KIB),
        Kind::Blocks(512 * KIB),
    ];
}

/// Dynamic images of other programs have bitmaps with absent sectors: those read zero, whatever the file
/// holds there. Each block lacks its zero sectors, and has stale bytes in their place.
fn foreign_dynamic(content: &[u8], block_size: u32) -> Vec<u8> {
    let block_len = usize_from(u64::from(block_size));
    let mut forge = Forge::dynamic(u64_from(content.len()), block_size);
    for (index, data) in (0..).map(BlockIndex).zip(content.chunks(block_len)) {
        let zero = |sector: usize| {
            data.chunks(SECTOR)
                .nth(sector)
                .is_none_or(|bytes| bytes.iter().all(|&b| b == 0))
        };
        if (0..data.len() / SECTOR).all(zero) {
            continue;
        }
        let mut stored = data.to_vec();
        for (sector, bytes) in stored.chunks_mut(SECTOR).enumerate() {
            if zero(sector) {
                bytes.fill(0xEE);
            }
        }
        forge = forge.with_block(index, |sector| !zero(sector), &stored);
    }
    forge.build()
}

#[test]
fn foreign_partial_bitmaps() {
    for block_size in [4 << 10, 64 << 10, 1 << 20] {
        for read_only in [false, true] {
            let options = Conformance {
                size: 700 * KIB + 512,
                steps: 150,
                read_only,
                ..Conformance::default()
            };
            let mode = if read_only {
                OpenMode::read_only()
            } else {
                OpenMode::read_write()
            };
            options.run(&|_, content| {
                let file = MemoryFile::from_bytes(foreign_dynamic(content, block_size));
                let image = Image::open(Arc::new(file), &mode).expect("a foreign image opens");
                Arc::new(LayeredDevice::new(image, Vec::new()))
            });
        }
    }
}

/// A child of other size than its parent: what the parent lacks reads zero.
#[test]
fn a_parent_that_is_smaller_than_its_child() {
    let options = Conformance {
        size: 300 * KIB,
        steps: 150,
        ..Conformance::default()
    };
    options.run(&|size, content| {
        let parent: Arc<dyn StorageFile> = Arc::new(MemoryFile::from_bytes(content[..100_000].to_vec()));
        let child: Arc<dyn StorageFile> = Arc::new(MemoryFile::new());
        create_differencing(&*child, size, 512 * KIB, &any_parent()).expect("a child");
        let device = open(child, &[parent], &OpenMode::read_write()).expect("the chain opens");
        write(&device, 99_840, &content[99_840..]);
        Arc::new(device)
    });
}

/// A file system that has neither holes nor quick zeroes.
#[test]
fn a_file_system_without_holes() {
    fn plain() -> Arc<dyn StorageFile> {
        Arc::new(CrashFile::new().with_support(Support::NONE))
    }
    conforms(plain, false, &[Kind::Blocks(512 * KIB)]);
    conforms(plain, false, &[Kind::Raw, Kind::Blocks(512 * KIB)]);
}
