//! `vhd merge`: an image, or a range of a chain, written into the image below it.

use std::fmt;
use std::path::{self, Path, PathBuf};
use std::sync::atomic::AtomicBool;

use clap::Args;
use serde::{Deserialize, Serialize};
use vhd_core::ErrorKind;
use vhd_core::chain::OpenOptions;
use vhd_core::device::LiveDevice;
use vhd_core::ops::Progress;
use vhd_core::ops::merge::{
    CarriedChild, MergeOptions, MergePlan, MergeReport, MergeRequest, NewImagePlan, merge, merge_in_use, merge_to_new,
    plan, plan_in_use, plan_to_new,
};

use super::destination::Destination;
use crate::children::{self, ChildrenArgs};
use crate::codes::Kind;
use crate::control::{self, Along, MergeJob};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{ChainArgs, is_dash};
use crate::output::{self, ReportArgs, path_text};
use crate::progress::ProgressArgs;
use crate::rate::{Limited, RateArgs};
use crate::{human, interrupt, size};

pub(crate) const NAME: &str = "merge";

/// Bytes in a second: what the estimate of a dry run takes for granted.
const ASSUMED_RATE: u64 = 100 << 20;

const EXAMPLES: &str = "\
Examples:
  vhd merge leaf.avhd --dry-run
  vhd merge leaf.avhd                                into its parent; leaf.avhd is removed
  vhd merge leaf.avhd --into base.vhd                the whole range above base.vhd, in one pass
  vhd merge leaf.avhd --carry                        other children of the parent keep what they read
  vhd merge leaf.avhd --into base.vhd --output one.vhd

The parent, or the ancestor named by --into, then reads what CHILD read; it keeps its name and identity. Children of \
CHILD are pointed to it, and the files of the range are removed. A record beside CHILD, CHILD.merge, says how far it is: \
after an interruption, a crash or a loss of power the same command goes on, and the machine may run in between. Refused \
while other images depend on what would change (docs/dependants.md says where they are looked for; children elsewhere \
are named by --child), unless --carry is given: each of them first takes over what it would read otherwise, and reads \
the same at every moment. With --output nothing is changed: a new image is written in one go. While `vhd nbd`, \
`vhd mount --rw` or `vhd vm run` has the disk in use, that program does it; if CHILD is the file that it writes to, it \
goes on in the parent, and is to be started with that file the next time.";

/// Arguments of `vhd merge`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MergeArgs {
    /// The image that goes: a differencing one
    child: PathBuf,
    /// Merge everything above this ancestor into it, instead of CHILD alone into its parent
    #[arg(long, value_name = "ANCESTOR")]
    into: Option<PathBuf>,
    /// Write a new image that reads what CHILD reads, and change nothing
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Replace an existing output
    #[arg(long, requires = "output")]
    force: bool,
    #[command(flatten)]
    ignore: ChildrenArgs,
    /// A child in a directory that is not looked at: of CHILD, to be pointed to its new parent, or one for --carry
    #[arg(long = "child", value_name = "FILE", conflicts_with = "output")]
    children: Vec<PathBuf>,
    /// Carry other children of the ancestor and of the layers between along: they store what they would read otherwise
    #[arg(long, conflicts_with = "output")]
    carry: bool,
    /// Make progress durable after so many bytes [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = size::parse_bytes, conflicts_with = "output")]
    batch: Option<u64>,
    /// Say what would be done, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask a program that has the disk in use: refuse then
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    rate: RateArgs,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct MergeJson {
    child: String,
    /// The image that reads what the child read.
    target: String,
    new_image: bool,
    dry_run: bool,
    cancelled: bool,
    /// What is written into the target, the child first.
    layers: Vec<String>,
    children: Vec<String>,
    /// Children of other layers that keep what they read.
    carried: Vec<CarriedJson>,
    removed: Vec<String>,
    virtual_size: u64,
    /// Bytes that the layers hold, each sector once.
    held_bytes: u64,
    remaining_bytes: u64,
    /// Bytes by which the target's file grows at most; of a new image, the bytes it holds at most.
    new_bytes: u64,
    /// Where an unfinished merge goes on; null for one that begins.
    resumed_at: Option<u64>,
    /// What is left at 100 MiB/s, in seconds.
    estimated_seconds: u64,
    read_bytes: u64,
    copied_bytes: u64,
    zeroed_bytes: u64,
    /// Bytes that carried children took over.
    carried_bytes: u64,
    warnings: Vec<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct CarriedJson {
    image: String,
    /// The layer that was its parent.
    parent: String,
    /// Bytes that it takes over at most.
    bytes: u64,
    /// Bytes by which its file grows at most.
    new_bytes: u64,
}

impl CarriedJson {
    fn of(child: &CarriedChild) -> Self {
        Self {
            image: path_text(&child.path),
            parent: path_text(&child.parent),
            bytes: child.bytes,
            new_bytes: child.new_bytes,
        }
    }
}

impl fmt::Display for MergeJson {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match (self.dry_run, self.cancelled) {
            (true, _) => "would be merged into",
            (false, true) => "is merged in part into",
            (false, false) => "is merged into",
        };
        let new = if self.new_image { "new image " } else { "" };
        writeln!(f, "{} {verb} {new}{}", self.child, self.target)?;
        let mut fields = human::Fields::default();
        fields.add("layers", self.layers.join(", "));
        if let Some(at) = self.resumed_at {
            fields.add("goes on at", format!("byte {at} of {}", self.virtual_size));
        }
        if self.dry_run {
            self.add_plan(&mut fields);
        } else {
            fields.add("copied", human::bytes(self.copied_bytes));
            fields.add("zero", human::bytes(self.zeroed_bytes));
        }
        for CarriedJson { image, bytes, .. } in &self.carried {
            let bytes = human::bytes(*bytes);
            fields.add("carried", format!("{image} takes over at most {bytes}"));
        }
        if !self.carried.is_empty() && !self.dry_run {
            fields.add("taken over", human::bytes(self.carried_bytes));
        }
        for child in &self.children {
            fields.add("child", format!("{child} -> {}", self.target));
        }
        for removed in &self.removed {
            fields.add("removed", removed);
        }
        fields.fmt(f)
    }
}

impl MergeJson {
    fn add_plan(&self, fields: &mut human::Fields) {
        let (held, left) = (human::bytes(self.held_bytes), human::bytes(self.remaining_bytes));
        fields.add("to copy", format!("at most {left} of {held}"));
        fields.add("new space", format!("at most {}", human::bytes(self.new_bytes)));
        let seconds = human::count(self.estimated_seconds, "second");
        fields.add("takes about", format!("{seconds}, if the storage moves 100 MiB/s"));
        if !self.new_image {
            fields.add("record", format!("{}.merge, until it is done", self.child));
        }
    }
}

pub(crate) fn run(args: &MergeArgs) -> Result<Exit, Failure> {
    let named = [Some(&args.child), args.into.as_ref(), args.output.as_ref()];
    if named.into_iter().flatten().any(|path| is_dash(path)) {
        return Err(Failure::usage("the images of a merge must have names"));
    }
    if args.chain.search.force_share && args.output.is_none() {
        return Err(Failure::usage(
            "images are changed and removed: --force-share can be used with --output only",
        ));
    }
    let request = MergeRequest {
        child: args.child.clone(),
        into: args.into.clone(),
        extra_children: args.children.clone(),
        carry: args.carry,
        open: open_options(&args.chain).ignore_children(args.ignore.ignore_children),
    };
    let json = match &args.output {
        None => match asked_for(args)? {
            Some(json) => json,
            None => in_place(args, &request)?,
        },
        Some(output) => to_new(args, &request, output)?,
    };
    output::report(args.report, NAME, &json)?;
    if json.cancelled {
        let message = format!(
            "{}: interrupted; what was done is kept, run it again to go on",
            json.child
        );
        return Err(Failure::new(Kind::Library(ErrorKind::Cancelled), message).reported());
    }
    Ok(Exit::Ok)
}

fn open_options(chain: &ChainArgs) -> OpenOptions {
    chain.options()
}

/// Has the program do it that has the disk in use, if there is one.
fn asked_for(args: &MergeArgs) -> Result<Option<MergeJson>, Failure> {
    let Some(disk) = (!args.offline).then(|| control::user_of(&args.child)).flatten() else {
        return Ok(None);
    };
    let job = MergeJob {
        child: from_root(&args.child)?,
        into: args.into.as_deref().map(from_root).transpose()?,
        children: args
            .children
            .iter()
            .map(|path| from_root(path))
            .collect::<Result<_, _>>()?,
        carry: args.carry,
        ignore_children: args.ignore.ignore_children,
        batch: args.batch,
        dry_run: args.dry_run,
    };
    let cancel = interrupt::flag_on_interrupt();
    let reporter = args.progress.reporter("merging");
    let along = Along {
        rate: args.rate.rate,
        progress: &reporter,
        cancel: &cancel,
    };
    let merged = control::merge(&disk, job, &along)?;
    drop(reporter);
    Ok(merged.map(|merged| {
        merged.warnings.iter().for_each(output::warning);
        MergeJson {
            child: path_text(&args.child),
            ..merged
        }
    }))
}

fn from_root(path: &Path) -> Result<PathBuf, Failure> {
    path::absolute(path).map_err(|error| Failure::io("find", path, &error))
}

/// Merges layers of a disk that this process has in use.
pub(crate) fn in_use(
    job: &MergeJob,
    device: &LiveDevice,
    progress: &dyn Progress,
    cancel: &AtomicBool,
) -> Result<MergeJson, Failure> {
    let request = MergeRequest {
        child: job.child.clone(),
        into: job.into.clone(),
        extra_children: job.children.clone(),
        carry: job.carry,
        open: OpenOptions::new().ignore_children(job.ignore_children),
    };
    let options = options(job.batch, cancel);
    let planned = plan_in_use(&request, device).map_err(children::explain)?;
    let json = MergeJson::of_plan(&job.child, &planned);
    if job.dry_run {
        return Ok(json);
    }
    Ok(json.done(&merge_in_use(&planned, &options, progress, device)?))
}

fn options(batch: Option<u64>, cancel: &AtomicBool) -> MergeOptions<'_> {
    MergeOptions {
        cancel,
        threads: 0,
        batch_bytes: batch.unwrap_or(MergeOptions::DEFAULT_BATCH),
    }
}

fn in_place(args: &MergeArgs, request: &MergeRequest) -> Result<MergeJson, Failure> {
    let planned = plan(request).map_err(children::explain)?;
    planned.warnings().iter().for_each(output::warning);
    let json = MergeJson::of_plan(&args.child, &planned);
    if args.dry_run {
        return Ok(json);
    }
    let cancel = interrupt::flag_on_interrupt();
    let reporter = args.progress.reporter("merging");
    let limited = Limited::new(&reporter, args.rate.rate, &cancel);
    let done = merge(&planned, &options(args.batch, &cancel), &limited);
    drop(reporter);
    if done.is_err() {
        output::warn_if_begun("merge", &args.child, &planned.record_path());
    }
    Ok(json.done(&done?))
}

fn to_new(args: &MergeArgs, request: &MergeRequest, output: &Path) -> Result<MergeJson, Failure> {
    let destination = Destination::new(output, args.force, args.ignore)?;
    let planned = plan_to_new(request)?;
    planned.warnings().iter().for_each(output::warning);
    let json = MergeJson::of_new(args, output, &planned);
    if args.dry_run {
        return Ok(json);
    }
    let _lock = {
        let opened = request.open.clone().open(&args.child)?;
        destination.guard([&opened])?
    };
    let cancel = interrupt::flag_on_interrupt();
    let reporter = args.progress.reporter("merging");
    let limited = Limited::new(&reporter, args.rate.rate, &cancel);
    let options = options(None, &cancel);
    let done = merge_to_new(&planned, destination.path(), args.force, &options, &limited)?;
    drop(reporter);
    Ok(MergeJson { dry_run: false, ..json }.with(&done))
}

fn texts(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path_text(path)).collect()
}

impl MergeJson {
    fn of_plan(child: &Path, planned: &MergePlan) -> Self {
        let summary = planned.summary();
        let layers: Vec<String> = planned.removed().map(path_text).collect();
        Self {
            child: path_text(child),
            target: path_text(planned.target()),
            new_image: false,
            dry_run: true,
            cancelled: false,
            children: texts(planned.children()),
            carried: planned.carried().iter().map(CarriedJson::of).collect(),
            removed: layers.clone(),
            layers,
            virtual_size: summary.disk_bytes,
            held_bytes: summary.held_bytes,
            remaining_bytes: summary.remaining_bytes,
            new_bytes: summary.new_bytes,
            resumed_at: planned.resumes_at(),
            estimated_seconds: summary.remaining_bytes.div_ceil(ASSUMED_RATE),
            read_bytes: 0,
            copied_bytes: 0,
            zeroed_bytes: 0,
            carried_bytes: 0,
            warnings: planned.warnings().to_vec(),
        }
    }

    fn of_new(args: &MergeArgs, output: &Path, planned: &NewImagePlan) -> Self {
        let held = planned.held_bytes();
        Self {
            child: path_text(&args.child),
            target: path_text(output),
            new_image: true,
            dry_run: true,
            cancelled: false,
            layers: planned.merged().map(path_text).collect(),
            children: Vec::new(),
            carried: Vec::new(),
            removed: Vec::new(),
            virtual_size: planned.disk_bytes(),
            held_bytes: held,
            remaining_bytes: held,
            new_bytes: held,
            resumed_at: None,
            estimated_seconds: held.div_ceil(ASSUMED_RATE),
            read_bytes: 0,
            copied_bytes: 0,
            zeroed_bytes: 0,
            carried_bytes: 0,
            warnings: planned.warnings().to_vec(),
        }
    }

    /// What was planned is done, or as much of it as could be.
    fn done(self, done: &MergeReport) -> Self {
        Self {
            dry_run: false,
            children: texts(&done.repointed),
            removed: texts(&done.removed),
            ..self.with(done)
        }
    }

    fn with(self, done: &MergeReport) -> Self {
        Self {
            cancelled: done.cancelled,
            read_bytes: done.read_bytes,
            copied_bytes: done.copied_bytes,
            zeroed_bytes: done.zeroed_bytes,
            carried_bytes: done.carried_bytes,
            ..self
        }
    }
}
