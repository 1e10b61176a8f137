//! Where the tour's steps are performed: commands run as a user would run them, and their results are verified.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::process::{Command, Output as Ran, Stdio};
use std::time::Instant;

use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::Output;

/// Runs and shows the steps of the tour.
pub(super) struct Stage {
    dir: PathBuf,
    /// This very program.
    program: PathBuf,
    out: Output,
    started: Instant,
    commands: u64,
    verified: u64,
    chapter: u64,
}

impl Stage {
    pub(super) fn new(dir: &Path) -> Result<Self, Failure> {
        let program = std::env::current_exe()
            .map_err(|error| Failure::new(Kind::Tour, format!("can't find this program again: {error}")))?;
        let mut stage = Self {
            dir: dir.to_owned(),
            program,
            out: Output::stdout(),
            started: Instant::now(),
            commands: 0,
            verified: 0,
            chapter: 0,
        };
        stage.print(&format!("A tour of vhd, in {}\n", dir.display()))?;
        Ok(stage)
    }

    /// The path of a file of the tour.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Begins a chapter.
    pub(super) fn chapter(&mut self, title: &str) -> Result<(), Failure> {
        self.chapter += 1;
        let line = format!("\n{}. {title}\n", self.chapter);
        self.print(&line)
    }

    /// Runs `vhd` with the arguments in `line` and verifies how it ends. Returns what it wrote.
    pub(super) fn vhd(&mut self, line: &str, expected: Exit) -> Result<String, Failure> {
        self.print(&format!("\n   $ vhd {line}\n"))?;
        let ran = self.command(line).stdin(Stdio::null()).output();
        let ran = ran.map_err(|error| self.wrong(format!("`vhd {line}` does not start: {error}")))?;
        self.judge(line, &ran, expected)
    }

    /// Runs `vhd` twice, the first one's output being the second one's input.
    pub(super) fn pipe(&mut self, left: &str, right: &str) -> Result<String, Failure> {
        let line = format!("{left} | vhd {right}");
        self.print(&format!("\n   $ vhd {line}\n"))?;
        let failed = |error| Failure::new(Kind::Tour, format!("`vhd {line}` does not start: {error}"));
        let mut writer = self
            .command(left)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let input = writer.stdout.take().map_or(Stdio::null(), Stdio::from);
        let ran = self.command(right).stdin(input).output().map_err(failed)?;
        let status = writer.wait().map_err(failed)?;
        let text = self.judge(&line, &ran, Exit::Ok)?;
        self.verify(status.success(), "both ends of the pipe succeeded")?;
        Ok(text)
    }

    /// Shows something done without `vhd`, as the command a user would type.
    pub(super) fn show(&mut self, line: &str) -> Result<(), Failure> {
        self.print(&format!("\n   $ {line}\n"))
    }

    /// Says what happens in words.
    pub(super) fn note(&mut self, text: impl Display) -> Result<(), Failure> {
        self.print(&format!("\n   # {text}\n"))
    }

    /// Counts a result that is right; a wrong one ends the tour.
    pub(super) fn verify(&mut self, right: bool, what: impl Display) -> Result<(), Failure> {
        if !right {
            return Err(self.wrong(format!("not so: {what}")));
        }
        self.verified += 1;
        self.print(&format!("   ok: {what}\n"))
    }

    /// The end of the tour.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        let (commands, results) = (
            human::count(self.commands, "command"),
            human::count(self.verified, "result"),
        );
        let seconds = self.started.elapsed().as_secs_f32();
        self.print(&format!(
            "\nThe tour is over: {commands}, {results} verified, {seconds:.1} s. `vhd --help` has the rest.\n"
        ))
    }

    fn command(&mut self, line: &str) -> Command {
        self.commands += 1;
        let mut command = Command::new(&self.program);
        command
            .args(line.split_whitespace())
            .current_dir(&self.dir)
            .env_remove("VHD_LOG");
        command
    }

    fn judge(&mut self, line: &str, ran: &Ran, expected: Exit) -> Result<String, Failure> {
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&ran.stdout),
            String::from_utf8_lossy(&ran.stderr)
        );
        let indented: String = text
            .lines()
            .map(|line| format!("     {line}").trim_end().to_owned() + "\n")
            .collect();
        self.print(&indented)?;
        let wanted = i32::from(expected.number());
        if ran.status.code() != Some(wanted) {
            let message = format!("`vhd {line}` ended with {}, not with exit code {wanted}", ran.status);
            return Err(self.wrong(message));
        }
        if expected != Exit::Ok {
            self.verify(true, format!("exit code {wanted}, as it should be"))?;
        }
        Ok(text)
    }

    fn wrong(&self, message: impl Display) -> Failure {
        Failure::new(Kind::Tour, format!("chapter {} of the tour: {message}", self.chapter))
    }

    /// Shown at once: a tour is read while it goes on.
    fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.out.write(text)?;
        self.out.finish()
    }
}
