//! Images to damage, and what must hold of every repair.

use std::sync::Arc;

use crate::common::build::{Laid, Parent, SECTOR, Sparse, fixed, id};
use crate::common::disk::{assert_same, disk_of, parent_layer, read_all};
use crate::common::rng::{random_bytes, seeded};
use vhd_core::ErrorKind;
use vhd_core::check::{Severity, check};
use vhd_core::image::{Image, OpenMode};
use vhd_core::ops::repair::{Doubt, Facts, Journal, JournalState, RepairCode, RepairError, RepairPlan};
use vhd_core::storage::{MemoryFile, StorageFile};
use vhd_core::units::{u64_from, usize_from};

pub(crate) const BLOCK: usize = 64 << 10;
pub(crate) const BLOCKS: usize = 6;
pub(crate) const NO_FACTS: Facts = Facts {
    size: None,
    disk_type: None,
};

/// An image, what is below it, and what it reads.
#[derive(Clone)]
pub(crate) struct Subject {
    pub(crate) laid: Laid,
    pub(crate) parent: Option<Vec<u8>>,
    pub(crate) content: Vec<u8>,
}

impl Subject {
    pub(crate) fn new(image: &Sparse, parent: Option<Vec<u8>>) -> Self {
        Self {
            laid: image.lay(),
            content: image.flat(parent.as_deref().unwrap_or_default()),
            parent,
        }
    }

    /// Every block is there, in the order of the disk, as conversions write them.
    pub(crate) fn dynamic() -> Self {
        let mut rng = seeded(0x10, "dynamic");
        let spec = Sparse::new(u64_from(BLOCKS * BLOCK), BLOCK);
        Self::new(
            &(0..BLOCKS).fold(spec, |spec, index| spec.store_whole(&mut rng, index)),
            None,
        )
    }

    /// Some blocks are there, in another order; what is absent is the parent's.
    pub(crate) fn child() -> Self {
        let mut rng = seeded(0x11, "child");
        let size = BLOCKS * BLOCK - 3 * SECTOR;
        let below = random_bytes(&mut rng, size);
        let spec = Sparse::child(u64_from(size), BLOCK, id(2), Parent::named(id(1), "parent.vhd"));
        let spec = spec
            .store_whole(&mut rng, 5)
            .store_whole(&mut rng, 1)
            .store_whole(&mut rng, 3);
        Self::new(&spec, Some(below))
    }

    pub(crate) fn read(&self, file: Arc<dyn StorageFile>) -> Vec<u8> {
        let image = Image::open(file, &OpenMode::read_only()).unwrap();
        let below = self.parent.iter().map(|content| parent_layer(fixed(content, id(1))));
        read_all(&disk_of(image, below.collect()))
    }

    /// Damages a copy of the image, repairs it and reads it.
    pub(crate) fn mend(&self, damage: impl FnOnce(&mut Laid)) -> Mended {
        let mut laid = self.laid.clone();
        damage(&mut laid);
        let (plan, bytes) = mend(&laid.bytes, &NO_FACTS).unwrap_or_else(|error| panic!("{error}"));
        let content = self.read(Arc::new(MemoryFile::from_bytes(bytes.clone())));
        Mended { plan, bytes, content }
    }

    /// Damages a copy of the image, repairs it, and expects what it was, as sure as can be.
    pub(crate) fn mends(&self, what: &str, damage: impl FnOnce(&mut Laid)) -> Mended {
        let mended = self.mend(damage);
        assert!(!mended.plan.is_empty(), "{what}: nothing was found");
        assert_same(&mended.content, &self.content, what);
        assert_eq!(mended.plan.doubts(), [], "{what}");
        mended
    }
}

pub(crate) struct Mended {
    pub(crate) plan: RepairPlan,
    pub(crate) bytes: Vec<u8>,
    pub(crate) content: Vec<u8>,
}

impl Mended {
    pub(crate) fn has(&self, code: RepairCode) -> bool {
        self.plan.findings().iter().any(|finding| finding.code == code)
    }

    /// Outside what is in doubt everything is as it was.
    pub(crate) fn assert_right_outside_doubts(&self, expected: &[u8]) {
        assert_right_outside(self.plan.doubts(), &self.content, expected);
    }
}

pub(crate) fn assert_right_outside(doubts: &[Doubt], content: &[u8], expected: &[u8]) {
    assert_eq!(content.len(), expected.len());
    for (sector, (now, before)) in content.chunks(SECTOR).zip(expected.chunks(SECTOR)).enumerate() {
        let at = u64_from(sector * SECTOR);
        let doubted = doubts
            .iter()
            .any(|doubt| (doubt.range.start..doubt.range.end()).contains(&at));
        assert!(
            doubted || now == before,
            "sector {sector} is wrong, and not in doubt: {doubts:?}"
        );
    }
}

/// Plans, applies, checks and undoes a repair. The plan changes nothing, what is applied is what was planned, and
/// what is undone is what was there.
pub(crate) fn mend(damaged: &[u8], facts: &Facts) -> Result<(RepairPlan, Vec<u8>), RepairError> {
    let file = Arc::new(MemoryFile::from_bytes(damaged.to_vec()));
    let plan = RepairPlan::new(Arc::clone(&file) as _, facts);
    assert_same(&file.to_vec(), damaged, "planning changes nothing");
    let plan = plan?;
    assert_applies(&plan, &file, damaged);
    Ok((plan, file.to_vec()))
}

pub(crate) fn assert_applies(plan: &RepairPlan, file: &Arc<MemoryFile>, damaged: &[u8]) {
    let journal = Journal::decode(&plan.journal().encode()).unwrap();
    let undone = file.duplicate();
    journal.apply(&**file).unwrap();
    let mut planned = vec![0; usize_from(plan.repaired().len().unwrap())];
    plan.repaired_over(damaged, &mut planned);
    assert_same(&file.to_vec(), &planned, "what is applied is what was planned");
    let report = check(&**file).unwrap();
    assert!(report.worst().is_none_or(|worst| worst <= Severity::Leak), "{report:?}");
    assert_eq!(journal.state(&**file).unwrap(), JournalState::Complete);
    journal.apply(&undone).unwrap();
    journal.undo(&undone).unwrap();
    assert_same(&undone.to_vec(), damaged, "undone");
}

/// Reads what was planned: the plan's own view is over the file, which has changed since.
pub(crate) trait OverOriginal {
    fn repaired_over(&self, damaged: &[u8], planned: &mut [u8]);
}

impl OverOriginal for RepairPlan {
    fn repaired_over(&self, damaged: &[u8], planned: &mut [u8]) {
        use vhd_core::storage::OverlaySource;
        let kept = damaged.len().min(planned.len());
        planned[..kept].copy_from_slice(&damaged[..kept]);
        for change in self.repaired().changes() {
            let at = usize_from(change.offset);
            let range = at..at + usize_from(change.len);
            match change.source {
                OverlaySource::Bytes(bytes) => planned[range].copy_from_slice(&bytes),
                OverlaySource::Zero => planned[range].fill(0),
                OverlaySource::Base(from) => {
                    planned[range].copy_from_slice(&damaged[usize_from(from)..usize_from(from + change.len)]);
                }
            }
        }
    }
}

pub(crate) fn error(damaged: &[u8]) -> ErrorKind {
    mend(damaged, &NO_FACTS).expect_err("nothing to repair it by").kind()
}
