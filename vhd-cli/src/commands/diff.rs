//! `vhd diff`: where two disks differ, by what their chains share.

use std::fmt;
use std::ops::ControlFlow;

use clap::Args;
use serde::Serialize;
use vhd_core::device::{ByteRange, Disk};
use vhd_core::ops::{self, DiffMode};
use vhd_core::partition::{Partition, PartitionTable, read_table};

use super::pair::{self, Pair, PairArgs};
use super::ranges::RangeList;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;

pub(crate) const NAME: &str = "diff";

const EXAMPLES: &str = "\
Examples:
  vhd diff monday.avhd tuesday.avhd
  vhd diff --partitions before.vhd after.avhd
  vhd diff --json --allocated base.vhd snapshot.avhd | jq .different_bytes

Two snapshots of one tree share layers: only what the others hold is read and compared. --allocated reads nothing and \
lists what the layers hold that are not shared, whether or not its bytes differ. The exit code is 0 for identical disks \
and 5 for different ones.";

/// Arguments of `vhd diff`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    pair: PairArgs,
    /// List what layers that are not shared hold, without reading it
    #[arg(long)]
    allocated: bool,
    /// Name the partitions that each range lies in, by the table of A or, if it has none, of B
    #[arg(long)]
    partitions: bool,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

/// What differs in a partition.
#[derive(Serialize)]
struct PartitionReport {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    start: u64,
    length: u64,
    different_bytes: u64,
}

#[derive(Serialize)]
struct DiffReport {
    a: String,
    b: String,
    a_virtual_size: u64,
    b_virtual_size: u64,
    mode: &'static str,
    shared_layers: usize,
    identical: bool,
    first_difference: Option<u64>,
    different_bytes: u64,
    compared_bytes: u64,
    #[serde(flatten)]
    found: RangeList,
    #[serde(skip_serializing_if = "Option::is_none")]
    partitions: Option<Vec<PartitionReport>>,
    warnings: Vec<String>,
}

impl fmt::Display for DiffReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.identical {
            writeln!(f, "No difference")?;
        }
        self.found.fmt(f)?;
        for partition in self
            .partitions
            .iter()
            .flatten()
            .filter(|partition| partition.different_bytes > 0)
        {
            writeln!(f, "{}: {}", partition.name, human::bytes(partition.different_bytes))?;
        }
        let ranges = human::count(self.found.range_count, "range");
        let (different, compared) = (human::bytes(self.different_bytes), human::binary(self.compared_bytes));
        let shared = human::count(vhd_core::units::u64_from(self.shared_layers), "shared layer");
        writeln!(f, "{different} in {ranges}; {shared}, {compared} compared")
    }
}

pub(crate) fn run(args: &DiffArgs) -> Result<Exit, Failure> {
    let Pair { a, b, names } = args.pair.open()?;
    let mut warnings = pair::warnings(&a, &b);
    let table = match args.partitions {
        true => table_of(&a.disk(), &b.disk(), &mut warnings),
        false => None,
    };
    let mode = if args.allocated {
        DiffMode::Allocated
    } else {
        DiffMode::Content
    };
    let mut found = RangeList::default();
    let mut parts: Vec<PartitionReport> = table
        .iter()
        .flat_map(|table| &table.partitions)
        .map(PartitionReport::of)
        .collect();
    let mut keep = |range| {
        found.add(range, add_to_partitions(range, &mut parts));
        ControlFlow::Continue(())
    };
    let reporter = args.progress.reporter("comparing");
    let difference = ops::diff(&a, &b, mode, &reporter, &mut keep)
        .map_err(|error| Failure::from(error).about(format!("{} or {}", names[0], names[1])))?;
    drop(reporter);
    let comparison = difference.comparison;
    let [a_name, b_name] = names;
    let report = DiffReport {
        a: a_name,
        b: b_name,
        a_virtual_size: a.disk().size(),
        b_virtual_size: b.disk().size(),
        mode: if args.allocated { "allocated" } else { "content" },
        shared_layers: difference.shared_layers,
        identical: comparison.identical,
        first_difference: comparison.first_difference,
        different_bytes: comparison.different_bytes,
        compared_bytes: comparison.compared_bytes,
        found,
        partitions: args.partitions.then_some(parts),
        warnings,
    };
    output::report(args.report, NAME, &report)?;
    Ok(if report.identical { Exit::Ok } else { Exit::Differ })
}

/// The partitions to name: a table that is not usable keeps no difference from being told.
fn table_of(a: &Disk, b: &Disk, warnings: &mut Vec<String>) -> Option<PartitionTable> {
    for disk in [a, b] {
        match read_table(disk) {
            Ok(Some(table)) => return Some(table),
            Ok(None) => {}
            Err(error) => {
                let failure = Failure::from(error);
                output::warning(failure.message());
                warnings.push(failure.message().to_owned());
            }
        }
    }
    None
}

/// Counts a range in the partitions it lies in, and names them.
fn add_to_partitions(range: ByteRange, partitions: &mut [PartitionReport]) -> Vec<String> {
    let mut names = Vec::new();
    for partition in partitions {
        let (start, end) = (partition.start, partition.start.saturating_add(partition.length));
        let common = range.end().min(end).saturating_sub(range.start.max(start));
        if common > 0 {
            partition.different_bytes += common;
            names.push(partition.name.clone());
        }
    }
    names
}

impl PartitionReport {
    fn of(partition: &Partition) -> Self {
        let number = partition.number;
        Self {
            name: match &partition.name {
                Some(name) => format!("partition {number} ({name})"),
                None => format!("partition {number}"),
            },
            kind: partition.kind.to_string(),
            start: partition.start,
            length: partition.len,
            different_bytes: 0,
        }
    }
}
