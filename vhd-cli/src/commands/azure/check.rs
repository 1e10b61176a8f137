//! `vhd azure check`: every rule, kept or not.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use vhd_core::chain::{ChainError, ImageFormat, require_vhd};
use vhd_core::format::DiskType;
use vhd_core::image::Footers;
use vhd_core::ops::azure::{self, Outcome, Verdict};
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{SearchArgs, Source};
use crate::output::{self, ReportArgs};

pub(super) const NAME: &str = "azure check";

const EXAMPLES: &str = "\
Examples:
  vhd azure check upload.vhd
  vhd azure check --json upload.vhd | jq -r '.rules[] | select(.verdict != \"pass\") | .code'

The exit code is 0 if every rule is kept, and 3 if one is not. `vhd azure prepare` makes an image that keeps all.";

/// Arguments of `vhd azure check`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct CheckArgs {
    /// The image, or - for standard input
    image: PathBuf,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Serialize)]
struct RuleReport {
    code: &'static str,
    verdict: &'static str,
    found: String,
}

#[derive(Serialize)]
struct CheckReport {
    image: String,
    ready: bool,
    rules: Vec<RuleReport>,
}

impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for rule in &self.rules {
            writeln!(f, "{:<7}  {:<19}  {}", rule.verdict, rule.code, rule.found)?;
        }
        let ready = if self.ready {
            "ready for Azure"
        } else {
            "NOT ready for Azure"
        };
        writeln!(f, "{}: {ready}", self.image)
    }
}

impl RuleReport {
    fn of(outcome: Outcome) -> Self {
        Self {
            code: outcome.rule.code(),
            verdict: match outcome.verdict {
                Verdict::Pass => "pass",
                Verdict::Fail => "fail",
                Verdict::Unknown => "unknown",
            },
            found: outcome.found,
        }
    }
}

pub(super) fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let source = Source::new(&args.image, None)?;
    let sharing = if args.search.force_share {
        Sharing::Unlocked
    } else {
        Sharing::Exclusive
    };
    let file: Arc<dyn StorageFile> = Arc::new(HostFile::open(&source.path, Access::ReadOnly, sharing)?);
    match require_vhd(&*file, &source.path) {
        // What could be a raw disk is one that breaks the rules.
        Ok(()) | Err(ChainError::NotVhd { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    refuse_broken_chain(args, &source, &*file)?;
    let outcomes = azure::check(&file).map_err(|error| Failure::io("read", &source.path, &error))?;
    let report = CheckReport {
        image: source.name,
        ready: outcomes.iter().all(|outcome| outcome.verdict == Verdict::Pass),
        rules: outcomes.into_iter().map(RuleReport::of).collect(),
    };
    output::report(args.report, NAME, &report)?;
    Ok(if report.ready { Exit::Ok } else { Exit::Corrupt })
}

/// A differencing image is not for Azure, but one whose parent is missing is no disk at all.
fn refuse_broken_chain(args: &CheckArgs, source: &Source, file: &dyn StorageFile) -> Result<(), Failure> {
    let footers = Footers::read(file);
    if footers.is_ok_and(|footers| footers.footer.disk_type == DiskType::Differencing) {
        let options = args.search.options().format(Some(ImageFormat::Vhd));
        options.open(&source.path)?;
    }
    Ok(())
}
