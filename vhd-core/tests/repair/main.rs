//! Repair: each structure of an image damaged in many ways, and the content compared with what it was; loss of power
//! at each operation of a repair and of its undoing. Test names cite the invariants of docs/repair.md.
//!
//! VHD_REPAIR_IMAGES says on how many random images the crash enumeration runs (default 150).

#[path = "../common/mod.rs"]
mod common;
mod evidence;
mod property;
mod subject;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use common::build::{FOOTER, HEADER, Laid, Parent, SECTOR, Sparse, TablePlace, fixed, id, put, utf16le};
use common::disk::{assert_same, disk_of, read_all};
use common::rng::{Rng, chance, random_bytes, seeded};
use subject::{BLOCK, NO_FACTS, OverOriginal as _, Subject, assert_applies, assert_right_outside, error, mend};
use vhd_core::ErrorKind;
use vhd_core::check::Severity;
use vhd_core::format::DiskType;
use vhd_core::image::{Image, OpenMode};
use vhd_core::ops::repair::{Certainty, Facts, Journal, RepairCode, RepairPlan};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::{u64_from, usize_from};
use vhd_testkit::{CrashFile, CrashLimits, CrashSnapshot, Fault, FaultError, FaultFile, each_operation_fails};

#[test]
fn what_is_sound_is_left_alone() {
    for subject in [Subject::dynamic(), Subject::child()] {
        let (plan, bytes) = mend(&subject.laid.bytes, &NO_FACTS).unwrap();
        assert!(plan.is_empty() && plan.findings().is_empty());
        assert_same(&bytes, &subject.laid.bytes, "sound");
    }
}

#[test]
fn either_footer_comes_back_from_the_other() {
    for subject in [Subject::dynamic(), Subject::child()] {
        let same = |what: &str, damage: &dyn Fn(&mut Laid)| {
            let mended = subject.mends(what, damage);
            assert_same(&mended.bytes, &subject.laid.bytes, what);
            assert!(
                mended
                    .plan
                    .findings()
                    .iter()
                    .all(|finding| finding.certainty == Certainty::Certain)
            );
        };
        same("tail zeroed", &|laid| laid.bytes[laid.tail..].fill(0));
        same("copy zeroed", &|laid| laid.bytes[..FOOTER].fill(0));
        same("checksum of the tail", &|laid| laid.bytes[laid.tail + 64] ^= 1);
        same("identity in the tail", &|laid| laid.bytes[laid.tail + 70] ^= 1);
        same("identity in the copy", &|laid| laid.bytes[70] ^= 1);
        same("both, in different places", &|laid| {
            laid.bytes[laid.tail + 70] ^= 1;
            laid.bytes[75] ^= 1;
        });
        same("both cookies", &|laid| {
            laid.bytes[laid.tail] = 0;
            laid.bytes[0] = 0;
        });
        same("copy garbage", &|laid| laid.bytes[..FOOTER].fill(0x5A));
    }
}

#[test]
fn a_tail_that_is_lost_is_written_behind_everything() {
    for subject in [Subject::dynamic(), Subject::child()] {
        let cut = subject.mends("tail cut off", |laid| laid.bytes.truncate(laid.tail));
        assert_same(&cut.bytes, &subject.laid.bytes, "tail cut off");
        let part = subject.mends("tail cut in the middle", |laid| laid.bytes.truncate(laid.tail + 100));
        assert_eq!(part.bytes.len(), subject.laid.bytes.len() + SECTOR);
        for more in [1, 511, 512, 4096, 100_001] {
            let mended = subject.mends("garbage behind", |laid| {
                laid.bytes.resize(laid.bytes.len() + more, 0x6B)
            });
            assert!(common::build::ends_in_footer(&mended.bytes));
        }
        // A block was begun over the footer when the program died.
        subject.mends("bitmap over the footer", |laid| {
            let tail = laid.tail;
            laid.bytes[tail..].fill(0xFF);
            laid.bytes.resize(tail + SECTOR + BLOCK / 2, 0x11);
        });
    }
}

#[test]
fn both_footers_lost_need_the_size_alone() {
    for subject in [Subject::dynamic(), Subject::child()] {
        let mut laid = subject.laid.clone();
        laid.bytes[..FOOTER].fill(0);
        let tail = laid.tail;
        laid.bytes[tail..].fill(0);
        assert_eq!(error(&laid.bytes), ErrorKind::FactsMissing);
        let facts = Facts {
            size: Some(u64_from(subject.content.len())),
            disk_type: None,
        };
        let (plan, bytes) = mend(&laid.bytes, &facts).unwrap();
        assert!(
            plan.findings()
                .iter()
                .any(|finding| finding.code == RepairCode::FooterRebuilt)
        );
        assert_same(
            &subject.read(Arc::new(MemoryFile::from_bytes(bytes))),
            &subject.content,
            "rebuilt",
        );
    }
}

#[test]
fn damaged_headers_are_put_right() {
    for subject in [Subject::dynamic(), Subject::child()] {
        for at in [0, 5, 9, 20, 22, 25, 28, 30, 31, 32, 33, 34, 37, 39, 60, 62, 900] {
            let mended = subject.mends(&format!("header byte {at}"), |laid| laid.bytes[FOOTER + at] ^= 0x21);
            assert_same(&mended.bytes, &subject.laid.bytes, &format!("header byte {at}"));
        }
    }
    let subject = Subject::dynamic();
    let mended = subject.mends("header zeroed", |laid| laid.bytes[FOOTER..FOOTER + HEADER].fill(0));
    assert!(mended.has(RepairCode::HeaderRestored));
    assert_same(&mended.bytes, &subject.laid.bytes, "header zeroed");
    subject.mends("header of garbage", |laid| {
        laid.bytes[FOOTER..FOOTER + HEADER].fill(0x77)
    });
    subject.mends("footers lead elsewhere", |laid| {
        laid.change_footers(|footer| put(footer, 16, &4096_u64.to_be_bytes()))
    });
    // Whose child it is stands nowhere else.
    let mut child = Subject::child().laid;
    child.bytes[FOOTER..FOOTER + HEADER].fill(0);
    assert_eq!(error(&child.bytes), ErrorKind::NotRepairable);
}

#[test]
fn headers_that_say_something_wrong_are_put_right_where_the_blocks_tell() {
    let subject = Subject::dynamic();
    subject.mends("table elsewhere", |laid| {
        laid.change_header(|header| put(header, 16, &(1_u64 << 40).to_be_bytes()));
    });
    subject.mends("too few entries", |laid| {
        laid.change_header(|header| put(header, 28, &2_u32.to_be_bytes()))
    });
    // Without a block to tell by there is no certainty, and no repair.
    let lone = Subject::new(&Sparse::new(1 << 20, BLOCK).store_sector(7, &[3; SECTOR]), None);
    let mut laid = lone.laid.clone();
    laid.bytes[FOOTER..FOOTER + HEADER].fill(0);
    laid.bytes.splice(laid.tail..laid.tail, vec![0x44; 100 * SECTOR]);
    assert_eq!(error(&laid.bytes), ErrorKind::NotRepairable);
}

#[test]
fn a_table_sector_comes_back_where_the_order_of_blocks_tells() {
    let subject = Subject::dynamic();
    for fill in [0, 0x00, 0x7F] {
        let mended = subject.mend(|laid| {
            let (table, entries) = (laid.table, laid.entries);
            laid.bytes[table..table + entries * 4].fill(fill);
        });
        assert_same(&mended.content, &subject.content, "table overwritten");
        let doubted: u64 = mended.plan.doubts().iter().map(|doubt| doubt.range.len).sum();
        assert_eq!(doubted, u64_from(subject.content.len()));
        assert!(mended.has(RepairCode::EntryRestored));
    }
    let mended = subject.mend(|laid| (2..4).for_each(|block| laid.point(block, 0)));
    assert_same(&mended.content, &subject.content, "two entries zeroed");
    assert_eq!(mended.plan.doubts().len(), 1);
}

#[test]
fn one_entry_that_is_wrong_finds_the_one_block_that_is_free() {
    for (subject, block) in [(Subject::dynamic(), 3), (Subject::child(), 1)] {
        let right = subject.laid.bitmap_of(block) / SECTOR;
        let first = subject.laid.blocks[0].1 / SECTOR;
        // Into the copy, the header, the table; far away; into the middle of another block.
        for wrong in [0, 1, 3, right | 0x10_0000, 0xFFFF_FFFE, first + 5, first + 60] {
            let mended = subject.mend(|laid| laid.point(block, wrong));
            assert_same(&mended.content, &subject.content, &format!("entry {wrong:#x}"));
            assert!(mended.has(RepairCode::EntryRestored), "{wrong:#x}");
            assert_eq!(mended.plan.doubts().len(), 1);
        }
    }
}

#[test]
fn two_blocks_at_one_place_both_stay_readable() {
    let subject = Subject::child();
    let mended = subject.mend(|laid| {
        let at = laid.bitmap_of(1) / SECTOR;
        laid.point(3, at);
    });
    mended.assert_right_outside_doubts(&subject.content);
    assert!(mended.has(RepairCode::BlockCopied));
    let block = |index: usize| &mended.content[index * BLOCK..(index + 1) * BLOCK];
    assert_eq!(block(1), block(3));
    let doubted: Vec<u64> = mended
        .plan
        .doubts()
        .iter()
        .map(|doubt| doubt.range.start / u64_from(BLOCK))
        .collect();
    assert_eq!(doubted, [1, 3]);
}

#[test]
fn entries_without_any_block_are_cleared_and_told() {
    let subject = Subject::child();
    let mended = subject.mend(|laid| laid.point(0, 0xFFFF_0000));
    mended.assert_right_outside_doubts(&subject.content);
    assert!(mended.has(RepairCode::EntryCleared));
    assert_eq!(mended.plan.doubts()[0].range.start, 0);
    assert!(mended.plan.doubts()[0].reason.contains("the parent"));
    assert_same(&mended.content, &subject.content, "it was the parent's anyway");
}

#[test]
fn a_block_that_the_file_ends_in_is_completed() {
    for subject in [Subject::dynamic(), Subject::child()] {
        let last = subject.laid.blocks.last().unwrap();
        let (block, data) = (last.0, last.1 + SECTOR);
        for kept in [0, 1, 511, 512, 700, BLOCK / 2, BLOCK - 4 * SECTOR, BLOCK - 1] {
            let mended = subject.mend(|laid| laid.bytes.truncate(data + kept));
            mended.assert_right_outside_doubts(&subject.content);
            assert!(mended.has(RepairCode::BlockCompleted), "{kept}");
            assert!(common::build::ends_in_footer(&mended.bytes));
            let [doubt] = mended.plan.doubts() else {
                panic!("{kept}: {:?}", mended.plan.doubts())
            };
            assert_eq!(doubt.range.start, u64_from(block * BLOCK + kept / SECTOR * SECTOR));
            // What there was of the block is there.
            let read = &mended.content[block * BLOCK..][..kept];
            assert_same(read, &subject.content[block * BLOCK..][..kept], "the part that is left");
        }
        // Blocks behind the end are gone: that is told.
        let second = subject.laid.blocks[1].1;
        let mended = subject.mend(|laid| laid.bytes.truncate(second + 2000));
        mended.assert_right_outside_doubts(&subject.content);
        assert!(mended.has(RepairCode::EntryCleared) && mended.has(RepairCode::BlockCompleted));
    }
}

#[test]
fn a_last_block_that_is_cut_behind_the_disk_is_completed_and_the_footer_moves() {
    let mut rng = seeded(0x12, "short");
    let size = 3 * BLOCK - 9 * SECTOR;
    let spec = Sparse::new(u64_from(size), BLOCK)
        .store_whole(&mut rng, 0)
        .store_whole(&mut rng, 2);
    let subject = Subject::new(&spec, None);
    let mended = subject.mends("cut short", |laid| {
        let tail = laid.tail;
        laid.bytes.drain(tail - 9 * SECTOR..tail);
    });
    assert!(mended.has(RepairCode::BlockCompleted));
    assert_eq!(mended.bytes.len(), subject.laid.bytes.len());
}

#[test]
fn locators_that_lead_nowhere_are_removed() {
    let mut rng = seeded(0x13, "locators");
    let below = random_bytes(&mut rng, BLOCK);
    let mut parent = Parent::named(id(1), "parent.vhd");
    parent
        .locators
        .push(common::build::Locator::new(1, b"W2ku", utf16le("C:\\parent.vhd")));
    let spec = Sparse::child(u64_from(BLOCK), BLOCK, id(2), parent).store_sector(4, &[5; SECTOR]);
    let subject = Subject::new(&spec, Some(below));
    for (field, value) in [(584, 0x4000_0000_u32), (592, 0x10), (608, 0x0100_0000), (616, 0xFFFF)] {
        let mended = subject.mends("locator", |laid| {
            laid.change_header(|header| put(header, field, &value.to_be_bytes()))
        });
        assert!(mended.has(RepairCode::LocatorRemoved), "{field}");
    }
}

#[test]
fn fixed_images() {
    let content = random_bytes(&mut seeded(0x15, "fixed"), 40 * SECTOR);
    let bytes = fixed(&content, id(1));
    let mends = |what: &str, damaged: &[u8]| {
        let (plan, mended) = mend(damaged, &NO_FACTS).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(!plan.is_empty() && plan.doubts().is_empty(), "{what}");
        let image = Image::open(Arc::new(MemoryFile::from_bytes(mended)), &OpenMode::read_only()).unwrap();
        assert_same(&read_all(&disk_of(image, Vec::new())), &content, what);
    };
    for more in [1, 511, 512, 70_000] {
        mends("garbage behind", &[&bytes[..], &vec![0x6B; more]].concat());
        mends("zeroes behind", &[&bytes[..], &vec![0; more]].concat());
    }
    for at in (0..FOOTER).step_by(3) {
        let mut damaged = bytes.clone();
        damaged[content.len() + at] ^= 0x81;
        mends(&format!("footer byte {at}"), &damaged);
    }
    let mut lost = bytes.clone();
    lost[content.len()..].fill(0);
    assert_eq!(error(&lost), ErrorKind::NotRepairable);
    let facts = |size: usize| Facts {
        size: Some(u64_from(size)),
        disk_type: Some(DiskType::Fixed),
    };
    let (_, mended) = mend(&lost, &facts(content.len())).unwrap();
    assert_eq!(mended.len(), bytes.len());
    let cut = &bytes[..content.len() - 700];
    assert_eq!(error(cut), ErrorKind::NotRepairable);
    let (plan, mended) = mend(cut, &facts(content.len())).unwrap();
    assert_eq!((mended.len(), plan.doubts()[0].range.len), (bytes.len(), 1024));
}

#[test]
fn what_is_no_image_is_refused() {
    for bytes in [vec![], vec![0; 100], vec![0; 4096], vec![0x33; 100_000]] {
        assert_eq!(error(&bytes), ErrorKind::NotRepairable);
    }
    let mut poisoned = Subject::dynamic().laid;
    let tail = poisoned.tail;
    for at in [0, tail] {
        put(&mut poisoned.bytes, at, b"v_poison");
    }
    assert_eq!(error(&poisoned.bytes), ErrorKind::NotRepairable);
}

/// A random image with random damage that can be repaired.
fn damaged(rng: &mut Rng) -> (Subject, Vec<u8>, RepairPlan) {
    loop {
        let subject = random_subject(rng);
        let mut laid = subject.laid.clone();
        for _ in 0..rng.usize(1..4) {
            harm(rng, &mut laid);
        }
        let file = Arc::new(MemoryFile::from_bytes(laid.bytes.clone()));
        match RepairPlan::new(file, &NO_FACTS) {
            Ok(plan) if !plan.is_empty() => return (subject, laid.bytes, plan),
            Ok(_) => {}
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::NotRepairable | ErrorKind::FactsMissing),
                "{error}"
            ),
        }
    }
}

pub(crate) fn random_subject(rng: &mut Rng) -> Subject {
    if chance(rng, 15) {
        let sectors = rng.usize(1..40);
        return fixed_subject(&random_bytes(rng, sectors * SECTOR));
    }
    let block = 512 << rng.u32(2..6);
    let size = rng.usize(1..12) * block - rng.usize(0..block / SECTOR) * SECTOR;
    let parent = chance(rng, 50).then(|| random_bytes(rng, size));
    let mut image = match &parent {
        None => Sparse::new(u64_from(size), block),
        Some(_) => Sparse::child(u64_from(size), block, id(2), Parent::named(id(1), "parent.vhd")),
    };
    image = image.fill_randomly(rng, 80);
    image.gap = if chance(rng, 70) { 0 } else { rng.usize(1..4) };
    if chance(rng, 20) {
        image.table = TablePlace::AtEnd;
    }
    Subject::new(&image, parent)
}

fn fixed_subject(content: &[u8]) -> Subject {
    let laid = Laid {
        bytes: fixed(content, id(1)),
        table: usize::MAX / 8,
        entries: 0,
        blocks: Vec::new(),
        locators: Vec::new(),
        tail: content.len(),
    };
    Subject {
        laid,
        parent: None,
        content: content.to_vec(),
    }
}

fn harm(rng: &mut Rng, laid: &mut Laid) {
    let len = laid.bytes.len();
    match rng.u8(..8) {
        0 => laid.bytes[laid.tail.min(len)..].fill(0),
        1 if laid.entries > 0 => laid.bytes[..FOOTER].fill(0),
        2 if laid.entries > 0 => laid.bytes[FOOTER + rng.usize(..HEADER)] ^= 1 << rng.u32(..8),
        3 => laid.bytes.truncate(len - rng.usize(1..(len / 4).max(2))),
        4 => laid.bytes.resize(len + rng.usize(1..5000), 0x6B),
        5 | 6 if laid.entries > 0 && laid.table + laid.entries * 4 <= len => {
            let other = laid.blocks.first().map_or(0, |(_, offset)| offset / SECTOR);
            let wrong = if rng.bool() {
                other + rng.usize(..3)
            } else {
                rng.usize(..len / SECTOR + 20)
            };
            laid.point(rng.usize(..laid.entries), wrong);
        }
        _ => {
            let tail = laid.tail;
            if tail + FOOTER <= len {
                laid.bytes[tail + rng.usize(..FOOTER)] ^= 1 << rng.u32(..8);
            }
        }
    }
}

fn limits(seed: u64) -> CrashLimits {
    CrashLimits {
        exhaustive_bits: 6,
        random: 12,
        seed,
        newest_only: true,
    }
}

/// After a crash the journal fits; the repair can be finished, to what was planned, and undone, to what was there.
fn assert_recoverable(journal: &Journal, state: &CrashFile, damaged: &[u8], planned: &[u8], what: &str) {
    journal.state(state).unwrap_or_else(|error| panic!("{what}: {error}"));
    let finished = CrashFile::from_bytes(&state.bytes());
    journal.apply(&finished).unwrap();
    assert_same(&finished.bytes(), planned, what);
    let undone = CrashFile::from_bytes(&state.bytes());
    journal.undo(&undone).unwrap();
    assert_same(&undone.bytes(), damaged, what);
}

fn image_count() -> usize {
    let asked = std::env::var("VHD_REPAIR_IMAGES")
        .ok()
        .and_then(|count| count.parse().ok());
    asked.unwrap_or(150)
}

#[test]
fn inv_16_power_fails_at_every_operation_of_repair_and_undo() {
    let mut rng = seeded(0x16, "crashes");
    let states = Arc::new(AtomicU64::new(0));
    for _ in 0..image_count() {
        let (_, damaged, plan) = damaged(&mut rng);
        let journal = plan.journal().clone();
        let mut planned = vec![0; usize_from(journal.new_len())];
        plan.repaired_over(&damaged, &mut planned);
        let file = CrashFile::from_bytes(&damaged);
        let observe = |file: &CrashFile, work: &dyn Fn(&CrashFile)| {
            let (journal, damaged, planned) = (journal.clone(), damaged.clone(), planned.clone());
            let counter = Arc::clone(&states);
            file.set_observer(Some(Box::new(move |snapshot: &CrashSnapshot| {
                for state in snapshot.crash_states(&limits(counter.load(Ordering::Relaxed))) {
                    counter.fetch_add(1, Ordering::Relaxed);
                    assert_recoverable(&journal, &state.file(), &damaged, &planned, &state.to_string());
                }
            })));
            work(file);
            file.set_observer(None);
        };
        observe(&file, &|file| journal.apply(file).unwrap());
        assert_same(&file.bytes(), &planned, "applied");
        observe(&file, &|file| journal.undo(file).unwrap());
        assert_same(&file.bytes(), &damaged, "undone");
    }
    common::announce(&format!(
        "repair: {} crash states checked",
        states.load(Ordering::Relaxed)
    ));
}

/// What could be read before can be read at every moment, and reads the same but where it is in doubt.
#[test]
fn inv_17_an_image_that_opens_does_so_at_every_moment_of_a_repair() {
    let mut rng = seeded(0x17, "readable");
    let (states, mut images) = (Arc::new(AtomicU64::new(0)), 0);
    while images < image_count() / 2 {
        let (subject, damaged, plan) = damaged(&mut rng);
        let before: Arc<dyn StorageFile> = Arc::new(MemoryFile::from_bytes(damaged.clone()));
        if Image::open(Arc::clone(&before), &OpenMode::read_only()).is_err() {
            continue;
        }
        images += 1;
        let content = subject.read(before);
        let doubts = plan.doubts().to_vec();
        assert_right_outside(&doubts, &subject.read(plan.repaired()), &content);
        let (watched, counter) = (subject.clone(), Arc::clone(&states));
        let file = CrashFile::from_bytes(&damaged).with_observer(Box::new(move |snapshot: &CrashSnapshot| {
            for state in snapshot.crash_states(&limits(counter.load(Ordering::Relaxed))) {
                counter.fetch_add(1, Ordering::Relaxed);
                assert_right_outside(&doubts, &watched.read(Arc::new(state.file())), &content);
            }
        }));
        plan.journal().apply(&file).unwrap();
    }
    common::announce(&format!(
        "repair of readable images: {} crash states checked",
        states.load(Ordering::Relaxed)
    ));
}

#[test]
fn random_damage_is_right_outside_doubts() {
    let mut rng = seeded(0x18, "random");
    for _ in 0..600 {
        let (subject, damaged, plan) = damaged(&mut rng);
        let file = Arc::new(MemoryFile::from_bytes(damaged.clone()));
        assert_applies(&plan, &file, &damaged);
        if Image::open(Arc::new(MemoryFile::from_bytes(damaged)), &OpenMode::read_only()).is_ok() {
            continue; // an entry that leads to another good place can't be told from a right one
        }
        let content = subject.read(file);
        // The same goes for images with a wrong entry among other damage.
        if plan
            .before()
            .findings
            .iter()
            .all(|finding| finding.severity < Severity::Corrupt)
        {
            assert_right_outside(plan.doubts(), &content, &subject.content);
        }
    }
}

#[test]
fn each_operation_fails_and_the_next_run_finishes() {
    let mut rng = seeded(0x19, "faults");
    let mut struck = 0;
    for error in [FaultError::EIO, FaultError::ENOSPC] {
        for _ in 0..20 {
            let (_, damaged, plan) = damaged(&mut rng);
            let mut planned = vec![0; usize_from(plan.journal().new_len())];
            plan.repaired_over(&damaged, &mut planned);
            let fault = |n| Fault {
                error,
                ..Fault::nth(n).with_short(700)
            };
            struck += each_operation_fails(fault, |control, n| {
                let crash = CrashFile::from_bytes(&damaged);
                let result = plan.journal().apply(&FaultFile::with_control(crash.clone(), control));
                assert_eq!(result.is_err(), control.hits() > 0, "operation {n}: {result:?}");
                if let Err(failure) = result {
                    let wanted = if error == FaultError::EIO {
                        ErrorKind::Io
                    } else {
                        ErrorKind::NoSpace
                    };
                    assert_eq!(failure.kind(), wanted);
                }
                assert_recoverable(plan.journal(), &crash, &damaged, &planned, "after a fault");
            });
        }
    }
    assert!(struck > 60, "{struck}");
}

#[test]
fn inv_16_a_journal_does_not_touch_an_image_that_was_used_since() {
    let subject = Subject::dynamic();
    let mended = subject.mend(|laid| laid.bytes.truncate(laid.tail));
    let journal = mended.plan.journal();
    let used = MemoryFile::from_bytes(mended.bytes.clone());
    used.set_len(used.len().unwrap() + 512).unwrap();
    let other = MemoryFile::from_bytes(mended.bytes);
    other.write_all_at(&[1; 512], other.len().unwrap() - 512).unwrap();
    for file in [used, other] {
        let before = file.to_vec();
        assert_eq!(journal.undo(&file).unwrap_err().kind(), ErrorKind::UndoMismatch);
        assert_eq!(journal.apply(&file).unwrap_err().kind(), ErrorKind::UndoMismatch);
        assert_same(&file.to_vec(), &before, "refused");
    }
}
