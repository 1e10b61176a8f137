//! Random damage to random images. Whatever it was: planning changes nothing; a repair writes no sector that it does not
//! list; what could be read before reads the same but where doubt is listed; the undo gives every byte back; a second repair
//! finds nothing to do. Where the damage shows (it has no other reading that is as good) the content is what it was, but for
//! the doubts.
//!
//! VHD_REPAIR_DAMAGE says how many damaged images there are (default 1500); the long run is in docs/repair.md.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::common::build::{FOOTER, HEADER, SECTOR};
use crate::common::disk::assert_same;
use crate::common::rng::{Rng, chance, random_bytes, seeded};
use crate::subject::{NO_FACTS, Subject, assert_right_outside};
use crate::{common, random_subject};
use vhd_core::ErrorKind;
use vhd_core::check::{Severity, check};
use vhd_core::image::{Image, OpenMode};
use vhd_core::ops::repair::{Journal, RepairPlan};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::usize_from;

/// What is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Damage {
    Footers,
    Header,
    Tail,
    ImpossibleEntries,
    TableSector,
    Bitmap,
    AnyEntry,
    Anything,
}

impl Damage {
    const ALL: [Self; 8] = [
        Self::Footers,
        Self::Header,
        Self::Tail,
        Self::ImpossibleEntries,
        Self::TableSector,
        Self::Bitmap,
        Self::AnyEntry,
        Self::Anything,
    ];

    /// Whether what is left can't be read as another image that is as sound.
    fn shows(self) -> bool {
        matches!(
            self,
            Self::Footers | Self::Tail | Self::ImpossibleEntries | Self::Bitmap
        )
    }

    /// Damages an image; what was damaged, which is anything where there is nothing of this kind.
    fn harm(self, rng: &mut Rng, subject: &mut Subject) -> Self {
        let laid = &mut subject.laid;
        let len = laid.bytes.len();
        let has_table = laid.entries > 0 && laid.table + laid.entries * 4 <= len;
        match self {
            Self::Footers if laid.entries > 0 && rng.bool() => harm_bytes(rng, &mut laid.bytes[..FOOTER]),
            Self::Footers => {
                let tail = laid.tail.min(len);
                harm_bytes(rng, &mut laid.bytes[tail..]);
            }
            Self::Header if laid.entries > 0 => harm_bytes(rng, &mut laid.bytes[FOOTER..FOOTER + HEADER]),
            Self::Tail if rng.bool() => laid.bytes.truncate(len - rng.usize(1..(len / 3).max(2))),
            Self::Tail => {
                let more = rng.usize(1..4000);
                laid.bytes.extend(random_bytes(rng, more));
            }
            Self::ImpossibleEntries if has_table => {
                for _ in 0..rng.usize(1..5) {
                    let entry = match rng.u8(..3) {
                        0 => rng.usize(..3),
                        1 => len / SECTOR + rng.usize(..1000),
                        _ => 0xFFFF_FFFE - rng.usize(..9),
                    };
                    laid.point(rng.usize(..laid.entries), entry);
                }
            }
            Self::TableSector if has_table => {
                let range = laid.table..laid.table + laid.entries * 4;
                harm_bytes(rng, &mut laid.bytes[range]);
            }
            Self::Bitmap if !laid.blocks.is_empty() => {
                let (_, at) = laid.blocks[rng.usize(..laid.blocks.len())];
                if at + SECTOR <= len {
                    laid.bytes[at..at + SECTOR].fill(0);
                }
            }
            Self::AnyEntry if has_table => {
                let entry = rng.usize(..len / SECTOR + 4);
                laid.point(rng.usize(..laid.entries), entry);
            }
            _ if len > 0 => {
                let at = rng.usize(..len);
                let end = rng.usize(at..len.min(at + 2000)) + 1;
                harm_bytes(rng, &mut laid.bytes[at..end]);
                return Self::Anything;
            }
            _ => {}
        }
        self
    }
}

/// Zeroes, ones, garbage or a few bits.
fn harm_bytes(rng: &mut Rng, bytes: &mut [u8]) {
    if bytes.is_empty() {
        return;
    }
    match rng.u8(..4) {
        0 => bytes.fill(0),
        1 => bytes.fill(0xFF),
        2 => bytes.fill_with(|| rng.u8(..)),
        _ => {
            for _ in 0..rng.usize(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] ^= 1 << rng.u32(..8);
            }
        }
    }
}

/// What became of a damaged image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Outcome {
    Sound,
    Repaired,
    Refused,
}

fn opened(subject: &Subject, file: &Arc<MemoryFile>) -> Option<Vec<u8>> {
    let storage = Arc::clone(file) as Arc<dyn StorageFile>;
    Image::open(Arc::clone(&storage), &OpenMode::read_only()).ok()?;
    Some(subject.read(storage))
}

fn examine(subject: &Subject, damage: &[Damage]) -> Outcome {
    let damaged = &subject.laid.bytes;
    let file = Arc::new(MemoryFile::from_bytes(damaged.clone()));
    let plan = RepairPlan::new(Arc::clone(&file) as _, &NO_FACTS);
    assert_same(&file.to_vec(), damaged, "planning changes nothing");
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => {
            let known = matches!(error.kind(), ErrorKind::NotRepairable | ErrorKind::FactsMissing);
            assert!(known, "{damage:?}: {error}");
            return Outcome::Refused;
        }
    };
    let before = opened(subject, &Arc::new(file.duplicate()));
    let journal = Journal::decode(&plan.journal().encode()).unwrap();
    journal.apply(&*file).unwrap();
    let repaired = file.to_vec();
    assert_lists_its_changes(&plan, damaged, &repaired);
    let after = opened(subject, &file).expect("what is repaired opens");
    if let Some(before) = before {
        assert_right(damage, &plan, &after, &before);
    }
    if let [damage] = damage
        && damage.shows()
    {
        assert_right(&[*damage], &plan, &after, &subject.content);
    }
    let report = check(&*file).unwrap();
    assert!(report.worst().is_none_or(|worst| worst <= Severity::Leak), "{report:?}");
    let second = RepairPlan::new(Arc::new(file.duplicate()), &NO_FACTS).unwrap();
    assert!(
        second.is_empty(),
        "{damage:?}: a second repair finds {:?}",
        second.findings()
    );
    journal.undo(&*file).unwrap();
    assert_same(&file.to_vec(), damaged, "undone");
    if plan.is_empty() {
        Outcome::Sound
    } else {
        Outcome::Repaired
    }
}

fn assert_right(damage: &[Damage], plan: &RepairPlan, content: &[u8], expected: &[u8]) {
    let doubts = plan.doubts();
    let right = std::panic::catch_unwind(|| assert_right_outside(doubts, content, expected));
    assert!(right.is_ok(), "{damage:?}: {:?}, {:?}", plan.before(), plan.findings());
}

fn assert_lists_its_changes(plan: &RepairPlan, before: &[u8], after: &[u8]) {
    let listed = plan.journal().summary();
    let sectors = before.chunks(SECTOR).zip(after.chunks(SECTOR)).enumerate();
    // The last sector of a file that is not of whole ones becomes longer.
    let differ = |a: &[u8], b: &[u8]| a.iter().zip(b).any(|(a, b)| a != b);
    for (sector, _) in sectors.filter(|(_, (before, after))| differ(before, after)) {
        let (start, end) = (sector * SECTOR, (sector + 1) * SECTOR);
        let is_listed = listed
            .iter()
            .any(|change| usize_from(change.offset) < end && start < usize_from(change.offset + change.len));
        assert!(is_listed, "sector {sector} of the file changes, and is not listed");
    }
}

fn rounds() -> usize {
    let asked = std::env::var("VHD_REPAIR_DAMAGE").ok();
    asked.and_then(|count| count.parse().ok()).unwrap_or(1500)
}

#[test]
fn inv_16_random_damage_is_repaired_within_what_is_listed_or_refused() {
    let mut rng = seeded(0x24, "damage");
    let mut counts: BTreeMap<Outcome, u32> = BTreeMap::new();
    for _ in 0..rounds() {
        let mut subject = random_subject(&mut rng);
        let kinds: Vec<Damage> = if chance(&mut rng, 60) {
            vec![Damage::ALL[rng.usize(..Damage::ALL.len())]]
        } else {
            (0..rng.usize(2..5))
                .map(|_| Damage::ALL[rng.usize(..Damage::ALL.len())])
                .collect()
        };
        let kinds: Vec<Damage> = kinds.iter().map(|kind| kind.harm(&mut rng, &mut subject)).collect();
        *counts.entry(examine(&subject, &kinds)).or_default() += 1;
    }
    common::announce(&format!("repair of random damage: {counts:?}"));
    assert_eq!(counts.len(), 3, "{counts:?}");
}
