//! Standard output: reports for people or, with `--json`, one object for programs.

use std::fmt::Display;
use std::io::{self, BufWriter, Stdout, Write};
use std::path::Path;

use clap::Args;
use serde::Serialize;

use crate::codes::Kind;
use crate::failure::{Failure, FailureJson};
use crate::human;

/// The version of all JSON objects: it changes when a field changes its meaning or goes, not when one is added.
pub(crate) const JSON_VERSION: u32 = 1;

/// How a command reports.
#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ReportArgs {
    /// Report as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Report nothing but failures
    #[arg(long, short, conflicts_with = "json")]
    pub(crate) quiet: bool,
}

#[derive(Serialize)]
struct Envelope<'a, R> {
    version: u32,
    command: &'a str,
    #[serde(flatten)]
    report: R,
}

#[derive(Serialize)]
struct FailureReport<'a> {
    error: FailureJson<'a>,
}

/// Writes a report to standard output.
pub(crate) fn report<R: Display + Serialize>(args: ReportArgs, command: &str, report: &R) -> Result<(), Failure> {
    if args.quiet {
        return Ok(());
    }
    let mut out = Output::stdout();
    if args.json {
        out.write(&json(command, report))?;
    } else {
        out.write(&human::visible(&report.to_string()))?;
    }
    out.finish()
}

/// Writes a report to standard output unless that is where the image goes: then the object goes to standard error, and
/// people get none.
pub(crate) fn report_beside<R: Display + Serialize>(
    args: ReportArgs,
    command: &str,
    report: &R,
    image_to_stdout: bool,
) -> Result<(), Failure> {
    match (image_to_stdout, args.json) {
        (false, _) => self::report(args, command, report),
        (true, true) => {
            eprint(&json(command, report));
            Ok(())
        }
        (true, false) => Ok(()),
    }
}

/// A report as one JSON object and a line end.
pub(crate) fn json<R: Serialize>(command: &str, report: &R) -> String {
    let envelope = Envelope {
        version: JSON_VERSION,
        command,
        report,
    };
    let mut text = serde_json::to_string_pretty(&envelope).expect("reports have text keys and serialise to memory");
    text.push('\n');
    text
}

/// Writes a failure: a line to standard error and, with `--json`, an object to standard output.
pub(crate) fn failure(json_to_stdout: bool, command: &str, failure: &Failure) {
    eprint(&failure.text());
    if !json_to_stdout || failure.is_reported() {
        return;
    }
    if let Some(error) = failure.json() {
        let mut out = Output::stdout();
        // The failure has been told on standard error: there is nobody left to tell of this one.
        let _ = out
            .write(&json(command, &FailureReport { error }))
            .and_then(|()| out.finish());
    }
}

/// Says on standard error what is odd but no failure.
pub(crate) fn warning(message: impl Display) {
    eprint(&format!("vhd: warning: {message}\n"));
}

/// Writes to standard error, made visible. A closed standard error is no reason to stop.
pub(crate) fn eprint(text: &str) {
    let _ = io::stderr().write_all(human::visible(text).as_bytes());
}

/// Says after a failed job on `image` that it has begun: its record is there.
pub(crate) fn warn_if_begun(job: &str, image: &Path, record: &Path) {
    if record.exists() {
        let image = image.display();
        warning(format_args!("{image}: the {job} has begun; run it again to finish it"));
    }
}

/// A path as JSON can hold it: what is no Unicode becomes U+FFFD.
pub(crate) fn path_text(path: &Path) -> String {
    path.display().to_string()
}

/// Standard output. A reader that has seen enough (`vhd map x | head`) is no failure.
pub(crate) struct Output {
    writer: BufWriter<Stdout>,
    closed: bool,
}

impl Output {
    /// Standard output, buffered.
    pub(crate) fn stdout() -> Self {
        Self {
            writer: BufWriter::new(io::stdout()),
            closed: false,
        }
    }

    /// The reader has gone: further output is lost labour.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Writes a text.
    pub(crate) fn write(&mut self, text: &str) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        let result = self.writer.write_all(text.as_bytes());
        self.accept(result)
    }

    /// Makes sure that everything has been written.
    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        if self.closed {
            return Ok(());
        }
        let result = self.writer.flush();
        self.accept(result)
    }

    fn accept(&mut self, result: io::Result<()>) -> Result<(), Failure> {
        match result {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.closed = true;
                Ok(())
            }
            Err(error) => Err(write_failed(&error)),
            Ok(()) => Ok(()),
        }
    }
}

/// Standard output could not be written.
pub(crate) fn write_failed(error: &io::Error) -> Failure {
    Failure::new(Kind::Output, format!("can't write to standard output: {error}"))
}
