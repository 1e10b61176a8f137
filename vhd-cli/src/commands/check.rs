//! `vhd check`: whether an image and its ancestors keep the rules of the format.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use vhd_core::chain::{ChainError, ChainWarning, ImageFormat, foreign, require_vhd};
use vhd_core::check::{CheckReport, Finding, FindingCode, Severity, check};
use vhd_core::format::DiskType;
use vhd_core::ops::repair::{Facts, RepairPlan};
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile};

use super::several::Several;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::input::{ChainArgs, Source, SourceArgs};
use crate::output::{self, ReportArgs, path_text};
use crate::summed::Summed;

pub(crate) const NAME: &str = "check";

const EXAMPLES: &str = "\
Examples:
  vhd check disk.vhd
  vhd check snapshot.avhd --parent-dir /backup
  vhd check --json disk.vhd | jq -r '.findings[].code'

Nothing is changed. The exit code is 0 when nothing was found or notes alone, 3 when something is corrupt (an ancestor \
included), 6 when the files that are there are not, but an ancestor is missing, another disk or its own ancestor, 4 when \
there is only leaked space or damage that loses nothing, 8 when the file is not a VHD, and 1 when the check could not \
run.";

/// Arguments of `vhd check`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CheckArgs {
    /// The images, or - for standard input
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    chain: ChainArgs,
    /// List each finding, however many there are
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// What was found in all files.
#[derive(Serialize)]
struct Outcome {
    image: String,
    verdict: Verdict,
    files: Vec<FileReport>,
    findings: Vec<FindingReport>,
    warnings: Vec<String>,
    /// The text lists everything; JSON always does.
    #[serde(skip)]
    list_all: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Clean,
    Leaks,
    Repairable,
    /// The chain is broken: a parent is missing, is another disk, or its own ancestor.
    Parent,
    Corrupt,
}

#[derive(Serialize)]
struct FileReport {
    path: String,
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
struct FindingReport {
    path: String,
    code: String,
    severity: &'static str,
    offset: Option<u64>,
    message: String,
}

pub(crate) fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let several = Several {
        images: &args.images,
        name: NAME,
        report: args.report,
    };
    several.each(|image| check_chain(args, image))
}

fn check_chain(args: &CheckArgs, image: &Path) -> Result<Exit, Failure> {
    let source = Source::new(image, None)?;
    let mut outcome = Outcome {
        image: source.name.clone(),
        verdict: Verdict::Clean,
        files: Vec::new(),
        findings: Vec::new(),
        warnings: Vec::new(),
        list_all: args.verbose,
    };
    let leaf = check_file(args, &source.path)?;
    let differencing = leaf.report.disk_type == Some(DiskType::Differencing);
    let format = leaf.format;
    outcome.add(&source.path, leaf);
    if differencing {
        check_ancestors(args, &source, format, &mut outcome)?;
    }
    output::report(args.report, NAME, &outcome)?;
    Ok(match outcome.verdict {
        Verdict::Clean => Exit::Ok,
        Verdict::Leaks | Verdict::Repairable => Exit::Repairable,
        Verdict::Parent => Exit::Parent,
        Verdict::Corrupt => Exit::Corrupt,
    })
}

fn check_file(args: &CheckArgs, path: &Path) -> Result<Checked, Failure> {
    let sharing = if args.chain.search.force_share {
        Sharing::Unlocked
    } else {
        Sharing::Exclusive
    };
    let file = Arc::new(HostFile::open(path, Access::ReadOnly, sharing)?);
    match require_vhd(&*file, path) {
        Ok(()) => {}
        Err(ChainError::ReadOnlyFormat { format, .. }) => {
            let format = format.readable().unwrap_or(ImageFormat::Raw);
            return check_foreign(&(file as _), path, format);
        }
        Err(error) => return Err(error.into()),
    }
    let report = check_storage(&*file, path)?;
    let outlook = report
        .worst()
        .filter(|worst| *worst >= Severity::Repairable)
        .map(|_| Outlook::of(file));
    Ok(Checked {
        format: ImageFormat::Vhd,
        report,
        outlook,
    })
}

/// An image of another program.
fn check_foreign(file: &Arc<dyn StorageFile>, path: &Path, format: ImageFormat) -> Result<Checked, Failure> {
    Ok(Checked {
        format,
        report: foreign::check(file, path)?,
        outlook: None,
    })
}

/// What a repair would do.
#[derive(Clone, Copy, Serialize)]
struct Outlook {
    opens: bool,
    lost_sectors: u64,
    doubtful_sectors: u64,
}

impl Outlook {
    /// By the plan of a repair, which reads the file and changes nothing.
    fn of(file: Arc<HostFile>) -> Self {
        let plan = RepairPlan::new(file, &Facts::default()).ok();
        let (lost_sectors, doubtful_sectors) = plan.as_ref().map_or((0, 0), RepairPlan::sectors_in_doubt);
        Self {
            opens: plan.is_some(),
            lost_sectors,
            doubtful_sectors,
        }
    }

    fn text(self) -> String {
        match (self.opens, human::loss(self.lost_sectors, self.doubtful_sectors)) {
            (false, _) => "vhd repair says what is missing to put it right".to_owned(),
            (true, None) => "after vhd repair it opens, and no data is lost".to_owned(),
            (true, Some(loss)) => format!("after vhd repair it opens again; {loss}, which it lists"),
        }
    }
}

/// A file that was looked at.
struct Checked {
    format: ImageFormat,
    report: CheckReport,
    outlook: Option<Outlook>,
}

impl From<CheckReport> for Checked {
    fn from(report: CheckReport) -> Self {
        Self {
            format: ImageFormat::Vhd,
            report,
            outlook: None,
        }
    }
}

fn check_storage(file: &dyn StorageFile, path: &Path) -> Result<CheckReport, Failure> {
    check(file).map_err(|error| Failure::io("read", path, &error))
}

fn check_ancestors(
    args: &CheckArgs,
    source: &Source,
    format: ImageFormat,
    outcome: &mut Outcome,
) -> Result<(), Failure> {
    let chain = args.chain.clone();
    let options = SourceArgs { from: None, chain }.reading_options(source);
    let mut found = Vec::new();
    match options.format(Some(format)).open_noting(&source.path, &mut found) {
        Ok(opened) => {
            for layer in opened.layers().skip(1) {
                if layer.layer.image().is_some() {
                    outcome.add(layer.path, check_storage(layer.layer.file(), layer.path)?.into());
                }
            }
            for (path, _) in opened.foreign_layers().skip(1) {
                outcome.add(path, check_file(args, path)?);
            }
            for warning in opened.warnings().iter().filter(|warning| is_about_parents(warning)) {
                output::warning(warning);
                outcome.warnings.push(warning.to_string());
            }
            Ok(())
        }
        Err(error) => {
            for ancestor in found.iter().skip(1) {
                outcome.add(ancestor, check_file(args, ancestor)?);
            }
            add_chain_error(args, error, outcome)
        }
    }
}

/// The others are findings of the check.
fn is_about_parents(warning: &ChainWarning) -> bool {
    matches!(
        warning,
        ChainWarning::ParentTimestamp { .. } | ChainWarning::ParentSize { .. } | ChainWarning::JobOpen { .. }
    )
}

/// What is wrong with the chain is a finding; what kept it from being looked at is a failure.
fn add_chain_error(args: &CheckArgs, error: ChainError, outcome: &mut Outcome) -> Result<(), Failure> {
    let at = match &error {
        ChainError::Image { path, .. } | ChainError::ForeignImage { path, .. } | ChainError::TooDeep { path, .. } => {
            path.clone()
        }
        ChainError::ParentMissing { child, .. }
        | ChainError::ParentMismatch { child, .. }
        | ChainError::Cycle { child, .. } => child.clone(),
        _ => return Err(error.into()),
    };
    let is_damage = matches!(error, ChainError::Image { .. } | ChainError::ForeignImage { .. });
    let failure = Failure::from(error);
    let verdict = match failure.exit() {
        Exit::Corrupt => Verdict::Corrupt,
        Exit::Parent => Verdict::Parent,
        _ => return Err(failure),
    };
    let name = path_text(&at);
    if outcome.files.iter().all(|file| file.path != name) {
        outcome.add(&at, check_file(args, &at)?);
    }
    // A damaged file's own findings say more, but the chain may be stricter than they are.
    if !is_damage || outcome.verdict != Verdict::Corrupt {
        outcome.add_failure(&at, verdict, &failure);
    }
    Ok(())
}

impl Outcome {
    fn add(&mut self, path: &Path, checked: Checked) {
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

    fn add_failure(&mut self, path: &Path, verdict: Verdict, failure: &Failure) {
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

fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Corrupt => "corrupt",
        Severity::Repairable => "repairable",
        Severity::Leak => "leak",
        Severity::Note => "note",
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
