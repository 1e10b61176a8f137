//! `vhd doctor`: what is wrong with the images below a directory, and the commands that put it right.

use std::fmt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use vhd_core::units::u64_from;

use super::tree::TreeReport;
use crate::diagnosis::{Advice, Diagnosis, Finding, Remedy, Weight};
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::{self, ReportArgs, path_text};
use crate::summed::Summed;

pub(crate) const NAME: &str = "doctor";

const EXAMPLES: &str = "\
Examples:
  vhd doctor /vm
  vhd doctor                                        the images here
  vhd doctor --json /vm | jq -r '.remedies[] | select(.safety == \"undoable\") | .command'

All files are looked at, whatever they are called. Every image is checked, and compared with what its children recorded \
of it: place, identity, size, time, and its content where digests of it are recorded (`vhd verify --record`). Nothing is \
changed. The commands at the end can be pasted, the safest first; run the doctor again afterwards. An image that another \
program uses is not checked.

The exit code is that of the worst finding: 3 corrupt, 6 a parent is missing or another disk, 5 a parent holds something \
else than was recorded, 1 something could not be looked at, 7 an image is in use, 8 a file is not what its name says, 4 \
anything else that is wrong, 0 nothing or notes alone.";

/// Arguments of `vhd doctor`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// The directory; those below it are looked at too
    #[arg(value_name = "DIR", default_value = ".")]
    directory: PathBuf,
    /// Show notes too: what is allowed and perhaps of interest
    #[arg(long)]
    notes: bool,
    /// List each finding, however many there are
    #[arg(long, short)]
    verbose: bool,
    #[command(flatten)]
    pub(crate) report: ReportArgs,
}

#[derive(Serialize)]
struct DoctorReport<'a> {
    directory: String,
    exit: u8,
    /// As `vhd tree` reports it.
    tree: &'a TreeReport,
    findings: &'a [Finding],
    remedies: &'a [Remedy],
    advice: &'a [Advice],
    #[serde(skip)]
    images_with_findings: u64,
    #[serde(skip)]
    args: &'a DoctorArgs,
}

pub(crate) fn run(args: &DoctorArgs) -> Result<Exit, Failure> {
    // Paths are shown and pasted as the user would write them.
    let diagnosis = Diagnosis::of(&args.directory, |_| ())?;
    let report = DoctorReport::of(args, &diagnosis);
    output::report(args.report, NAME, &report)?;
    Ok(diagnosis.exit())
}

impl<'a> DoctorReport<'a> {
    fn of(args: &'a DoctorArgs, diagnosis: &'a Diagnosis) -> Self {
        Self {
            directory: path_text(Path::new(&args.directory)),
            exit: diagnosis.exit().number(),
            tree: &diagnosis.tree,
            findings: &diagnosis.findings,
            remedies: &diagnosis.remedies,
            advice: &diagnosis.advice,
            images_with_findings: u64_from(diagnosis.images_with_findings()),
            args,
        }
    }

    /// The findings that are shown.
    fn shown(&self) -> Vec<&Finding> {
        let is_shown = |finding: &&Finding| self.args.notes || finding.severity != Weight::Note;
        self.findings.iter().filter(is_shown).collect()
    }
}

impl fmt::Display for DoctorReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tree.fmt(f)?;
        let shown = self.shown();
        if !shown.is_empty() {
            writeln!(f, "\nFindings:")?;
            let summed = Summed { all: self.args.verbose };
            for image in shown.chunk_by(|a, b| a.member == b.member) {
                summed.write(f, image, |finding| &finding.code)?;
            }
        }
        if !self.advice.is_empty() {
            writeln!(f, "\nWhat no command puts right by itself:")?;
            self.advice.iter().try_for_each(|advice| advice.fmt(f))?;
        }
        match self.images_with_findings {
            0 if self.tree.summary.files == 0 => writeln!(f, "\nThere are no images")?,
            0 => writeln!(f, "\nAll images are sound")?,
            images => writeln!(
                f,
                "\n{} of {} with findings",
                images,
                human::count(self.tree.summary.files, "image")
            )?,
        }
        if !self.remedies.is_empty() {
            writeln!(f, "\nCommands that put it right, the safest first:\n")?;
            self.remedies.iter().try_for_each(|remedy| remedy.fmt(f))?;
        }
        Ok(())
    }
}
