//! `vhd check`: whether an image and its ancestors keep the rules of the format.

mod file;
mod report;

use std::path::{Path, PathBuf};

use clap::Args;
use vhd_core::chain::{ChainError, ChainWarning, ImageFormat};
use vhd_core::format::DiskType;
use vhd_core::storage::Sharing;

pub(crate) use file::{Checked, Outlook, check_file, severity_name};

use super::several::Several;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ChainArgs, Source, SourceArgs};
use crate::output::{self, ReportArgs, path_text};
use file::check_storage;
use report::{Outcome, Verdict};

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

impl CheckArgs {
    fn sharing(&self) -> Sharing {
        match self.chain.search.force_share {
            true => Sharing::Unlocked,
            false => Sharing::Exclusive,
        }
    }
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
    let leaf = check_file(&source.path, args.sharing())?;
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
                outcome.add(path, check_file(path, args.sharing())?);
            }
            for warning in opened.warnings().iter().filter(|warning| is_about_parents(warning)) {
                output::warning(warning);
                outcome.warnings.push(warning.to_string());
            }
            Ok(())
        }
        Err(error) => {
            for ancestor in found.iter().skip(1) {
                outcome.add(ancestor, check_file(ancestor, args.sharing())?);
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
        outcome.add(&at, check_file(&at, args.sharing())?);
    }
    // A damaged file's own findings say more, but the chain may be stricter than they are.
    if !is_damage || outcome.verdict != Verdict::Corrupt {
        outcome.add_failure(&at, verdict, &failure);
    }
    Ok(())
}
