//! Going to the background: a process of its own that says when it is ready.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use crate::exit::Exit;

/// What the process in the background says when it is ready.
const READY: &str = "ready";

/// The process is ready: in the background, says so and lets go of where it was started.
pub(crate) fn ready() -> io::Result<()> {
    writeln!(io::stdout(), "{READY}")?;
    // It was no leader of a group before: this can't fail.
    rustix::process::setsid()?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Starts this program again with other arguments, and returns when that is ready or has failed.
pub(crate) fn start(
    arguments: impl IntoIterator<Item = OsString>,
    prepare: impl FnOnce(&mut Command),
) -> io::Result<Exit> {
    let mut command = Command::new(std::env::current_exe()?);
    prepare(&mut command);
    let mut child = command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    if line.trim_end() == READY {
        return Ok(Exit::Ok);
    }
    // It has said why.
    let code = child.wait()?.code().and_then(|code| u8::try_from(code).ok());
    let exit = Exit::ALL.iter().find(|exit| Some(exit.number()) == code);
    Ok(exit.copied().filter(|exit| *exit != Exit::Ok).unwrap_or(Exit::Failed))
}
