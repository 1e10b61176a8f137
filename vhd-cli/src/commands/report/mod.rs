//! `vhd report`: what is below a directory, and what is wrong with it, as one HTML file that needs nothing else.
//!
//! ```text
//!   evidence.rs  digests and maps of each image, and when what was read   svg.rs   trees and maps, drawn
//!   page.rs      the document                                             sign.rs  a detached signature
//! ```

mod evidence;
mod page;
mod sign;
mod svg;

use std::fmt;
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use serde::Serialize;
use vhd_core::storage::{StagedFile, StorageError, StorageFile as _};

use super::destination::{Destination, StandardOutput};
use crate::children::ChildrenArgs;
use crate::diagnosis::Diagnosis;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::input::is_dash;
use crate::output::{self, path_text};
use crate::progress::ProgressArgs;
use evidence::{Evidence, ImageEvidence};

pub(crate) const NAME: &str = "report";

const EXAMPLES: &str = "\
Examples:
  vhd report /vm -o vm.html
  vhd report /evidence/vm -o vm.html --sign ~/.ssh/id_ed25519
  vhd report /vm -o quick.html --no-digests
  ssh-keygen -Y verify -f allowed_signers -I me@example.org -n vhd-report -s vm.html.sig <vm.html

The file has no scripts and refers to nothing outside of it. It shows what `vhd doctor` shows, for each image the SHA-256 of \
its file and a map of what is stored where, for each leaf the SHA-256 of the disk as a guest sees it (as `vhd hash`), and when \
each of them was read by which version of this program. An image that another program writes to is not read. Nothing \
below the directory is changed.

With --sign, `ssh-keygen -Y sign` makes FILE.sig, in the namespace vhd-report. The exit code is that of `vhd doctor`.";

/// Arguments of `vhd report`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct HtmlArgs {
    /// The directory; those below it are looked at too
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// The file to write, or - for standard output
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    output: PathBuf,
    /// Replace an existing file, and its signature
    #[arg(long)]
    force: bool,
    /// Leave the digests out: nothing but tables is read then
    #[arg(long)]
    no_digests: bool,
    /// A key of ssh-keygen, by which FILE.sig is made; a public key where an agent has the other half
    #[arg(long, value_name = "KEY", value_hint = ValueHint::FilePath)]
    sign: Option<PathBuf>,
    #[command(flatten)]
    progress: ProgressArgs,
    #[command(flatten)]
    pub(crate) report: output::ReportArgs,
}

impl HtmlArgs {
    /// The report goes to standard output.
    pub(crate) fn to_stdout(&self) -> bool {
        is_dash(&self.output)
    }
}

/// What was written.
#[derive(Serialize)]
struct Written<'a> {
    directory: String,
    output: String,
    signature: Option<String>,
    exit: u8,
    findings: usize,
    images: &'a [ImageEvidence],
}

impl fmt::Display for Written<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let images = crate::human::count(vhd_core::units::u64_from(self.images.len()), "image");
        let findings = crate::human::count(vhd_core::units::u64_from(self.findings), "finding");
        write!(f, "Wrote {}: {images}, {findings}", self.output)?;
        match &self.signature {
            Some(signature) => writeln!(f, "; signed by {signature}"),
            None => writeln!(f),
        }
    }
}

pub(crate) fn run(args: &HtmlArgs) -> Result<Exit, Failure> {
    if args.to_stdout() && (args.sign.is_some() || args.force) {
        return Err(Failure::usage("--sign and --force are for a file with a name"));
    }
    let signature = args.sign.as_ref().map(|_| signature_path(&args.output));
    // Refused before anything is read for hours.
    let stdout = args.to_stdout().then(StandardOutput::open).transpose()?;
    for path in [Some(&args.output), signature.as_ref()].into_iter().flatten() {
        if !is_dash(path) {
            Destination::new(path, args.force, ChildrenArgs { ignore_children: false })?.guard([])?;
        }
    }
    let mut evidence = Evidence::begin(args.directory.clone());
    let diagnosis = Diagnosis::of(&args.directory, |_| ())?;
    evidence.scanned(&diagnosis);
    evidence.collect(&diagnosis, !args.no_digests, args.progress);
    let page = page::page(&diagnosis, &evidence);
    match stdout {
        Some(stdout) => write_stdout(stdout, &page)?,
        None => write_file(args, &page, signature.as_deref())?,
    }
    let written = Written {
        directory: path_text(&args.directory),
        output: path_text(&args.output),
        signature: signature.as_deref().map(path_text),
        exit: diagnosis.exit().number(),
        findings: diagnosis.real_findings().count(),
        images: &evidence.images,
    };
    output::report_beside(args.report, NAME, &written, args.to_stdout())?;
    Ok(diagnosis.exit())
}

fn write_stdout(mut stdout: StandardOutput, page: &str) -> Result<(), Failure> {
    let written = stdout.writer().write_all(page.as_bytes());
    written.map_err(|error| output::write_failed(&error))
}

/// The report and its signature appear complete or not at all; the signature first, so no report lacks the one it was to have.
fn write_file(args: &HtmlArgs, page: &str, signature: Option<&Path>) -> Result<(), Failure> {
    if let (Some(key), Some(path)) = (&args.sign, signature) {
        publish(path, &sign::sign(key, page.as_bytes())?, args.force)?;
    }
    publish(&args.output, page.as_bytes(), args.force)
}

fn publish(path: &Path, bytes: &[u8], replace: bool) -> Result<(), Failure> {
    let staged = StagedFile::create_beside(path)?;
    let written = staged.storage().write_all_at(bytes, 0);
    written.map_err(|error| StorageError::Io {
        path: path.to_owned(),
        operation: "write",
        source: error,
    })?;
    Ok(staged.publish(replace, true)?)
}

/// Where the signature of a file is, by the custom of ssh-keygen.
fn signature_path(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".sig");
    name.into()
}
