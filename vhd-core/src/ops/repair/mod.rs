//! Repair of damaged images: what can be known is put right, what can't be is told.
//!
//! ```text
//!   footer.rs, header.rs      what to go by: a valid one, a damaged one put right, a new one
//!   facts.rs, nested.rs       footers that do not count: those of images inside the disk, and what the caller knows
//!   tail.rs     the end of the file, and the footer there
//!   locators.rs, table.rs, overlap.rs, orphans.rs, bitmaps.rs      blocks, and the ways to the parent
//!   draft.rs    all of that on an overlay: the file is only read
//!   journal.rs  the overlay as a list of old and new bytes: the undo file
//!   apply.rs    the changes for real, finished or undone at any time
//! ```
//!
//! A repair never drops anything: what is in doubt stays readable and is listed ([`RepairPlan::doubts`]). A file becomes
//! shorter only by what stands behind the footer of a fixed image, and the undo file keeps that. docs/repair.md has the rules (INV-16, INV-17).

mod apply;
mod basis;
mod bitmaps;
mod draft;
mod error;
mod facts;
mod finding;
mod footer;
mod header;
mod journal;
mod locators;
mod nested;
mod orphans;
mod overlap;
mod scene;
mod summary;
mod table;
mod tail;
mod undo_file;

use std::sync::Arc;

pub use apply::JournalState;
pub use error::RepairError;
pub use facts::Facts;
pub use finding::{Certainty, Doubt, RepairCode, RepairFinding};
pub use journal::Journal;
pub use summary::{ByteSummary, ChangeSummary};
pub use undo_file::UndoFile;

use crate::check::{CheckReport, FindingCode, Severity, check};
use crate::device::ByteRange;
use crate::image::{Image, OpenMode};
use crate::storage::{OverlayFile, StorageFile};
use crate::units::SECTOR_SIZE;
use basis::Basis;
use draft::Draft;
use error::Doing as _;

/// What a repair is going to do, as data. Nothing was changed yet.
#[derive(Debug)]
pub struct RepairPlan {
    findings: Vec<RepairFinding>,
    doubts: Vec<Doubt>,
    journal: Journal,
    before: CheckReport,
    after: CheckReport,
    overlay: Arc<OverlayFile>,
}

impl RepairPlan {
    /// Looks for damage in the image in `file`, its parents excluded, and for what it was before. The file is only
    /// read.
    ///
    /// # Errors
    /// [`RepairError`]: nothing tells what the image was, or the file can't be read.
    pub fn new(file: Arc<dyn StorageFile>, facts: &Facts) -> Result<Self, RepairError> {
        let before = checked(&*file)?;
        let mut draft = Draft::new(file)?;
        if footer::contradicts(&draft, facts)? || before.worst().is_some_and(|worst| worst > Severity::Leak) {
            repair(&mut draft, facts)?;
        } else if before.leaked_bytes > 0 {
            list_orphans(&mut draft, facts)?;
        }
        let after = checked(&*draft.overlay)?;
        assert_repaired(&draft, &after)?;
        Ok(Self {
            journal: Journal::of(&draft.overlay)?,
            findings: std::mem::take(&mut draft.findings),
            doubts: draft.sorted_doubts(),
            before,
            after,
            overlay: draft.overlay,
        })
    }

    /// What was found, and what is done about it.
    #[must_use]
    pub fn findings(&self) -> &[RepairFinding] {
        &self.findings
    }

    /// The ranges of the disk whose content is not certain after the repair.
    #[must_use]
    pub fn doubts(&self) -> &[Doubt] {
        &self.doubts
    }

    /// How many sectors of the disk are lost, and how many are in doubt without being lost; each is counted once.
    #[must_use]
    pub fn sectors_in_doubt(&self) -> (u64, u64) {
        let lost = finding::sectors(self.doubts.iter().filter(|doubt| doubt.lost));
        (lost, finding::sectors(self.doubts.iter()) - lost)
    }

    /// The changes.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// What a check finds before the repair.
    #[must_use]
    pub fn before(&self) -> &CheckReport {
        &self.before
    }

    /// What a check finds after the repair.
    #[must_use]
    pub fn after(&self) -> &CheckReport {
        &self.after
    }

    /// The image as it is after the repair, to be read.
    #[must_use]
    pub fn repaired(&self) -> Arc<OverlayFile> {
        Arc::clone(&self.overlay)
    }

    /// There is nothing to repair.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.journal.is_empty()
    }
}

fn checked(file: &dyn StorageFile) -> Result<CheckReport, RepairError> {
    match check(file) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Err(RepairError::hopeless(error.to_string())),
        checked => checked.doing("check", 0),
    }
}

/// Nothing is to be repaired, but the table may lack entries: what could be blocks of the disk is listed.
fn list_orphans(draft: &mut Draft, facts: &Facts) -> Result<(), RepairError> {
    let mut basis = footer::find(draft, facts)?;
    let located = header::find(draft, &mut basis)?;
    table::list_orphans(draft, &basis, &located)
}

fn repair(draft: &mut Draft, facts: &Facts) -> Result<(), RepairError> {
    let mut basis = footer::find(draft, facts)?;
    if !basis.footer.disk_type.is_sparse() {
        let size = fixed_size(draft, &mut basis, facts)?;
        return tail::settle_fixed(draft, &basis, size);
    }
    let mut located = header::find(draft, &mut basis)?;
    let end = table::repair(draft, &basis, &mut located)?;
    bitmaps::restore(draft, &basis, &located)?;
    tail::settle(draft, &basis, end)
}

/// Where the disk of a fixed image ends: what its footer says, if the file has as much; else where the footer stands,
/// if that is what the footer says elsewhere or the caller does.
fn fixed_size(draft: &mut Draft, basis: &mut Basis, facts: &Facts) -> Result<u64, RepairError> {
    let (size, len) = (basis.footer.current_size, draft.original_len);
    let end = tail::Tail::of(draft)?.space_end(len);
    if size <= end {
        return Ok(size);
    }
    if basis.footer.original_size == end {
        let message = format!("the footer says {size} bytes, and that there were {end} at first: so many are there");
        draft.found(RepairCode::DiskSize, Certainty::Assumed, Some(end), message);
        basis.change(|footer| footer.current_size = end);
        return Ok(end);
    }
    match facts.size {
        Some(said) if said == size => {
            let lost = end / SECTOR_SIZE * SECTOR_SIZE;
            let message = format!("the file has {end} bytes of the disk of {size}: zeroes complete it");
            draft.found(RepairCode::BlockCompleted, Certainty::Certain, Some(end), message);
            draft.lose(
                ByteRange::new(lost, size - lost),
                "the file ended here: it reads zero".to_owned(),
            );
            Ok(size)
        }
        Some(said) if said == end => {
            draft.found(
                RepairCode::DiskSize,
                Certainty::Certain,
                Some(end),
                format!("the disk has {end} bytes"),
            );
            basis.change(|footer| footer.current_size = end);
            Ok(end)
        }
        _ => {
            let known = format!("the footer says {size} bytes, of which the file has {end}");
            Err(RepairError::SizeUnknown { known })
        }
    }
}

/// After a repair the image opens, and a check finds nothing but leaked space (and hidden bytes that are too many to
/// be cleared).
fn assert_repaired(draft: &Draft, after: &CheckReport) -> Result<(), RepairError> {
    let left = after
        .findings
        .iter()
        .find(|finding| finding.severity > Severity::Leak && finding.code != FindingCode::StaleSectors);
    if let Some(finding) = left {
        return Err(RepairError::hopeless(format!("{}: {}", finding.code, finding.message)));
    }
    match Image::open(Arc::clone(&draft.overlay) as _, &OpenMode::read_only()) {
        Ok(_) => Ok(()),
        Err(error) => Err(RepairError::of_host(error).unwrap_or_else(|| RepairError::hopeless("it can't be opened"))),
    }
}
