//! `vhd compare`: the contents of two disks.

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use vhd_core::chain::OpenedDisk;
use vhd_core::device::ByteRange;
use vhd_core::ops;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::format_arg::FormatArg;
use crate::human;
use crate::input::{ChainArgs, Source, SourceArgs, check_one_stdin};
use crate::output::{self, ReportArgs};
use crate::progress::ProgressArgs;

pub(crate) const NAME: &str = "compare";

/// Ranges that a person is shown.
const SHOWN_RANGES: usize = 10;
/// Ranges in a JSON object: enough to act on, and few enough to keep.
const JSON_RANGES: usize = 10_000;

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
    /// A disk: an image, any leaf of a chain, or - for standard input
    a: PathBuf,
    /// Another one
    b: PathBuf,
    /// The format of both, where their contents do not tell or tell wrong
    #[arg(long, value_name = "FORMAT", value_enum)]
    from: Option<FormatArg>,
    /// The format of B alone
    #[arg(long, value_name = "FORMAT", value_enum)]
    from_b: Option<FormatArg>,
    #[command(flatten)]
    chain: ChainArgs,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct DifferentRange {
    start: u64,
    length: u64,
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
    range_count: u64,
    ranges: Vec<DifferentRange>,
    truncated: bool,
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
        for range in self.ranges.iter().take(SHOWN_RANGES) {
            let (start, end) = (range.start, range.start + range.length);
            writeln!(f, "  {start:#x}..{end:#x}  {}", human::binary(range.length))?;
        }
        let more = self.range_count.saturating_sub(vhd_core::units::u64_from(SHOWN_RANGES));
        if more > 0 {
            writeln!(f, "  and {} more", human::count(more, "more range"))?;
        }
        let bytes = human::bytes(self.different_bytes);
        writeln!(
            f,
            "{bytes} in sectors that differ, {}",
            human::count(self.range_count, "range")
        )
    }
}

pub(crate) fn run(args: &CompareArgs) -> Result<Exit, Failure> {
    check_one_stdin(&args.a, &args.b)?;
    let (a_source, a) = open(args, &args.a, args.from)?;
    let (b_source, b) = open(args, &args.b, args.from_b.or(args.from))?;
    let mut report = CompareReport {
        a: a_source.name,
        b: b_source.name,
        a_virtual_size: a.disk().size(),
        b_virtual_size: b.disk().size(),
        identical: false,
        first_difference: None,
        different_bytes: 0,
        range_count: 0,
        ranges: Vec::new(),
        truncated: false,
        warnings: [&a, &b]
            .iter()
            .flat_map(|opened| opened.warnings())
            .map(ToString::to_string)
            .collect(),
    };
    compare(args, &a, &b, &mut report)?;
    output::report(args.report, NAME, &report)?;
    Ok(if report.identical { Exit::Ok } else { Exit::Differ })
}

fn open(args: &CompareArgs, path: &std::path::Path, from: Option<FormatArg>) -> Result<(Source, OpenedDisk), Failure> {
    let source = Source::new(path, None)?;
    let chain = args.chain.clone();
    let opened = SourceArgs { from, chain }.open(&source)?;
    Ok((source, opened))
}

fn compare(args: &CompareArgs, a: &OpenedDisk, b: &OpenedDisk, report: &mut CompareReport) -> Result<(), Failure> {
    let reporter = args.progress.reporter("comparing");
    let mut keep = |ByteRange { start, len: length }| {
        report.range_count += 1;
        if report.ranges.len() < JSON_RANGES {
            report.ranges.push(DifferentRange { start, length });
        } else {
            report.truncated = true;
        }
        ControlFlow::Continue(())
    };
    let found = ops::compare(&a.disk(), &b.disk(), &reporter, &mut keep)
        .map_err(|error| Failure::from(error).about(format!("{} or {}", report.a, report.b)))?;
    report.identical = found.identical;
    report.first_difference = found.first_difference;
    report.different_bytes = found.different_bytes;
    Ok(())
}
