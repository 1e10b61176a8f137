//! What a repair found, did or would do.

use std::fmt;

use serde::Serialize;
use vhd_core::ops::repair::{Certainty, ChangeSummary, Doubt, Journal, RepairFinding, RepairPlan};
use vhd_core::units::SECTOR_SIZE;

use crate::exit::Exit;
use crate::human;
use crate::summed::Summed;

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

    /// In words; `loss` is what is lost or in doubt, if anything is.
    fn text(self, loss: Option<&str>) -> String {
        match (self, loss) {
            (Self::Sound, None) => "nothing to repair".to_owned(),
            (Self::Sound, Some(loss)) => format!("nothing to repair; {loss}"),
            (Self::Repairable, None) => {
                "can be repaired, and nothing is lost; nothing was changed, --yes does it".to_owned()
            }
            (Self::Repairable, Some(loss)) => {
                format!("after a repair it opens again; {loss}; nothing was changed, --yes does it")
            }
            (Self::Repaired, None) => "repaired; --undo takes it back".to_owned(),
            (Self::Repaired, Some(loss)) => format!("opens again; {loss}; --undo takes the repair back"),
            (Self::Unfinished, _) => "a repair was interrupted: --yes finishes it, --undo takes it back".to_owned(),
            (Self::Undone, _) => "as it was before the repair".to_owned(),
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
    /// Sectors of the disk that are lost, and those that are in doubt without being lost.
    lost_sectors: u64,
    doubtful_sectors: u64,
    file_bytes_before: u64,
    file_bytes: u64,
    /// The text lists everything; JSON always does.
    #[serde(skip)]
    pub(super) list_all: bool,
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
    lost: bool,
    reason: String,
}

impl RepairJson {
    /// The report of a repair that was planned now.
    pub(super) fn of_plan(image: &str, verdict: Verdict, plan: &RepairPlan) -> Self {
        let (lost, doubtful) = plan.sectors_in_doubt();
        Self {
            findings: plan.findings().iter().map(FindingJson::from).collect(),
            doubts: plan.doubts().iter().map(DoubtJson::from).collect(),
            lost_sectors: lost,
            doubtful_sectors: doubtful,
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
            lost_sectors: 0,
            doubtful_sectors: 0,
            list_all: false,
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
            lost: doubt.lost,
            reason: doubt.reason.clone(),
        }
    }
}

impl fmt::Display for RepairJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summed = Summed { all: self.list_all };
        summed.write(f, &self.findings, |finding| finding.code)?;
        summed.write(f, &self.changes, |_| "changes")?;
        if self.file_bytes != self.file_bytes_before {
            let (before, after) = (human::bytes(self.file_bytes_before), human::bytes(self.file_bytes));
            writeln!(f, "  the file: {before} -> {after}")?;
        }
        summed.write(f, &self.doubts, |doubt| doubt.kind())?;
        let loss = human::loss(self.lost_sectors, self.doubtful_sectors);
        writeln!(f, "{}: {}", self.image, self.verdict.text(loss.as_deref()))
    }
}

impl fmt::Display for FindingJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let certainty = if self.certain { "certain" } else { "assumed" };
        write!(f, "  {certainty} {}", self.code)?;
        if let Some(offset) = self.offset {
            write!(f, " at {offset:#x}")?;
        }
        writeln!(f, ": {}", self.message)
    }
}

impl fmt::Display for ChangeJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            offset,
            bytes,
            old,
            new,
        } = self;
        writeln!(f, "  change {offset:#x}+{bytes:#x}: {old} -> {new}")
    }
}

impl DoubtJson {
    fn kind(&self) -> &'static str {
        if self.lost { "LOST" } else { "IN DOUBT" }
    }
}

impl fmt::Display for DoubtJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (first, last) = (self.first_lba, self.first_lba + self.sectors.saturating_sub(1));
        let sectors = human::count(self.sectors, "sector");
        writeln!(f, "  {} LBA {first}-{last} ({sectors}): {}", self.kind(), self.reason)
    }
}
