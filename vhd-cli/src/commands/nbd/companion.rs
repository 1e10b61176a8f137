//! `--run`: a command that uses the disks while they are served, and with which serving ends.

use std::io;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use tempfile::TempDir;
use vhd_nbd::client::{Address, NbdUri};
use vhd_nbd::server::Server;

use super::system;
use crate::exit::Exit;
use crate::failure::Failure;

/// The socket for a command that is given none.
const SOCKET: &str = "nbd.sock";

/// Where the server listens for a command: a socket that nobody else reaches.
pub(super) struct Companion {
    command: String,
    /// Removed at the end.
    directory: TempDir,
    export: String,
}

impl Companion {
    /// For a shell command, and the name of the disk that it gets to know.
    pub(super) fn new(command: &str, export: &str) -> Result<Self, Failure> {
        // Of mode 0700.
        let directory = tempfile::Builder::new().prefix("vhd-nbd-").tempdir();
        Ok(Self {
            command: command.to_owned(),
            directory: directory.map_err(|error| system("make a directory for a socket", &error))?,
            export: export.to_owned(),
        })
    }

    /// The socket to listen on.
    pub(super) fn socket(&self) -> PathBuf {
        self.directory.path().join(SOCKET)
    }

    /// Starts the command, which ends `server` when it ends.
    pub(super) fn start(&self, server: &Arc<Server>) -> Result<Running, Failure> {
        let socket = self.socket();
        let uri = NbdUri {
            address: Address::Unix(socket.clone()),
            export: self.export.clone(),
            tls: None,
        };
        let child = Command::new("sh")
            .args(["-c", &self.command])
            .env("uri", uri.to_string())
            .env("unixsocket", &socket)
            .env("exportname", &self.export)
            .spawn();
        let child = child.map_err(|error| system("start sh for --run", &error))?;
        let server = Arc::downgrade(server);
        let waiter = thread::spawn(move || {
            let ended = wait(child);
            if let Some(server) = server.upgrade() {
                server.stop();
            }
            ended
        });
        Ok(Running(waiter))
    }
}

fn wait(mut child: Child) -> io::Result<ExitStatus> {
    child.wait()
}

/// The command, until it has ended.
pub(super) struct Running(JoinHandle<io::Result<ExitStatus>>);

impl Running {
    /// Waits for its end; its exit code is that of this program, as a shell would tell it.
    pub(super) fn exit(self) -> Result<Exit, Failure> {
        use std::os::unix::process::ExitStatusExt as _;
        let status = self.0.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let status = status.map_err(|error| system("wait for the command of --run", &error))?;
        let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
        Ok(match code {
            Some(0) => Exit::Ok,
            code => Exit::Command(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)),
        })
    }
}
