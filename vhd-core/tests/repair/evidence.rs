//! What is certain and what is assumed: entries that can't be blocks, bitmaps that are lost, blocks over one another, images
//! inside disks, blocks without entries.

use std::sync::Arc;

use crate::common::build::{FOOTER, Laid, Parent, SECTOR, Sparse, fixed, id, put};
use crate::common::disk::{assert_same, disk_of, read_all};
use crate::common::rng::{random_bytes, seeded};
use crate::subject::{BLOCK, BLOCKS, NO_FACTS, Subject, error, mend};
use vhd_core::ErrorKind;
use vhd_core::check::{FindingCode, Severity, check};
use vhd_core::format::DiskType;
use vhd_core::image::{Image, OpenMode};
use vhd_core::ops::repair::{Certainty, Doubt, Facts, RepairCode, RepairPlan};
use vhd_core::storage::MemoryFile;
use vhd_core::units::{u64_from, usize_from};

/// The sectors in doubt.
fn doubtful(doubts: &[Doubt]) -> Vec<u64> {
    let sector = u64_from(SECTOR);
    let sectors = doubts
        .iter()
        .flat_map(|doubt| doubt.range.start / sector..doubt.range.end() / sector);
    let mut sectors: Vec<u64> = sectors.collect();
    sectors.sort_unstable();
    sectors.dedup();
    sectors
}

fn sectors_of(block: usize) -> Vec<u64> {
    let first = u64_from(block * BLOCK / SECTOR);
    (first..first + u64_from(BLOCK / SECTOR)).collect()
}

#[test]
fn a_locator_with_a_path_stays_whatever_the_table_says() {
    let subject = Subject::child();
    let locator = subject.laid.locators[0].0 / SECTOR;
    let mut rng = seeded(0x20, "entries");
    let mut cases: Vec<Vec<usize>> = vec![vec![0], vec![0, 2, 3], vec![0, 0, 0], vec![locator], vec![1, 2]];
    cases.extend([
        vec![locator, locator],
        vec![locator, locator + 1, locator - 1],
        vec![locator, 0, 0xFFFF_0000],
    ]);
    cases.extend((0..30).map(|_| (0..3).map(|_| rng.usize(..locator + 1)).collect()));
    for entries in cases {
        let mended = subject.mend(|laid| {
            // These blocks have no space.
            for (block, entry) in [0, 2, 4].into_iter().zip(&entries) {
                laid.point(block, *entry);
            }
        });
        assert!(!mended.has(RepairCode::LocatorRemoved), "{entries:?}");
        mended.assert_right_outside_doubts(&subject.content);
        let image = Image::open(Arc::new(MemoryFile::from_bytes(mended.bytes)), &OpenMode::read_only()).unwrap();
        assert!(!image.parent_paths().unwrap().is_empty());
    }
}

#[test]
fn a_locator_without_a_path_does_not_cost_a_block() {
    let subject = Subject::child();
    let first = subject.laid.blocks[0].1;
    // The header puts the locator into the first block.
    let mended = subject.mends("locator over a block", |laid| {
        laid.change_header(|header| put(header, 592, &u64_from(first + SECTOR).to_be_bytes()));
    });
    assert!(mended.has(RepairCode::LocatorRemoved));
}

#[test]
fn a_lost_bitmap_gives_its_data_back_and_is_in_doubt() {
    for (subject, blocks) in [(Subject::dynamic(), 0..BLOCKS), (Subject::child(), 3..4)] {
        for block in blocks {
            let at = subject.laid.bitmap_of(block);
            let mended = subject.mend(|laid| laid.bytes[at..at + SECTOR].fill(0));
            assert_same(&mended.content, &subject.content, "lost bitmap");
            assert!(mended.has(RepairCode::BitmapRestored));
            assert_eq!(doubtful(mended.plan.doubts()), sectors_of(block));
            assert!(mended.plan.doubts().iter().all(|doubt| !doubt.lost));
            let certain = |code| {
                mended
                    .plan
                    .findings()
                    .iter()
                    .any(|found| found.code == code && found.certainty == Certainty::Certain)
            };
            assert!(!certain(RepairCode::BitmapRestored));
            assert_eq!(mended.plan.before().worst(), Some(Severity::Corrupt));
            // The data itself is where it was.
            let data = at + SECTOR..at + SECTOR + BLOCK;
            assert_same(&mended.bytes[data.clone()], &subject.laid.bytes[data], "data");
        }
    }
}

#[test]
fn half_a_bitmap_that_is_lost_comes_back_where_others_are_whole() {
    let subject = Subject::dynamic();
    let at = subject.laid.bitmap_of(2);
    // A block of 64 KiB has 128 bits, in 16 bytes.
    let mended = subject.mend(|laid| laid.bytes[at + 4..at + 12].fill(0));
    assert_same(&mended.content, &subject.content, "half a bitmap");
    assert_eq!(doubtful(mended.plan.doubts()), sectors_of(2)[32..96]);
    assert_same(&mended.bytes, &subject.laid.bytes, "the bitmap is what it was");
}

#[test]
fn one_block_that_hides_data_among_partial_ones_gets_its_bits() {
    let spec = [3, 130, 260]
        .into_iter()
        .fold(Sparse::new(u64_from(BLOCKS * BLOCK), BLOCK), |spec, sector| {
            spec.store_sector(sector, &[7; SECTOR])
        });
    let subject = Subject::new(&spec, None);
    let at = subject.laid.bitmap_of(1);
    let mended = subject.mend(|laid| {
        let data = at + SECTOR + 9 * SECTOR;
        laid.bytes[data..data + 2 * SECTOR].fill(8);
    });
    assert_eq!(doubtful(mended.plan.doubts()), [128 + 9, 128 + 10]);
    assert!(
        mended.content[(128 + 9) * SECTOR..(128 + 11) * SECTOR]
            .iter()
            .all(|&byte| byte == 8)
    );
    mended.assert_right_outside_doubts(&subject.content);
}

#[test]
fn a_child_whose_lost_bitmap_had_few_bits_reads_its_parent_where_it_has_nothing() {
    let mut rng = seeded(0x21, "child");
    let below = random_bytes(&mut rng, BLOCKS * BLOCK);
    let child = Sparse::child(
        u64_from(BLOCKS * BLOCK),
        BLOCK,
        id(2),
        Parent::named(id(1), "parent.vhd"),
    );
    let spec = child.store_sector(5, &[9; SECTOR]).store_sector(300, &[9; SECTOR]);
    let subject = Subject::new(&spec, Some(below));
    let at = subject.laid.bitmap_of(0);
    let mended = subject.mend(|laid| laid.bytes[at..at + SECTOR].fill(0));
    assert_same(&mended.content, &subject.content, "what is zero is the parent's");
    assert_eq!(doubtful(mended.plan.doubts()), sectors_of(0));
}

#[test]
fn bytes_that_are_left_over_everywhere_stay_hidden() {
    let mut rng = seeded(0x14, "stale");
    let spec = Sparse::new(u64_from(BLOCKS * BLOCK), BLOCK).fill_randomly(&mut rng, 100);
    let subject = Subject::new(&spec, None);
    let (plan, bytes) = mend(&subject.laid.bytes, &NO_FACTS).unwrap();
    assert!(plan.is_empty());
    assert_same(&bytes, &subject.laid.bytes, "left over");
    // Another repair does not clear them either.
    let mended = subject.mend(|laid| laid.bytes.truncate(laid.tail));
    assert!(mended.has(RepairCode::StaleSectors));
    assert_same(&mended.content, &subject.content, "left over");
    assert_same(&mended.bytes, &subject.laid.bytes, "nothing but the footer is written");
}

/// Blocks that lie `shared` sectors over the one before. What is written last is there: the later block, or the earlier.
fn crowded(subject: &Subject, shared: usize, later_wins: bool) -> Laid {
    let mut laid = subject.laid.clone();
    let (first, stored) = (laid.blocks[0].1, SECTOR + BLOCK);
    let step = stored - shared * SECTOR;
    let blocks: Vec<(usize, Vec<u8>)> = laid
        .blocks
        .iter()
        .map(|(block, at)| (*block, laid.bytes[*at..*at + stored].to_vec()))
        .collect();
    let footer = laid.bytes[laid.tail..].to_vec();
    let end = first + step * (blocks.len() - 1) + stored;
    laid.bytes.truncate(first);
    laid.bytes.resize(end, 0);
    let mut order: Vec<usize> = (0..blocks.len()).collect();
    if !later_wins {
        order.reverse();
    }
    for index in order {
        let at = first + index * step;
        put(&mut laid.bytes, at, &blocks[index].1);
        laid.point(blocks[index].0, at / SECTOR);
    }
    laid.bytes.extend(footer);
    laid
}

#[test]
fn blocks_over_one_another_are_in_doubt_where_they_share() {
    let subject = Subject::dynamic();
    for shared in [1, 2, 5, 40] {
        let laid = crowded(&subject, shared, true);
        let (plan, bytes) = mend(&laid.bytes, &NO_FACTS).unwrap();
        let content = subject.read(Arc::new(MemoryFile::from_bytes(bytes)));
        let mut expected = Vec::new();
        for block in 0..BLOCKS {
            let sectors = sectors_of(block);
            if block > 0 {
                expected.extend_from_slice(&sectors[..shared - 1]);
            }
            if block + 1 < BLOCKS {
                expected.extend_from_slice(&sectors[sectors.len() - shared..]);
            }
        }
        assert_eq!(doubtful(plan.doubts()), expected, "{shared}");
        crate::subject::assert_right_outside(plan.doubts(), &content, &subject.content);
    }
}

#[test]
fn a_bitmap_under_the_data_of_another_block_is_not_believed() {
    let mut rng = seeded(0x25, "crowded");
    let below = random_bytes(&mut rng, BLOCKS * BLOCK);
    let child = Sparse::child(
        u64_from(BLOCKS * BLOCK),
        BLOCK,
        id(2),
        Parent::named(id(1), "parent.vhd"),
    );
    let child = [5, 1, 3]
        .into_iter()
        .fold(child, |child, block| child.store_whole(&mut rng, block));
    for subject in [Subject::dynamic(), Subject::new(&child, Some(below))] {
        for (shared, later_wins) in [(1, false), (1, true), (3, false), (30, false), (30, true)] {
            let laid = crowded(&subject, shared, later_wins);
            let (plan, bytes) = mend(&laid.bytes, &NO_FACTS).unwrap();
            let content = subject.read(Arc::new(MemoryFile::from_bytes(bytes)));
            crate::subject::assert_right_outside(plan.doubts(), &content, &subject.content);
            // Nothing is dropped: all that no other block was written over reads what it was.
            let order: Vec<usize> = subject.laid.blocks.iter().map(|(block, _)| *block).collect();
            for (index, block) in order.iter().enumerate() {
                let from = if index > 0 { shared } else { 0 };
                let to = BLOCK / SECTOR - if index + 1 < order.len() { shared } else { 0 };
                let range = (block * BLOCK / SECTOR + from) * SECTOR..(block * BLOCK / SECTOR + to) * SECTOR;
                let range = range.start.min(content.len())..range.end.min(content.len());
                assert_same(
                    &content[range.clone()],
                    &subject.content[range],
                    "what is nobody else's",
                );
            }
        }
    }
}

/// A disk that holds a dynamic image at `at`, and that image's length.
fn disk_with_an_image(at: usize, len: usize) -> (Vec<u8>, usize) {
    let mut rng = seeded(0x22, "nested");
    let inner = Sparse::new(u64_from(BLOCKS * BLOCK), BLOCK)
        .store_whole(&mut rng, 1)
        .lay()
        .bytes;
    let mut disk = random_bytes(&mut rng, len);
    put(&mut disk, at, &inner);
    (disk, inner.len())
}

#[test]
fn the_footer_of_an_image_inside_a_fixed_disk_is_content() {
    let (len, at) = (40 * BLOCK, 30 * BLOCK);
    let (disk, inner) = disk_with_an_image(at, len);
    let facts = Facts {
        size: Some(u64_from(len)),
        disk_type: Some(DiskType::Fixed),
    };
    // Cut behind the image inside, right behind its footer, within it, and before its footer.
    for cut in [
        len - BLOCK,
        at + inner,
        at + inner - SECTOR,
        at + inner - BLOCK,
        at + FOOTER,
    ] {
        let (plan, bytes) = mend(&disk[..cut], &facts).unwrap();
        assert_same(&bytes[..cut], &disk[..cut], "what is left of the disk");
        assert_eq!(bytes.len(), len + FOOTER);
        let image = Image::open(Arc::new(MemoryFile::from_bytes(bytes)), &OpenMode::read_only()).unwrap();
        assert!(!image.is_differencing());
        let content = read_all(&disk_of(image, Vec::new()));
        assert_same(&content[..cut], &disk[..cut], "content");
        let lost: Vec<u64> = (u64_from(cut / SECTOR)..u64_from(len / SECTOR)).collect();
        assert_eq!(doubtful(plan.doubts()), lost, "{cut}");
        assert!(plan.doubts().iter().all(|doubt| doubt.lost));
        // By itself it is no image that was damaged.
        if let Ok((plan, _)) = mend(&disk[..cut], &NO_FACTS) {
            panic!("{cut}: {:?}", plan.findings());
        }
        let size_alone = Facts {
            disk_type: None,
            ..facts
        };
        assert!(mend(&disk[..cut], &size_alone).is_err());
    }
}

#[test]
fn the_footer_of_an_image_inside_a_block_is_content() {
    let mut rng = seeded(0x23, "inner");
    let mut spec = Sparse::new(u64_from(4 * BLOCK), BLOCK);
    for block in 0..4 {
        spec = spec.store_whole(&mut rng, block);
    }
    let inner = Sparse {
        id: id(7),
        ..Sparse::new(2 << 10, 1 << 10).store_whole(&mut rng, 0)
    };
    let inner = inner.lay().bytes;
    put(&mut spec.stored[3].data, 8 * SECTOR, &inner);
    let subject = Subject::new(&spec, None);
    let end = subject.laid.bitmap_of(3) + SECTOR + 8 * SECTOR + inner.len();
    let mended = subject.mend(|laid| laid.bytes.truncate(end));
    assert_eq!(mended.content.len(), subject.content.len());
    mended.assert_right_outside_doubts(&subject.content);
    let lost = 3 * BLOCK / SECTOR + 8 + inner.len() / SECTOR;
    assert_eq!(doubtful(mended.plan.doubts()).first(), Some(&u64_from(lost)));
    // With both footers lost nothing says how large it was.
    let mut bytes = subject.laid.bytes[..end].to_vec();
    bytes[..FOOTER].fill(0);
    assert_eq!(error(&bytes), ErrorKind::FactsMissing);
    let facts = Facts {
        size: Some(u64_from(4 * BLOCK)),
        disk_type: None,
    };
    let (plan, repaired) = mend(&bytes, &facts).unwrap();
    let content = subject.read(Arc::new(MemoryFile::from_bytes(repaired)));
    crate::subject::assert_right_outside(plan.doubts(), &content, &subject.content);
}

#[test]
fn what_the_caller_says_does_not_win_over_what_is_certain() {
    let facts = |size: u64, disk_type| Facts {
        size: Some(size),
        disk_type,
    };
    let subject = Subject::dynamic();
    let size = u64_from(subject.content.len());
    let kind = |bytes: &[u8], facts: &Facts| mend(bytes, facts).unwrap_err().kind();
    for wrong in [facts(size + 512, None), facts(size, Some(DiskType::Fixed))] {
        assert_eq!(kind(&subject.laid.bytes, &wrong), ErrorKind::FactsContradict);
    }
    assert!(
        mend(&subject.laid.bytes, &facts(size, Some(DiskType::Dynamic)))
            .unwrap()
            .0
            .is_empty()
    );
    let plain = fixed(&[5; 40 * SECTOR], id(1));
    assert_eq!(kind(&plain, &facts(50 * 512, None)), ErrorKind::FactsContradict);
    assert!(
        mend(&plain, &facts(40 * 512, Some(DiskType::Fixed)))
            .unwrap()
            .0
            .is_empty()
    );
}

#[test]
fn blocks_without_entries_are_listed() {
    let subject = Subject::dynamic();
    for lost in [0..BLOCKS, 2..4, 5..6] {
        let mut laid = subject.laid.clone();
        let expected: Vec<u64> = lost.clone().map(|block| u64_from(laid.bitmap_of(block))).collect();
        lost.clone().for_each(|block| laid.point(block, 0xFFFF_FFFF));
        let report = check(&MemoryFile::from_bytes(laid.bytes.clone())).unwrap();
        assert!(
            report
                .findings
                .iter()
                .any(|finding| finding.code == FindingCode::OrphanBlocks),
            "{report:?}"
        );
        assert_eq!(report.worst(), Some(Severity::Leak));
        let file = Arc::new(MemoryFile::from_bytes(laid.bytes.clone()));
        let plan = RepairPlan::new(file, &NO_FACTS).unwrap();
        assert!(plan.is_empty());
        let found: Vec<u64> = plan.findings().iter().filter_map(|finding| finding.offset).collect();
        assert_eq!(found, expected);
        let texts: Vec<&str> = plan.findings().iter().map(|finding| &finding.message[..]).collect();
        if lost == (2..4) {
            assert!(
                texts.iter().all(|text| text.contains("blocks 2 to 3 (LBA 256 to 511)")),
                "{texts:?}"
            );
        }
    }
    assert_eq!(usize_from(u64_from(BLOCKS)), 6);
}
