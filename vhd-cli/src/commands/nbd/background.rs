//! Serving in the background: a process of its own, and the file with its number.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;

use super::system;
use crate::background;
use crate::exit::Exit;
use crate::failure::Failure;

const FORK: &str = "--fork";
const FORKED: &str = "--forked";

/// Whether the server stays where it was started.
#[derive(Args, Debug)]
pub(super) struct BackgroundArgs {
    /// Return when the server listens, and leave it in the background
    #[arg(long, conflicts_with = "stats")]
    pub(super) fork: bool,
    /// Be the process in the background
    #[arg(long, hide = true)]
    forked: bool,
    /// Write the number of the serving process to a file; it is removed at the end
    #[arg(long, value_name = "FILE")]
    pub(super) pid_file: Option<PathBuf>,
}

impl BackgroundArgs {
    /// The server listens: in the background, says so and lets go of where it was started.
    pub(super) fn ready(&self) -> Result<(), Failure> {
        if !self.forked {
            return Ok(());
        }
        background::ready().map_err(|error| system("go to the background", &error))
    }
}

/// Which process the sockets of a service manager are for; without it, for whoever has them.
const LISTEN_PID: &str = "LISTEN_PID";

/// Starts this program again with the same arguments, and returns when that listens or has failed. Sockets that were
/// passed to this process are passed on.
pub(super) fn start(sockets_passed: bool) -> Result<Exit, Failure> {
    let arguments = std::env::args_os().skip(1);
    let arguments = arguments.map(|argument| if argument == FORK { FORKED.into() } else { argument });
    let prepare = |command: &mut Command| {
        if sockets_passed {
            command.env_remove(LISTEN_PID);
        }
    };
    background::start(arguments, prepare).map_err(|error| system("start a process in the background", &error))
}

/// A file with the number of this process, while it serves.
pub(super) struct PidFile {
    path: PathBuf,
    /// Open, so that no other file can have its identity.
    file: File,
}

impl PidFile {
    pub(super) fn write(path: &Path) -> Result<Self, Failure> {
        let write = || {
            let mut file = File::create(path)?;
            file.write_all(content().as_bytes())?;
            Ok(file)
        };
        let file = write().map_err(|error| Failure::io("write", path, &error))?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Whether the file of this name is the one that was written, and says what it said.
    fn is_ours(&self) -> io::Result<bool> {
        let (found, ours) = (std::fs::symlink_metadata(&self.path)?, self.file.metadata()?);
        let same = (found.dev(), found.ino()) == (ours.dev(), ours.ino());
        Ok(same && std::fs::read_to_string(&self.path)? == content())
    }
}

fn content() -> String {
    format!("{}\n", std::process::id())
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A newer server may have put its own there.
        if self.is_ours().unwrap_or(false) {
            // It is in the way of nobody.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
