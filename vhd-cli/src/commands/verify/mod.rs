//! `vhd verify`: whether an ancestor changed since its digests were recorded.

mod report;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use clap::Args;
use vhd_core::ErrorKind;
use vhd_core::chain::{ChainLayer, OpenedDisk};
use vhd_core::ops::verify::{self, Verdict, VerifyError, VerifyOptions, record_path};

use super::ranges::RangeList;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ChainArgs, Source, SourceArgs, is_dash};
use crate::interrupt;
use crate::output::{self, ReportArgs, path_text};
use crate::progress::ProgressArgs;
use report::{LayerJson, LayerVerdict, VerifyJson};

pub(crate) const NAME: &str = "verify";

const EXAMPLES: &str = "\
Examples:
  vhd verify snapshot.avhd --record
  vhd verify snapshot.avhd
  vhd verify base.vhd --include-image --record
  vhd verify --json snapshot.avhd | jq '.layers[] | select(.verdict == \"changed\")'

A parent that is written after its child was made corrupts the child in silence. --record writes the digests of every \
ancestor beside its file, as FILE.digest; later runs read the ancestors and say which changed and where. A record is \
of what one file holds: compaction, relinking and new time stamps do not change it, and writes to a child do not \
count for its parent. The image itself is looked at if it has a record.

The exit code is 0 when every ancestor has a record and is unchanged, 5 when one changed (VHD-E0413), 3 when a record \
is damaged (VHD-E0123), and 8 when one is of another disk (VHD-E0124) or missing (VHD-E0120): then nothing is known of \
that ancestor, and that is no success.";

/// Arguments of `vhd verify`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VerifyArgs {
    /// The image whose ancestors are verified
    image: PathBuf,
    /// Record what every ancestor without a record holds now, instead of verifying
    #[arg(long, conflicts_with_all = ["fast", "allow_missing"])]
    record: bool,
    /// Replace the records that are there, too: what the files hold now counts as right
    #[arg(long, requires = "record")]
    update: bool,
    /// Treat the image itself like its ancestors
    #[arg(long)]
    include_image: bool,
    /// Do not read a file whose length and modification time are as recorded: fast, and no proof
    #[arg(long)]
    fast: bool,
    /// Ancestors without a record do not count, if there is a record at all
    #[arg(long)]
    allow_missing: bool,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

pub(crate) fn run(args: &VerifyArgs) -> Result<Exit, Failure> {
    if is_dash(&args.image) {
        return Err(Failure::usage("records are beside files: standard input has none"));
    }
    let source = Source::new(&args.image, None)?;
    let chain = args.chain.clone();
    let opened = SourceArgs { from: None, chain }.open_native(&source)?;
    let cancel = interrupt::flag_on_interrupt();
    let job = Job {
        args,
        opened: &opened,
        cancel: &cancel,
    };
    let json = VerifyJson {
        image: source.name.clone(),
        mode: if args.record { "record" } else { "verify" },
        layers: job.layers()?,
        warnings: opened.warnings().iter().map(ToString::to_string).collect(),
    };
    output::report(args.report, NAME, &json)?;
    match outcome(args, json) {
        None => Ok(Exit::Ok),
        Some(failure) => Err(failure.reported()),
    }
}

struct Job<'a> {
    args: &'a VerifyArgs,
    opened: &'a OpenedDisk,
    cancel: &'a AtomicBool,
}

impl Job<'_> {
    /// Verifies or records every layer in question, nearest first.
    fn layers(&self) -> Result<Vec<LayerJson>, Failure> {
        let mut layers = Vec::new();
        for (depth, layer) in self.opened.layers().enumerate() {
            // To record an image that is going to be written is a mistake; to look for its record is not.
            let looked_at = depth > 0 || self.args.include_image || !self.args.record && has_record(layer);
            if !looked_at {
                continue;
            }
            let done = if self.args.record {
                self.record(layer)
            } else {
                self.verify(depth)
            };
            let mut json = LayerJson::new(depth, layer);
            match done {
                Ok(outcome) => json.set(outcome),
                Err(VerifyError::Cancelled) => return Err(self.cancelled(&layers)),
                Err(error) => json.failed(Failure::from(error)),
            }
            layers.push(json);
        }
        Ok(layers)
    }

    fn cancelled(&self, done: &[LayerJson]) -> Failure {
        let written = done.iter().filter(|layer| layer.verdict.is_written()).count();
        let rest = match written {
            0 => "nothing was changed".to_owned(),
            n => format!("{n} records were written and stay"),
        };
        let image = path_text(&self.args.image);
        Failure::new(
            Kind::Library(ErrorKind::Cancelled),
            format!("{image}: interrupted; {rest}"),
        )
    }

    fn options(&self) -> VerifyOptions<'_> {
        VerifyOptions {
            cancel: self.cancel,
            threads: 0,
            fast: self.args.fast,
        }
    }

    fn verify(&self, depth: usize) -> Result<Outcome, VerifyError> {
        let reporter = self.args.progress.reporter("verifying");
        let mut found = RangeList::default();
        let mut keep = |range| found.add(range, Vec::new());
        let done = verify::verify(self.opened, depth, &self.options(), &reporter, &mut keep)?;
        Ok(Outcome {
            verdict: done.verdict.into(),
            recorded: done.recorded,
            changed_bytes: done.changed_bytes,
            record_bytes: None,
            found,
        })
    }

    fn record(&self, layer: ChainLayer<'_>) -> Result<Outcome, VerifyError> {
        let before = has_record(layer);
        let mut outcome = Outcome {
            verdict: LayerVerdict::Kept,
            recorded: None,
            changed_bytes: 0,
            record_bytes: None,
            found: RangeList::default(),
        };
        if before && !self.args.update {
            return Ok(outcome);
        }
        let reporter = self.args.progress.reporter("recording");
        let done = verify::record(layer, before, &self.options(), &reporter)?;
        outcome.record_bytes = Some(done.record_bytes);
        outcome.verdict = if before {
            LayerVerdict::Replaced
        } else {
            LayerVerdict::Recorded
        };
        Ok(outcome)
    }
}

/// What was found of, or done with, one layer.
struct Outcome {
    verdict: LayerVerdict,
    recorded: Option<vhd_core::format::Timestamp>,
    changed_bytes: u64,
    record_bytes: Option<u64>,
    found: RangeList,
}

fn has_record(layer: ChainLayer<'_>) -> bool {
    record_path(layer.path).symlink_metadata().is_ok()
}

/// What keeps the command from being a success, the worst first.
fn outcome(args: &VerifyArgs, json: VerifyJson) -> Option<Failure> {
    let failure = |kind, message| Some(Failure::new(Kind::Library(kind), message));
    let image = json.image;
    if json.layers.is_empty() {
        return if args.record {
            let message = format!("{image}: it has no ancestors to record; --include-image records the image itself");
            failure(ErrorKind::InvalidArgument, message)
        } else {
            let message = format!("{image}: it has neither ancestors nor a record: nothing was verified");
            failure(ErrorKind::DigestMissing, message)
        };
    }
    let changed = names(&json.layers, LayerVerdict::Changed);
    if !changed.is_empty() {
        let changed = changed.join(", ");
        let message = format!("{changed}: changed since it was recorded; what is based on it reads otherwise now");
        return failure(ErrorKind::ContentChanged, message);
    }
    let missing = names(&json.layers, LayerVerdict::NoRecord);
    let tolerable = args.allow_missing && missing.len() < json.layers.len();
    let failed = json.layers.iter().any(|layer| layer.failure.is_some());
    if !failed && !missing.is_empty() && !tolerable {
        let missing = missing.join(", ");
        let message = format!("{missing}: no record, so nothing tells whether it changed; --record writes one");
        return failure(ErrorKind::DigestMissing, message);
    }
    json.layers.into_iter().find_map(|layer| layer.failure)
}

/// The files of which this was found.
fn names(layers: &[LayerJson], verdict: LayerVerdict) -> Vec<String> {
    let found = layers.iter().filter(|layer| layer.verdict == verdict);
    found.map(|layer| layer.path.clone()).collect()
}

impl From<Verdict> for LayerVerdict {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::NoRecord => Self::NoRecord,
            Verdict::Unchanged => Self::Unchanged,
            Verdict::Presumed => Self::Presumed,
            Verdict::Changed => Self::Changed,
        }
    }
}
