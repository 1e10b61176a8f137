//! `vhd tree`: the images below a directory, and which is whose child.

mod draw;
mod report;

use std::path::PathBuf;

use clap::Args;
use vhd_core::chain::forest::{Forest, Limits};

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
pub(crate) use report::{TreeReport, shown};

pub(crate) const NAME: &str = "tree";

const EXAMPLES: &str = "\
Examples:
  vhd tree /vm
  vhd tree /vm --json | jq -r '.files[] | select(.parent.state == \"orphan\") | .path'

Files are known by their names (.vhd, .avhd, .vud) and told by their content. A child is shown below the file that \
opening it would really use; where several files are the same disk, that is one of them. Nothing is locked or \
changed. The exit code is 3 if a file is damaged, else 6 if a parent is missing, not where its child looks for it, or \
its own ancestor, else 1 if something can't be read, else 8 if a file with a VHD's name is none. Disk images in other \
formats are counted.";

/// Arguments of `vhd tree`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct TreeArgs {
    /// The directory; those below it are looked at too
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

pub(crate) fn run(args: &TreeArgs) -> Result<Exit, Failure> {
    let forest = Forest::scan(&args.directory, Limits::default())?;
    let report = TreeReport::of(&args.directory, &forest);
    output::report(args.report, NAME, &report)?;
    Ok(report.exit())
}
