//! Each damaged image is repaired, or refused.

use std::sync::Arc;

use crate::common::build::SECTOR;
use crate::common::disk::{assert_same, disk_of, parent_layer, read_all};
use crate::mutations::{Mutation, Subject};
use vhd_core::ErrorKind;
use vhd_core::check::{Severity, check};
use vhd_core::device::Layer;
use vhd_core::image::{Image, OpenMode};
use vhd_core::ops::repair::{Doubt, Facts, Journal, RepairPlan};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::u64_from;

/// Disks up to this size are read whole.
const SMALL: u64 = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mended {
    Sound,
    Repaired,
    Refused,
}

/// Repairs an image. Planning changes nothing; what is repaired is sound by the checker's verdict, and unless it is in doubt
/// reads whatever it read before, and what the damage can't have touched; undone, it is what it was.
pub(crate) fn mend(subject: &Subject, bytes: &[u8], mutation: Mutation) -> Mended {
    let file = Arc::new(MemoryFile::from_bytes(bytes.to_vec()));
    let plan = RepairPlan::new(Arc::clone(&file) as _, &Facts::default());
    assert_same(&file.to_vec(), bytes, "planning changes nothing");
    let plan = match plan {
        Ok(plan) if plan.is_empty() => return Mended::Sound,
        Ok(plan) => plan,
        Err(error) => {
            assert!(
                matches!(error.kind(), ErrorKind::NotRepairable | ErrorKind::FactsMissing),
                "{error:?}"
            );
            assert!(
                read(subject, Arc::clone(&file) as _).is_none(),
                "it can be read: {error}"
            );
            return Mended::Refused;
        }
    };
    let before = read(subject, Arc::new(file.duplicate()));
    let journal = Journal::decode(&plan.journal().encode()).expect("just encoded");
    journal.apply(&*file).expect("memory can be written");
    let report = check(&*file).expect("memory can be read");
    assert!(report.worst().is_none_or(|worst| worst <= Severity::Leak), "{report:?}");
    let after = read(subject, Arc::clone(&file) as _).expect("what is repaired opens");
    if let (Some(Some(before)), Some(after)) = (&before, &after) {
        assert_right_outside(plan.doubts(), after, before);
    }
    if let (None, Some(after), true) = (&before, &after, mutation.is_told_by_a_checksum(subject)) {
        assert_right_outside(plan.doubts(), after, &subject.content);
    }
    journal.undo(&*file).expect("memory can be written");
    assert_same(&file.to_vec(), bytes, "undone");
    Mended::Repaired
}

/// The content of an image that opens: `None` for a large one.
#[expect(clippy::option_option, reason = "it opens or not, and is small or not")]
fn read(subject: &Subject, file: Arc<dyn StorageFile>) -> Option<Option<Vec<u8>>> {
    let image = Image::open(file, &OpenMode::read_only()).ok()?;
    let parent = image.is_differencing().then(|| match &subject.parent {
        Some(parent) => parent_layer(parent.clone()),
        None => Layer::raw(Arc::new(MemoryFile::new())).expect("memory has a length"),
    });
    let disk = disk_of(image, parent.into_iter().collect());
    Some((disk.size() <= SMALL).then(|| read_all(&disk)))
}

fn assert_right_outside(doubts: &[Doubt], content: &[u8], expected: &[u8]) {
    assert_eq!(content.len(), expected.len(), "the size of the disk");
    for (sector, (now, was)) in content.chunks(SECTOR).zip(expected.chunks(SECTOR)).enumerate() {
        let at = u64_from(sector * SECTOR);
        let doubted = doubts
            .iter()
            .any(|doubt| (doubt.range.start..doubt.range.end()).contains(&at));
        assert!(doubted || now == was, "sector {sector} is wrong and not in doubt");
    }
}
