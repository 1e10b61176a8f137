//! What a repair found, did or would do.

use std::fmt;

use serde::Serialize;
use vhd_core::ops::repair::{Certainty, ChangeSummary, Doubt, Journal, RepairFinding, RepairPlan};
use vhd_core::units::SECTOR_SIZE;

use crate::exit::Exit;
use crate::human;

/// How it stands with the image.
#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    /// Nothing is to be repaired.
    Sound,
    /// It can be repaired, and was not.
    Repairable,
    /// It was repaired.
    Repaired,
    /// An earlier repair was interrupted, and was not finished.
    Unfinished,
    /// An earlier repair was taken back.
    Undone,
}

impl Verdict {
    pub(super) fn exit(self) -> Exit {
        match self {
            Self::Sound | Self::Repaired | Self::Undone => Exit::Ok,
            Self::Repairable | Self::Unfinished => Exit::Repairable,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Sound => "nothing to repair",
            Self::Repairable => "can be repaired; nothing was changed, --yes does it",
            Self::Repaired => "repaired; --undo takes it back",
            Self::Unfinished => "a repair was interrupted: --yes finishes it, --undo takes it back",
            Self::Undone => "as it was before the repair",
        }
    }
}

#[derive(Serialize)]
pub(super) struct RepairJson {
    image: String,
    verdict: Verdict,
    findings: Vec<FindingJson>,
    changes: Vec<ChangeJson>,
    /// Ranges of the disk whose content is not certain after the repair.
    doubts: Vec<DoubtJson>,
    file_bytes_before: u64,
    file_bytes: u64,
}

#[derive(Serialize)]
struct FindingJson {
    code: &'static str,
    certain: bool,
    offset: Option<u64>,
    message: String,
}

#[derive(Serialize)]
struct ChangeJson {
    offset: u64,
    bytes: u64,
    old: String,
    new: String,
}

#[derive(Serialize)]
struct DoubtJson {
    first_lba: u64,
    sectors: u64,
    reason: String,
}

impl RepairJson {
    /// The report of a repair that was planned now.
    pub(super) fn of_plan(image: &str, verdict: Verdict, plan: &RepairPlan) -> Self {
        Self {
            findings: plan.findings().iter().map(FindingJson::from).collect(),
            doubts: plan.doubts().iter().map(DoubtJson::from).collect(),
            ..Self::of_journal(image, verdict, plan.journal())
        }
    }

    /// The report of a repair that was planned earlier: what it changes is in its undo file.
    pub(super) fn of_journal(image: &str, verdict: Verdict, journal: &Journal) -> Self {
        let (before, after) = (journal.original_len(), journal.new_len());
        let undone = verdict == Verdict::Undone;
        Self {
            image: image.to_owned(),
            verdict,
            findings: Vec::new(),
            changes: journal.summary().iter().map(ChangeJson::from).collect(),
            doubts: Vec::new(),
            file_bytes_before: if undone { after } else { before },
            file_bytes: if undone { before } else { after },
        }
    }
}

impl From<&RepairFinding> for FindingJson {
    fn from(finding: &RepairFinding) -> Self {
        Self {
            code: finding.code.as_str(),
            certain: finding.certainty == Certainty::Certain,
            offset: finding.offset,
            message: finding.message.clone(),
        }
    }
}

impl From<&ChangeSummary> for ChangeJson {
    fn from(change: &ChangeSummary) -> Self {
        Self {
            offset: change.offset,
            bytes: change.len,
            old: change.old.to_string(),
            new: change.new.to_string(),
        }
    }
}

impl From<&Doubt> for DoubtJson {
    fn from(doubt: &Doubt) -> Self {
        Self {
            first_lba: doubt.range.start / SECTOR_SIZE,
            sectors: doubt.range.len / SECTOR_SIZE,
            reason: doubt.reason.clone(),
        }
    }
}

impl fmt::Display for RepairJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let certainty = if finding.certain { "certain" } else { "assumed" };
            write!(f, "  {certainty} {}", finding.code)?;
            if let Some(offset) = finding.offset {
                write!(f, " at {offset:#x}")?;
            }
            writeln!(f, ": {}", finding.message)?;
        }
        for change in &self.changes {
            let ChangeJson {
                offset,
                bytes,
                old,
                new,
            } = change;
            writeln!(f, "  change {offset:#x}+{bytes:#x}: {old} -> {new}")?;
        }
        if self.file_bytes != self.file_bytes_before {
            let (before, after) = (human::bytes(self.file_bytes_before), human::bytes(self.file_bytes));
            writeln!(f, "  the file: {before} -> {after}")?;
        }
        for doubt in &self.doubts {
            let last = doubt.first_lba + doubt.sectors.saturating_sub(1);
            let sectors = human::count(doubt.sectors, "sector");
            writeln!(
                f,
                "  IN DOUBT LBA {}-{last} ({sectors}): {}",
                doubt.first_lba, doubt.reason
            )?;
        }
        writeln!(f, "{}: {}", self.image, self.verdict.text())
    }
}
