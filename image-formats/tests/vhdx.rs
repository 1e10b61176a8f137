//! VHDX images that an independent writer made, against a model: chains, sector bitmaps, logs; and what breaks a rule.

use std::ops::ControlFlow;
use std::sync::Arc;

use fastrand::Rng;
use image_formats::vhdx::{Image as Reader, LogState, Oddity};
use image_formats::{ImageError, ImageFile as _, Layer, LayeredImage, Rule};
use support::vhdx_writer::{
    Block, Change, HEADERS, Image, LOG, METADATA, MIB, Parent, REGIONS, TABLE, fix_checksums, guid, log_entry, put32,
    put64, write_log,
};
use vhd_block::{ByteRange, Disk, ExtentKind};

mod support;

const SECTOR: usize = 4096;

fn open(bytes: Vec<u8>) -> Result<Reader, ImageError> {
    Reader::open(Arc::new(bytes))
}

fn disk(layers: Vec<Vec<u8>>) -> Disk {
    let layers = layers
        .into_iter()
        .map(|bytes| Arc::new(open(bytes).unwrap()) as Arc<dyn Layer>);
    Disk::new(Arc::new(LayeredImage::new(layers.collect(), Some([1; 16]))))
}

fn content(disk: &Disk) -> Vec<u8> {
    let mut bytes = vec![0xEE; usize::try_from(disk.size()).unwrap()];
    disk.read_at(&mut bytes, 0).unwrap();
    bytes
}

fn seeded() -> Rng {
    let seed = std::env::var("VHD_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("VHD_TEST_SEED={seed}");
    Rng::with_seed(seed)
}

/// A block of bytes that differ from sector to sector.
fn block_bytes(rng: &mut Rng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes.chunks_mut(512).for_each(|sector| sector.fill(rng.u8(1..)));
    bytes
}

/// Puts random blocks into an image, and what they make of the disk below them into `model`.
fn fill(image: &mut Image, model: &mut [u8], rng: &mut Rng) {
    let size = image.block_size;
    for block in 0..image.disk_size.div_ceil(size) {
        let start = block * size;
        let end = (start + size).min(image.disk_size);
        let below = &mut model[start..end];
        let data = block_bytes(rng, size);
        let content = match rng.u8(0..if image.parent.is_some() { 8 } else { 5 }) {
            0 => Block::Zero,
            1 => Block::Undefined,
            2 => Block::Unmapped,
            3 => Block::Full(data),
            4 => continue,
            _ => {
                let sectors = size / image.logical_sector;
                let run = rng.usize(1..200);
                let mut present = Vec::with_capacity(sectors);
                while present.len() < sectors {
                    let bit = rng.bool();
                    present.extend(std::iter::repeat_n(bit, rng.usize(1..=run)));
                }
                present.truncate(sectors);
                Block::Partial(present, data)
            }
        };
        match &content {
            Block::Full(data) => below.copy_from_slice(&data[..end - start]),
            Block::Partial(present, data) => {
                for (index, part) in below.chunks_mut(image.logical_sector).enumerate() {
                    if present[index] {
                        part.copy_from_slice(&data[index * image.logical_sector..][..part.len()]);
                    }
                }
            }
            _ => below.fill(0),
        }
        image.blocks.insert(block, content);
    }
}

#[test]
fn chains_read_like_the_model() {
    let mut rng = seeded();
    for round in 0..12 {
        let sector = [512, 4096][round % 2];
        let block_size = [MIB, MIB, 2 * MIB, 4 * MIB][rng.usize(..4)];
        let mut size = rng.usize(1..2000) * 4096;
        let mut model = vec![0; size];
        let mut layers = Vec::new();
        for depth in 0..rng.usize(1..5) {
            let mut image = Image::new(block_size, sector, size);
            image.data_write_guid = [depth as u8 + 1; 16];
            image.parent = (depth > 0).then(|| Parent {
                linkage: [depth as u8; 16],
                keys: vec![("relative_path".into(), ".\\parent.vhdx".into())],
            });
            fill(&mut image, &mut model, &mut rng);
            layers.insert(0, image.build());
            // The next child may be larger.
            size += rng.usize(0..2) * 4096;
            model.resize(size, 0);
        }
        model.truncate(disk(layers.clone()).size() as usize);
        let disk = disk(layers);
        assert!(content(&disk) == model, "round {round}");
        for _ in 0..50 {
            let start = rng.usize(0..model.len());
            let mut part = vec![0xEE; rng.usize(1..=(model.len() - start).min(300_000))];
            disk.read_at(&mut part, start as u64).unwrap();
            assert!(part == model[start..start + part.len()]);
        }
        extents_fit(&disk, &model);
    }
}

/// Extents have no gaps, and what they call zero is.
fn extents_fit(disk: &Disk, model: &[u8]) {
    let mut next = 0;
    let visited = disk.extents(ByteRange::new(0, disk.size()), &mut |extent| {
        assert_eq!(extent.range.start, next);
        next = extent.range.end();
        let part = &model[extent.range.start as usize..next as usize];
        assert!(
            extent.kind == ExtentKind::Data || part.iter().all(|byte| *byte == 0),
            "{extent:?}"
        );
        assert!(extent.kind == ExtentKind::Data || extent.file_offset.is_none());
        ControlFlow::Continue(())
    });
    visited.unwrap();
    assert_eq!(next, disk.size());
}

/// A chain whose chunks of blocks are so small that there are several: the table has entries of bitmaps in between.
#[test]
fn tables_with_several_chunks() {
    let mut rng = seeded();
    // 256 MiB in a block, 16 in a chunk of 4 GiB.
    let mut image = Image::new(256 * MIB, 512, 10 << 30);
    image.parent = Some(Parent {
        linkage: [1; 16],
        keys: Vec::new(),
    });
    let sectors = 256 * MIB / 512;
    let mut present = vec![false; sectors];
    present[7] = true;
    present[sectors - 1] = true;
    let data = block_bytes(&mut rng, 256 * MIB);
    image.blocks.insert(35, Block::Partial(present, data.clone()));
    let base = Image::new(256 * MIB, 512, 10 << 30);
    let disk = disk(vec![image.build(), base.build()]);
    let at = 35 * 256 * MIB;
    for (sector, expected) in [
        (6, 0),
        (7, data[7 * 512]),
        (8, 0),
        (sectors - 2, 0),
        (sectors - 1, data[256 * MIB - 1]),
    ] {
        let mut read = [0xEE; 512];
        disk.read_at(&mut read, (at + sector * 512) as u64).unwrap();
        assert_eq!(read, [expected; 512], "sector {sector}");
    }
    // A base has entries of bitmaps too, which are not in use.
    let mut base = Image::new(256 * MIB, 512, 10 << 30);
    base.blocks.insert(16, Block::Full(data.clone()));
    let mut read = [0; 512];
    self::disk(vec![base.build()])
        .read_at(&mut read, 16 * 256 * MIB as u64)
        .unwrap();
    assert_eq!(read, data[..512]);
}

/// Two blocks of a disk, one of them in the file.
fn small() -> Image {
    let mut image = Image::new(MIB, 512, 2 * MIB);
    image.blocks.insert(0, Block::Full(vec![1; MIB]));
    image
}

fn child() -> Image {
    let mut image = small();
    image.parent = Some(Parent {
        linkage: guid("01020304-0506-0708-090a-0b0c0d0e0f10"),
        keys: vec![
            ("relative_path".into(), "..\\base.vhdx".into()),
            ("absolute_win32_path".into(), "C:\\vm\\base.vhdx".into()),
        ],
    });
    image.blocks.insert(1, Block::Partial(vec![true; 2048], vec![2; MIB]));
    image
}

#[test]
fn parents_are_named_by_guid_and_paths() {
    let image = open(child().build()).unwrap();
    let parent = image.metadata().parent.clone().unwrap();
    assert_eq!(parent.linkage.to_string(), "01020304-0506-0708-090a-0b0c0d0e0f10");
    let paths: Vec<&str> = parent.paths.iter().map(|(_, path)| path.as_str()).collect();
    assert_eq!(paths, ["..\\base.vhdx", "C:\\vm\\base.vhdx"]);
    assert!(parent.matches(parent.linkage) && !parent.matches(image.metadata().disk_id));
}

#[test]
fn the_newer_header_counts_and_one_is_enough() {
    let mut bytes = small().build();
    bytes[HEADERS[0] + 32] = 0xAA;
    fix_checksums(&mut bytes);
    let image = open(bytes.clone()).unwrap();
    assert_eq!(
        image.header().data_write_guid.to_bytes_le()[0],
        0xAA,
        "sequence 5 is in the first"
    );
    assert!(image.oddities().is_empty(), "{:?}", image.oddities());
    // Without the first the second counts.
    bytes[HEADERS[0] + 100] ^= 1;
    let image = open(bytes.clone()).unwrap();
    assert_eq!(image.header().sequence, 4);
    assert!(matches!(image.oddities(), [Oddity::Header(_)]));
    bytes[HEADERS[1] + 100] ^= 1;
    assert_eq!(broken(bytes), Rule::Header);
    // Two different ones with one number tell nothing; two that are the same do.
    let mut bytes = small().build();
    bytes[HEADERS[1] + 8] = 5;
    fix_checksums(&mut bytes);
    assert!(open(bytes.clone()).unwrap().oddities().is_empty());
    bytes[HEADERS[1] + 40] ^= 1;
    fix_checksums(&mut bytes);
    assert_eq!(broken(bytes), Rule::Header);
    // Either region table is enough as well.
    let mut bytes = small().build();
    bytes[REGIONS[0] + 500] ^= 1;
    assert!(matches!(
        open(bytes.clone()).unwrap().oddities(),
        [Oddity::RegionTable(_)]
    ));
    bytes[REGIONS[1] + 500] ^= 1;
    assert_eq!(broken(bytes), Rule::RegionTable);
}

/// The rule that an image breaks. A check finds it too.
fn broken(bytes: Vec<u8>) -> Rule {
    let checked = Reader::check(Arc::new(bytes.clone())).unwrap();
    match open(bytes).unwrap_err() {
        ImageError::Broken(rule) => {
            assert!(checked.0.is_none() && checked.1.contains(&rule), "{:?}", checked.1);
            assert!(!rule.found.is_empty() && !rule.expected.is_empty());
            rule.rule
        }
        error => panic!("{error}"),
    }
}

#[test]
fn each_rule_is_kept() {
    let parent_item = METADATA + (64 << 10) + 40;
    type Damage = Box<dyn Fn(&mut Vec<u8>)>;
    let entry = |image: &Image, block: usize, value: u64| -> Damage {
        let at = image.entry(block);
        Box::new(move |bytes| put64(bytes, at, value as usize))
    };
    let set = |at: usize, value: Vec<u8>| -> Damage {
        Box::new(move |bytes| bytes[at..at + value.len()].copy_from_slice(&value))
    };
    let put = |at: usize, value: usize| -> Damage { Box::new(move |bytes| put32(bytes, at, value)) };
    let region = REGIONS[0] + 16;
    let item = METADATA + 32;
    let values = METADATA + (64 << 10);
    let (small, child) = (small(), child());
    let block = 4 * MIB as u64;
    let cases: Vec<(&Image, Damage, Rule)> = vec![
        (&small, Box::new(|bytes| bytes.truncate(600)), Rule::FileTooShort),
        (
            &small,
            Box::new(|bytes| bytes.truncate(5 * MIB - 1)),
            Rule::BlockPastEnd,
        ),
        (&small, Box::new(|bytes| bytes.truncate(TABLE + 100)), Rule::Region),
        (&small, set(0, b"vhdxfilf".to_vec()), Rule::Identifier),
        (&small, put(HEADERS[0] + 72, 0), Rule::Header),
        (&small, put(region + 16, 3 * MIB + 4096), Rule::Region),
        (&small, put(region + 16, 0), Rule::Region),
        (&small, put(region + 16, METADATA), Rule::Region),
        (&small, put(region + 16, LOG), Rule::Region),
        (&small, put(region + 20, 1 << 20), Rule::Region),
        (&small, put(region + 24, 0), Rule::Region),
        (
            &small,
            set(region, guid("8B7CA206-4790-4B9A-B8FE-575F050F886E").to_vec()),
            Rule::Region,
        ),
        (&small, Box::new(|bytes| bytes[REGIONS[0] + 8] = 1), Rule::Region),
        (&small, set(METADATA, b"METADATA".to_vec()), Rule::MetadataTable),
        (&small, set(METADATA + 10, vec![0xFF, 0xFF]), Rule::MetadataTable),
        (&small, put(item + 16, 100), Rule::MetadataTable),
        (&small, put(item + 16, MIB - 4), Rule::MetadataTable),
        (&small, put(item + 20, 2 << 20), Rule::MetadataTable),
        (&small, put(item + 20, 7), Rule::MetadataItem),
        (&small, Box::new(|bytes| bytes[METADATA + 10] = 4), Rule::MetadataTable),
        (&small, put(values, 3 << 20), Rule::MetadataItem),
        (&small, put(values, 512 << 20), Rule::MetadataItem),
        (&small, put(values + 8, 0), Rule::MetadataItem),
        (&small, put(values + 8, 513), Rule::MetadataItem),
        (&small, put(values + 15, 0xFF), Rule::MetadataItem),
        (&small, put(values + 32, 1024), Rule::MetadataItem),
        (&small, put(values + 13, 0x10), Rule::TableTooShort),
        (&small, entry(&small, 0, block | 4), Rule::EntryState),
        (&small, entry(&small, 0, block | 5), Rule::EntryState),
        (&small, entry(&small, 0, block | 7), Rule::EntryState),
        (&small, entry(&small, 0, block | 8 | 6), Rule::EntryState),
        (&small, entry(&small, 0, 6), Rule::BlockInMetadata),
        (&small, entry(&small, 0, TABLE as u64 | 6), Rule::BlockInMetadata),
        (&small, entry(&small, 0, (block + MIB as u64) | 6), Rule::BlockPastEnd),
        (&small, entry(&small, 0, !0xF_FFFF | 6), Rule::BlockPastEnd),
        (&small, entry(&small, 1, block | 6), Rule::BlockOverlap),
        (&child, put(child.bitmap_entry(0), 0), Rule::SectorBitmap),
        (&child, put(child.bitmap_entry(0), 7), Rule::SectorBitmap),
        (&child, put(parent_item + 16, 0xFF00_0000), Rule::ParentLocator),
        (&child, put(parent_item + 20, 0x7FFF_FFFF), Rule::ParentLocator),
        (
            &child,
            set(parent_item + 20 + 12 * 3, vec![b'q', 0]),
            Rule::ParentLocator,
        ),
    ];
    for (index, (image, damage, rule)) in cases.into_iter().enumerate() {
        let mut bytes = image.build();
        // A second copy would do instead.
        bytes[REGIONS[1]..][..4].fill(0);
        bytes[HEADERS[1]..][..4].fill(0);
        damage(&mut bytes);
        let copies = [REGIONS[1], HEADERS[1]];
        fix_checksums(&mut bytes);
        copies
            .iter()
            .filter(|at| **at < bytes.len())
            .for_each(|at| assert_eq!(bytes[*at], 0));
        let found = std::panic::catch_unwind(|| broken(bytes));
        assert_eq!(found.ok(), Some(rule), "case {index}");
    }
}

#[test]
fn what_is_required_and_unknown_is_refused_and_what_is_not_is_passed_over() {
    let refused = |damage: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = child().build();
        damage(&mut bytes);
        fix_checksums(&mut bytes);
        matches!(open(bytes), Err(ImageError::Unsupported { .. }))
    };
    let third_region = |required: u8| {
        move |bytes: &mut Vec<u8>| {
            let len = bytes.len();
            bytes.resize(len + MIB, 0);
            for at in REGIONS {
                bytes[at + 8] = 3;
                let entry = &mut bytes[at + 16 + 64..][..32];
                entry[..16].fill(0xDD);
                put64(entry, 16, len);
                put32(entry, 24, MIB);
                entry[28] = required;
            }
        }
    };
    assert!(refused(&third_region(1)));
    assert!(!refused(&third_region(0)));
    let seventh_item = |flags: u8| {
        move |bytes: &mut Vec<u8>| {
            bytes[METADATA + 10] = 7;
            let entry = &mut bytes[METADATA + 32 + 6 * 32..][..32];
            entry[..16].fill(0xDD);
            entry[24] = flags;
        }
    };
    assert!(refused(&seventh_item(4)) && refused(&seventh_item(5)));
    assert!(!refused(&seventh_item(0)) && !refused(&seventh_item(1)));
    assert!(refused(&|bytes| HEADERS.iter().for_each(|at| bytes[at + 66] = 2)));
    assert!(
        refused(&|bytes| bytes[METADATA + (64 << 10) + 40] ^= 1),
        "another type of locator"
    );
    assert!(refused(&|bytes| {
        put32(bytes, HEADERS[0] + 68, 128 << 20);
        bytes[HEADERS[0] + 48] = 1;
    }));
}

/// A sector of the table, and of a block, as a log changes them.
fn table_sector(image: &Image, bytes: &[u8], block: usize, entry: u64) -> Vec<u8> {
    let at = image.entry(block);
    let mut sector = bytes[TABLE..TABLE + SECTOR].to_vec();
    sector[at - TABLE..][..8].copy_from_slice(&entry.to_le_bytes());
    sector
}

#[test]
fn logs_are_replayed_in_memory_wherever_they_begin() {
    let image = small();
    let clean = image.build();
    let behind = clean.len() as u64;
    for start in [0, 4096, 900 << 10, MIB - 8192, MIB - 4096] {
        let mut bytes = clean.clone();
        bytes.extend(vec![3; MIB]);
        let first = table_sector(&image, &bytes, 1, behind | 6);
        let data: Vec<u8> = (0..SECTOR).map(|index| index as u8).collect();
        let entries = [
            vec![Change::Sector(behind + 8192, vec![9; SECTOR])],
            vec![
                Change::Sector(TABLE as u64, first),
                Change::Sector(behind + 8192, data.clone()),
            ],
            vec![Change::Zero(behind, 8192)],
        ];
        write_log(&mut bytes, start, 7, &entries);
        let before = bytes.clone();
        let file = Arc::new(bytes);
        let image = Reader::open(Arc::clone(&file) as _).unwrap();
        assert_eq!(image.log(), LogState::Replayed(3), "{start:#x}");
        let disk = Disk::new(Arc::new(LayeredImage::new(vec![Arc::new(image)], Some([0; 16]))));
        let mut expected = vec![1; 2 * MIB];
        expected[MIB..].fill(3);
        expected[MIB..MIB + 8192].fill(0);
        expected[MIB + 8192..][..SECTOR].copy_from_slice(&data);
        assert!(content(&disk) == expected, "{start:#x}");
        assert!(*file == before);
        // What the log changes has no place in the file.
        let mut places = Vec::new();
        disk.extents(ByteRange::new(MIB as u64, MIB as u64), &mut |extent| {
            places.push((extent.range.len, extent.file_offset));
            ControlFlow::Continue(())
        })
        .unwrap();
        assert_eq!(places, [(12288, None), ((MIB - 12288) as u64, Some(behind + 12288))]);
    }
}

#[test]
fn the_newest_whole_sequence_counts() {
    let image = small();
    let clean = image.build();
    let mark = |value: u8| vec![Change::Sector(4 * MIB as u64, vec![value; SECTOR])];
    let first_byte = |bytes: Vec<u8>| content(&disk(vec![bytes]))[0];
    // An older sequence of the same log stands further on.
    let mut bytes = clean.clone();
    write_log(&mut bytes, 0x8_0000, 3, &[mark(8)]);
    write_log(&mut bytes, 0, 20, &[mark(5), mark(6)]);
    assert_eq!(first_byte(bytes.clone()), 6);
    // The last entry is torn: the one before it ends the sequence.
    let mut torn = bytes.clone();
    torn[LOG + 8192 + 5000] ^= 1;
    assert_eq!(first_byte(torn), 5);
    // The sequence's first entry is torn: the other one is whole, and all that there is to go by.
    let mut torn = bytes.clone();
    torn[LOG + 5000] ^= 1;
    assert_eq!(first_byte(torn), 8);
    // An entry of another log counts for nothing.
    let mut foreign = bytes.clone();
    let entry = log_entry(&mark(9), 22, 0, clean.len(), &[0x44; 16]);
    foreign[LOG + 16384..][..entry.len()].copy_from_slice(&entry);
    assert_eq!(first_byte(foreign), 6);
    // Nothing whole is left: what was half done can't be known.
    let mut nothing = clean.clone();
    write_log(&mut nothing, 0, 20, &[mark(5)]);
    nothing[LOG + 100] ^= 1;
    assert_eq!(broken(nothing), Rule::Log);
    // Nothing was ever written to it: nothing was half done.
    let mut empty = clean.clone();
    write_log(&mut empty, 0, 1, &[]);
    let image = open(empty).unwrap();
    assert_eq!(image.log(), LogState::Replayed(0));
    // The file is shorter than the log says it was.
    let mut cut = clean.clone();
    cut.resize(clean.len() + MIB, 0);
    write_log(&mut cut, 0, 1, &[mark(5)]);
    cut.truncate(clean.len());
    assert_eq!(broken(cut), Rule::Log);
}

/// Entries that lie in one another, each with a valid checksum: the work that they make is bounded.
#[test]
fn nested_entries_are_given_up() {
    let mut bytes = small().build();
    write_log(&mut bytes, 0, 1, &[]);
    let file_len = bytes.len();
    // From the end: each entry reaches to the end of the log and holds the ones behind it.
    for at in (0..MIB).step_by(SECTOR).rev() {
        let mut entry = log_entry(&[], u64::MAX - at as u64, at, file_len, &[0x55; 16]);
        entry.extend_from_slice(&bytes[LOG + at + SECTOR..LOG + MIB]);
        let len = entry.len();
        put32(&mut entry, 8, len);
        entry[4..8].fill(0);
        let crc = support::vhdx_writer::checksum(&entry);
        entry[4..8].copy_from_slice(&crc.to_le_bytes());
        bytes[LOG + at..LOG + MIB].copy_from_slice(&entry);
    }
    let opened = open(bytes);
    assert!(opened.is_ok() || matches!(opened, Err(ImageError::Broken(_))));
}

/// Whatever single bytes are, nothing panics, and what opens can be read.
#[test]
fn damaged_bytes_do_no_harm() {
    let mut rng = seeded();
    let mut logged = child().build();
    let changes = vec![Change::Sector(TABLE as u64, logged[TABLE..TABLE + SECTOR].to_vec())];
    write_log(&mut logged, 0, 1, &[changes]);
    let images = [small().build(), child().build(), logged];
    let interesting = [
        0..1000,
        HEADERS[0]..HEADERS[0] + 100,
        REGIONS[0]..REGIONS[0] + 100,
        LOG..LOG + 200,
        METADATA..METADATA + 32 * 8,
        METADATA + (64 << 10)..METADATA + (64 << 10) + 400,
        TABLE..TABLE + 64,
    ];
    for _ in 0..800 {
        let mut bytes = images[rng.usize(..3)].clone();
        for _ in 0..rng.u8(1..4) {
            let range = interesting[rng.usize(..interesting.len())].clone();
            bytes[rng.usize(range)] = [0, 1, 0x7F, 0xFF, rng.u8(..)][rng.usize(..5)];
        }
        if rng.u8(..4) == 0 {
            bytes.truncate(rng.usize(0..bytes.len()));
        }
        if rng.u8(..4) > 0 {
            fix_checksums(&mut bytes);
        }
        let Ok(image) = open(bytes) else { continue };
        let disk = Disk::new(Arc::new(LayeredImage::new(vec![Arc::new(image)], Some([0; 16]))));
        let len = disk.size().min(3 << 20);
        let mut read = vec![0; len as usize];
        disk.read_at(&mut read, 0).unwrap();
        disk.read_at(&mut [0; 512], disk.size() - 512).unwrap();
    }
}

#[test]
fn memory_is_a_file() {
    let bytes = vec![1, 2, 3];
    assert_eq!(image_formats::ImageFile::len(&bytes).unwrap(), 3);
    assert!(bytes.read_exact_at(&mut [0; 2], 2).is_err());
    assert!(bytes.read_exact_at(&mut [0; 2], u64::MAX).is_err());
}
