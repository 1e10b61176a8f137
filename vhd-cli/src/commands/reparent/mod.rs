//! `vhd reparent`: another parent for a differencing image.

mod agreement;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::Serialize;
use vhd_core::ErrorKind;
use vhd_core::chain::OpenedDisk;
use vhd_core::ops::reparent::{Rebase, RebaseOptions, RebaseReport, Relink, ReparentError};

use super::parent_time::ParentTime;
use crate::children::{self, ChildrenArgs};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::{Failure, FailureJson};
use crate::input::SearchArgs;
use crate::output::{self, ReportArgs, path_text};
use crate::progress::ProgressArgs;
use crate::{human, interrupt};
use agreement::Agreement;

pub(crate) const NAME: &str = "reparent";

const EXAMPLES: &str = "\
Examples:
  vhd reparent child.avhd --parent /new/place/base.vhd --dry-run
  vhd reparent child.avhd --parent /new/place/base.vhd
  vhd reparent child.avhd --parent grandparent.vhd --rebase
  vhd reparent --json child.avhd --parent base.vhd | jq .agreement

What the child recorded of its parent is shown beside what the file is. Without --rebase the child's header names the \
file from now on, and nothing else changes: the recorded parent need not be there any more. Another path or another \
time stamp is no obstacle; another identity (exit code 6) or another size (exit code 8) is, unless --force says that \
the file has the content that the child was made over.

With --rebase the parent may be any disk of the same size, nearer to the base or farther from it in the same tree too: \
the child first takes over what it would read differently, so its present parents must be readable. An interruption or \
a crash at any time leaves the child reading the same; run it again to go on.";

/// Arguments of `vhd reparent`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReparentArgs {
    /// The differencing image that gets another parent; nothing else uses it
    child: PathBuf,
    /// The file that is to be its parent
    #[arg(value_name = "PARENT", required_unless_present = "parent")]
    given_parent: Option<PathBuf>,
    /// The file that is to be its parent, as PARENT
    #[arg(long, value_name = "FILE", conflicts_with = "given_parent")]
    parent: Option<PathBuf>,
    /// Make the child read the same over it, by storing in the child what differs
    #[arg(long)]
    rebase: bool,
    /// A file to try as a present parent of the child before any that it names; the only way to a raw one
    #[arg(long = "old-parent", value_name = "FILE", requires = "rebase")]
    old_parents: Vec<PathBuf>,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// The file has the content that the child was made over, although its identity or size is another
    #[arg(long, conflicts_with = "rebase")]
    force: bool,
    #[command(flatten)]
    children: ChildrenArgs,
    #[command(flatten)]
    search: SearchArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct ReparentJson<'a> {
    child: String,
    parent: String,
    dry_run: bool,
    agreement: Agreement,
    /// With --rebase: what the child takes over.
    rebase: Option<RebaseJson>,
    cancelled: bool,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<FailureJson<'a>>,
}

#[derive(Clone, Copy, Serialize)]
struct RebaseJson {
    compared_bytes: u64,
    taken_bytes: u64,
    zero_bytes: u64,
    new_blocks: u64,
    /// What the new blocks can take in the child's file.
    new_block_bytes: u64,
}

impl From<RebaseReport> for RebaseJson {
    fn from(report: RebaseReport) -> Self {
        Self {
            compared_bytes: report.compared_bytes,
            taken_bytes: report.taken_bytes,
            zero_bytes: report.zero_bytes,
            new_blocks: report.new_blocks,
            new_block_bytes: report.new_blocks.saturating_mul(report.block_size),
        }
    }
}

impl fmt::Display for ReparentJson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: its recorded parent, and {}", self.child, self.parent)?;
        self.agreement.fmt(f)?;
        if let Some(rebase) = &self.rebase {
            let verb = if self.dry_run { "would take" } else { "took" };
            writeln!(
                f,
                "{} {verb} {} over ({} of it zeroes) in {}, after comparing {}",
                self.child,
                human::binary(rebase.taken_bytes),
                human::binary(rebase.zero_bytes),
                human::count(rebase.new_blocks, "new block"),
                human::binary(rebase.compared_bytes),
            )?;
        }
        match (&self.error, self.cancelled, self.dry_run) {
            (Some(_), _, _) => writeln!(f, "{} is unchanged", self.child),
            (None, true, _) => writeln!(f, "{} still has its former parent", self.child),
            (None, false, true) => writeln!(f, "{} would name {} as its parent", self.child, self.parent),
            (None, false, false) => writeln!(f, "{} names {} as its parent", self.child, self.parent),
        }
    }
}

impl ReparentArgs {
    /// The file that is to be the child's parent.
    fn parent(&self) -> &Path {
        let given = self.given_parent.as_deref().or(self.parent.as_deref());
        given.expect("the grammar demands one of them")
    }
}

pub(crate) fn run(args: &ReparentArgs) -> Result<Exit, Failure> {
    args.search.require_locks("the child's header changes")?;
    match args.rebase {
        true => run_rebase(args),
        false => run_relink(args),
    }
}

fn run_relink(args: &ReparentArgs) -> Result<Exit, Failure> {
    let options = args.search.options().ignore_children(args.children.ignore_children);
    let relink = Relink::examine(&args.child, args.parent(), &options)?;
    let agreement = Agreement::of(relink.relation(), args.parent());
    // Nothing has changed yet: an interruption may end the process as usual.
    let agreement = agreement.with_content(relink.parent(), &AtomicBool::new(false));
    let mut json = ReparentJson::new(args, relink.parent(), agreement);
    if let (false, Err(error)) = (args.force, relink.check()) {
        return Err(refused(args, json, error));
    }
    if args.force {
        json.warn_forced();
    }
    if !args.dry_run {
        let time = ParentTime::if_parent(&args.child)?;
        relink.run(args.force).map_err(children::explain)?;
        // What the child reads stays, and its own children shall not ask. With --force it may well be another.
        time.filter(|_| !args.force).into_iter().for_each(ParentTime::keep);
    }
    output::report(args.report, NAME, &json)?;
    Ok(Exit::Ok)
}

/// Shows what disagrees, and hands the failure back.
fn refused(args: &ReparentArgs, mut json: ReparentJson<'_>, error: ReparentError) -> Failure {
    let hint = "--rebase makes the child read the same over it; --force says that it has the content all the same";
    let mut failure = Failure::from(error);
    failure = Failure::new(
        failure.kind().unwrap_or(Kind::Library(ErrorKind::ParentMismatch)),
        format!("{}; {hint}", failure.message()),
    );
    let shown = ReparentJson {
        error: failure.json(),
        warnings: std::mem::take(&mut json.warnings),
        ..json
    };
    match output::report(args.report, NAME, &shown) {
        Ok(()) => failure.reported(),
        Err(failed) => failed,
    }
}

fn run_rebase(args: &ReparentArgs) -> Result<Exit, Failure> {
    let search = args.search.options().ignore_children(args.children.ignore_children);
    let child_options = search.clone().parents(args.old_parents.iter().cloned());
    let rebase = Rebase::examine(&args.child, args.parent(), &child_options, &search)?;
    let mut json = ReparentJson::new(args, rebase.parent(), Agreement::of(rebase.relation(), args.parent()));
    let cancel = interrupt::flag_on_interrupt();
    let options = RebaseOptions {
        cancel: &cancel,
        threads: 0,
        flush_bytes: RebaseOptions::DEFAULT_FLUSH,
    };
    let reporter = args
        .progress
        .reporter(if args.dry_run { "comparing" } else { "rebasing" });
    let report = if args.dry_run {
        rebase.plan(&options, &reporter)
    } else {
        let time = ParentTime::if_parent(&args.child)?;
        let report = rebase.run(&options, &reporter);
        time.into_iter().for_each(ParentTime::keep);
        report
    };
    drop(reporter);
    let name = path_text(&args.child);
    let report = report.map_err(|error| children::explain(error).about(&name))?;
    json.rebase = Some(report.into());
    json.cancelled = report.cancelled;
    output::report(args.report, NAME, &json)?;
    if report.cancelled {
        let message = format!("{name}: interrupted; what was done is kept, run it again to go on");
        return Err(Failure::new(Kind::Library(ErrorKind::Cancelled), message).reported());
    }
    Ok(Exit::Ok)
}

impl ReparentJson<'_> {
    fn new(args: &ReparentArgs, parent: &OpenedDisk, agreement: Agreement) -> Self {
        for warning in parent.warnings() {
            output::warning(warning);
        }
        Self {
            child: path_text(&args.child),
            parent: path_text(args.parent()),
            dry_run: args.dry_run,
            agreement,
            rebase: None,
            cancelled: false,
            warnings: parent.warnings().iter().map(ToString::to_string).collect(),
            error: None,
        }
    }

    /// What is stated by --force, in so many words.
    fn warn_forced(&mut self) {
        let Some(disagreement) = self.agreement.obstacle() else {
            return;
        };
        let message = format!(
            "{}: {disagreement} of {} is another than recorded: by --force you state that it has the content that the \
             child was made over; if it has not, the child reads wrong bytes wherever it relies on its parent",
            self.child, self.parent
        );
        output::warning(&message);
        self.warnings.push(message);
    }
}
