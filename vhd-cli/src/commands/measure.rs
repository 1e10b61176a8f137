//! `vhd measure`: what compaction would gain, and why the rest stays.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vhd_core::chain::OpenedDisk;
use vhd_core::ops::compact::{BlockCause, BlockFinding, CompactError, CompactOptions, CompactPlan, Survey};

use super::several::Several;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::{Source, SourceArgs};
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;
use crate::space::DiskSpace;
use crate::{human, interrupt};

pub(crate) const NAME: &str = "measure";

const EXAMPLES: &str = "\
Examples:
  vhd measure disk.vhd
  vhd measure snapshot.avhd --parent-dir /backup
  vhd measure --json disk.vhd | jq .free_space.file_bytes

Nothing is changed. Two sizes are told: that after `vhd compact`, and that after `vhd compact --free-space`, which also \
drops what the file systems on the disk do not use.";

/// Why a block stays that is in use in a partition of which nothing is known.
const UNKNOWN: &str = "unknown-file-system";
/// Why a block stays that is in use outside all partitions.
const UNPARTITIONED: &str = "outside-partitions";

/// Arguments of `vhd measure`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct MeasureArgs {
    /// The images, or - for standard input
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    #[command(flatten)]
    source: SourceArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct Measured {
    image: String,
    file_bytes: u64,
    blocks: u64,
    block_size: u64,
    /// What `vhd compact` would do.
    now: Gain,
    /// What `vhd compact --free-space` would do.
    free_space: Gain,
    /// Blocks by why they go or stay.
    causes: BTreeMap<&'static str, u64>,
    partition_table: String,
    partitions: Vec<PartitionSpace>,
    warnings: Vec<String>,
}

#[derive(Clone, Copy, Serialize)]
struct Gain {
    file_bytes: u64,
    dropped_blocks: u64,
    moved_bytes: u64,
    trimmed_bytes: u64,
}

/// What is known of the free space of a partition.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PartitionSpace {
    number: u32,
    start: u64,
    size: u64,
    file_system: Option<&'static str>,
    /// Bytes that the file system does not use; `None` where that is not known.
    free_bytes: Option<u64>,
    /// Why it is not known, for scripts.
    reason_code: Option<&'static str>,
    /// Why it is not known.
    pub(crate) reason: Option<String>,
    /// Blocks of the image that begin in it, by why they go or stay.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    causes: BTreeMap<&'static str, u64>,
}

impl PartitionSpace {
    /// The partition in a sentence.
    pub(crate) fn label(&self) -> String {
        match self.number {
            0 => "the disk".to_owned(),
            number => format!("partition {number}"),
        }
    }
}

/// The partitions of a disk, as far as they are known.
pub(crate) fn partition_spaces(space: &DiskSpace) -> Vec<PartitionSpace> {
    let partitions = space.report().map_or(&[][..], |report| &report.partitions);
    let spaces = partitions.iter().map(|partition| {
        let reason = partition.free.as_ref().err();
        PartitionSpace {
            number: partition.number,
            start: partition.start,
            size: partition.len,
            file_system: partition.file_system,
            free_bytes: partition.free.as_ref().ok().map(vhd_fs::FreeMap::free_bytes),
            reason_code: reason.map(vhd_fs::Unusable::name),
            reason: reason.map(ToString::to_string),
            causes: BTreeMap::new(),
        }
    });
    spaces.collect()
}

pub(crate) fn run(args: &MeasureArgs) -> Result<Exit, Failure> {
    let several = Several {
        images: &args.images,
        name: NAME,
        report: args.report,
    };
    several.each(|image| run_one(args, image))
}

fn run_one(args: &MeasureArgs, image: &Path) -> Result<Exit, Failure> {
    let source = Source::new(image, None)?;
    let opened = args.source.open_native(&source)?;
    let measured = measure(args, &source, opened)?;
    output::report(args.report, NAME, &measured)?;
    Ok(Exit::Ok)
}

fn measure(args: &MeasureArgs, source: &Source, opened: OpenedDisk) -> Result<Measured, Failure> {
    let about = |error: CompactError| Failure::from(error).about(&source.name);
    let warnings = opened.warnings().iter().map(ToString::to_string).collect();
    let space = DiskSpace::of(&opened.disk());
    let device = opened.into_device().ok_or(CompactError::NoBlocks).map_err(about)?;
    let cancel = interrupt::flag_on_interrupt();
    let options = CompactOptions {
        free: &space,
        cancel: &cancel,
        threads: 0,
        batch_bytes: CompactOptions::DEFAULT_BATCH,
    };
    let reporter = args.progress.reporter("measuring");
    let survey = Survey::new(&device, &options, &reporter).map_err(about)?;
    drop(reporter);
    let (now, with_free) = (CompactPlan::new(&survey, false), CompactPlan::new(&survey, true));
    let mut measured = Measured {
        image: source.name.clone(),
        file_bytes: now.summary().file_bytes,
        blocks: now.summary().blocks,
        block_size: survey.block_size(),
        now: Gain::of(&now),
        free_space: Gain::of(&with_free),
        causes: BTreeMap::new(),
        partition_table: match space.report() {
            Ok(report) => report.table.map_or("none".to_owned(), |scheme| scheme.to_string()),
            Err(reason) => reason.to_string(),
        },
        partitions: partition_spaces(&space),
        warnings,
    };
    for finding in survey.findings() {
        measured.count(finding, &space);
    }
    Ok(measured)
}

impl Gain {
    fn of(plan: &CompactPlan) -> Self {
        let summary = plan.summary();
        Self {
            file_bytes: summary.file_bytes_after,
            dropped_blocks: summary.dropped_blocks,
            moved_bytes: summary.moved_bytes,
            trimmed_bytes: summary.trimmed_bytes,
        }
    }
}

impl Measured {
    fn count(&mut self, finding: &BlockFinding, space: &DiskSpace) {
        let start = u64::from(finding.block.0) * self.block_size;
        let end = start.saturating_add(self.block_size);
        let in_block = |partition: &PartitionSpace| partition.start < end && start < partition.start + partition.size;
        let index = self.partitions.iter().position(in_block);
        let known = index.is_some_and(|index| self.partitions[index].free_bytes.is_some());
        let cause = match (finding.cause, index) {
            (BlockCause::Used, Some(_)) if !known => UNKNOWN,
            (BlockCause::Used, None) if space.report().is_err() => UNKNOWN,
            (BlockCause::Used, None) => UNPARTITIONED,
            (cause, _) => cause.name(),
        };
        *self.causes.entry(cause).or_default() += 1;
        if let Some(index) = index {
            *self.partitions[index].causes.entry(cause).or_default() += 1;
        }
    }
}

/// A cause as a person reads it.
fn explain(cause: &str) -> &'static str {
    match cause {
        "absent" => "hold nothing: they go",
        "zero" => "read zero: they go",
        "free" => "are free in their file system: they go with --free-space",
        "parent-not-zero" => "are zero or free, but the parent is not zero there: they stay",
        "partly-used" => "are free in part: they stay",
        UNKNOWN => "are in use, as far as is known (unknown file system): they stay",
        UNPARTITIONED => "are in use outside the partitions: they stay",
        _ => "are in use: they stay",
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let blocks = human::count(self.blocks, "block");
        writeln!(f, "{}: {}, {blocks}", self.image, human::bytes(self.file_bytes))?;
        let mut fields = human::Fields::default();
        fields.add("compact", self.now);
        fields.add("--free-space", self.free_space);
        fields.fmt(f)?;
        for (cause, count) in &self.causes {
            writeln!(f, "  {} {}", human::count(*count, "block"), explain(cause))?;
        }
        writeln!(f, "  partition table: {}", self.partition_table)?;
        self.partitions.iter().try_for_each(|partition| partition.fmt(f))
    }
}

impl fmt::Display for Gain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", human::bytes(self.file_bytes))?;
        write!(f, ", {} dropped", human::count(self.dropped_blocks, "block"))?;
        write!(f, ", {} to move", human::binary(self.moved_bytes))?;
        if self.trimmed_bytes > 0 {
            write!(f, ", {} freed inside blocks", human::binary(self.trimmed_bytes))?;
        }
        Ok(())
    }
}

impl fmt::Display for PartitionSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.file_system.unwrap_or("unknown");
        write!(f, "  {}: {}, {name}", self.label(), human::binary(self.size))?;
        match (&self.reason, self.free_bytes) {
            (Some(reason), _) => writeln!(f, ", left alone: {reason}"),
            (None, Some(free)) => writeln!(f, ", {} free", human::binary(free)),
            (None, None) => writeln!(f),
        }
    }
}
