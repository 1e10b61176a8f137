//! `vhd compare`: the contents of two disks.

use std::fmt;
use std::ops::ControlFlow;

use clap::Args;
use serde::Serialize;
use vhd_core::chain::OpenedDisk;
use vhd_core::ops;

use super::pair::{self, Pair, PairArgs};
use super::ranges::RangeList;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;

pub(crate) const NAME: &str = "compare";

const EXAMPLES: &str = "\
Examples:
  vhd compare disk.vhd disk.raw
  vhd compare --json before.vhd after.avhd | jq '.ranges[]'

The exit code is 0 for identical contents and 5 for different ones. Formats do not count, nor do sizes as long as the \
rest of the longer disk reads zero. Ranges are whole sectors; the JSON object has the first 10000 of them, and \
`truncated` says whether there are more.";

/// Arguments of `vhd compare`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct CompareArgs {
    #[command(flatten)]
    pair: PairArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct CompareReport {
    a: String,
    b: String,
    a_virtual_size: u64,
    b_virtual_size: u64,
    identical: bool,
    first_difference: Option<u64>,
    different_bytes: u64,
    #[serde(flatten)]
    found: RangeList,
    warnings: Vec<String>,
}

impl fmt::Display for CompareReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (a, b) = (self.a_virtual_size, self.b_virtual_size);
        if a != b {
            writeln!(f, "Sizes differ: {} has {a} bytes, {} has {b}", self.a, self.b)?;
        }
        let Some(first) = self.first_difference else {
            let rest = if a == b {
                ""
            } else {
                "; the rest of the longer one reads zero"
            };
            return writeln!(f, "Contents are identical{rest}");
        };
        writeln!(f, "Contents differ, first at offset {first} ({first:#x})")?;
        self.found.fmt(f)?;
        let bytes = human::bytes(self.different_bytes);
        writeln!(
            f,
            "{bytes} in sectors that differ, {}",
            human::count(self.found.range_count, "range")
        )
    }
}

pub(crate) fn run(args: &CompareArgs) -> Result<Exit, Failure> {
    let Pair { a, b, names } = args.pair.open()?;
    let mut report = CompareReport {
        a: names[0].clone(),
        b: names[1].clone(),
        a_virtual_size: a.disk().size(),
        b_virtual_size: b.disk().size(),
        identical: false,
        first_difference: None,
        different_bytes: 0,
        found: RangeList::default(),
        warnings: pair::warnings(&a, &b),
    };
    compare(args, &a, &b, &mut report)?;
    output::report(args.report, NAME, &report)?;
    Ok(if report.identical { Exit::Ok } else { Exit::Differ })
}

fn compare(args: &CompareArgs, a: &OpenedDisk, b: &OpenedDisk, report: &mut CompareReport) -> Result<(), Failure> {
    let reporter = args.progress.reporter("comparing");
    let mut keep = |range| {
        report.found.add(range, Vec::new());
        ControlFlow::Continue(())
    };
    let found = ops::compare(&a.disk(), &b.disk(), &reporter, &mut keep)
        .map_err(|error| Failure::from(error).about(format!("{} or {}", report.a, report.b)))?;
    report.identical = found.identical;
    report.first_difference = found.first_difference;
    report.different_bytes = found.different_bytes;
    Ok(())
}
