//! What `vhd check` reports of an image and its ancestors.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use vhd_core::check::{Finding, FindingCode, Severity};

use super::file::{Checked, Outlook, severity_name};
use crate::codes::Kind;
use crate::failure::Failure;
use crate::human;
use crate::output::path_text;
use crate::summed::Summed;

/// What was found in all files.
#[derive(Serialize)]
pub(super) struct Outcome {
    pub(super) image: String,
    pub(super) verdict: Verdict,
    pub(super) files: Vec<FileReport>,
    pub(super) findings: Vec<FindingReport>,
    pub(super) warnings: Vec<String>,
    /// The text lists everything; JSON always does.
    #[serde(skip)]
    pub(super) list_all: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Verdict {
    Clean,
    Leaks,
    Repairable,
    /// The chain is broken: a parent is missing, is another disk, or its own ancestor.
    Parent,
    Corrupt,
}

#[derive(Serialize)]
pub(super) struct FileReport {
    pub(super) path: String,
    format: &'static str,
    #[serde(rename = "type")]
    disk_type: Option<String>,
    virtual_size: Option<u64>,
    blocks: u64,
    allocated_blocks: u64,
    leaked_bytes: u64,
    /// What a repair of a damaged file would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    repair: Option<Outlook>,
}

#[derive(Serialize)]
pub(super) struct FindingReport {
    path: String,
    code: String,
    severity: &'static str,
    offset: Option<u64>,
    message: String,
}

impl Outcome {
    pub(super) fn add(&mut self, path: &Path, checked: Checked) {
        let Checked {
            format,
            report,
            outlook,
        } = checked;
        let path = path_text(path);
        self.files.push(FileReport {
            path: path.clone(),
            format: format.name(),
            disk_type: report.disk_type.map(|disk_type| disk_type.to_string()),
            virtual_size: report.disk_type.map(|_| report.disk_size),
            blocks: report.blocks,
            allocated_blocks: report.allocated_blocks,
            leaked_bytes: report.leaked_bytes,
            repair: outlook,
        });
        for finding in &report.findings {
            self.verdict = self.verdict.max(Verdict::of(finding.severity));
            self.findings.push(FindingReport::of(&path, finding));
        }
    }

    pub(super) fn add_failure(&mut self, path: &Path, verdict: Verdict, failure: &Failure) {
        self.verdict = self.verdict.max(verdict);
        self.findings.push(FindingReport {
            path: path_text(path),
            code: failure.kind().map_or("usage", |kind: Kind| kind.code().name).to_owned(),
            severity: severity_name(Severity::Corrupt),
            offset: None,
            message: failure.message().to_owned(),
        });
    }
}

impl Verdict {
    fn of(severity: Severity) -> Self {
        match severity {
            Severity::Corrupt => Self::Corrupt,
            Severity::Repairable => Self::Repairable,
            Severity::Leak => Self::Leaks,
            Severity::Note => Self::Clean,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Leaks => "leaked space only: no data is affected",
            Self::Repairable => "repairable",
            Self::Parent => "BROKEN CHAIN: a parent is missing or wrong; the images that were found are not corrupt",
            Self::Corrupt => "CORRUPT",
        }
    }
}

impl FindingReport {
    fn of(path: &str, finding: &Finding) -> Self {
        Self {
            path: path.to_owned(),
            code: finding.code.to_string(),
            severity: severity_name(finding.severity),
            offset: finding.offset,
            message: finding.message.clone(),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.files {
            file.fmt(f)?;
            let findings: Vec<&FindingReport> = self.findings.iter().filter(|found| found.path == file.path).collect();
            Summed { all: self.list_all }.write(f, &findings, |finding| &finding.code)?;
        }
        let orphans = FindingCode::OrphanBlocks.as_str();
        let text = match self.verdict {
            Verdict::Leaks if self.findings.iter().any(|finding| finding.code == orphans) => {
                "leaked space that holds what looks like blocks: vhd repair lists them"
            }
            verdict => verdict.text(),
        };
        write!(f, "{}: {text}", self.image)?;
        if let Some(outlook) = self.files.first().and_then(|file| file.repair) {
            write!(f, ": {}", outlook.text())?;
        }
        writeln!(f)
    }
}

impl fmt::Display for FileReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path)?;
        if let Some(disk_type) = &self.disk_type {
            write!(f, ": {disk_type}")?;
        }
        if let Some(size) = self.virtual_size {
            write!(f, ", {}", human::binary(size))?;
        }
        if self.blocks > 0 {
            write!(f, ", {} of {} blocks allocated", self.allocated_blocks, self.blocks)?;
        }
        if self.leaked_bytes > 0 {
            write!(f, ", {} leaked", human::binary(self.leaked_bytes))?;
        }
        writeln!(f)
    }
}

impl fmt::Display for FindingReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "  {} {}", self.severity, self.code)?;
        if let Some(offset) = self.offset {
            write!(f, " at {offset:#x}")?;
        }
        writeln!(f, ": {}", self.message.replace('\n', "\n  "))
    }
}
