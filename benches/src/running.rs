//! A server as a process of its own.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

/// How often to look whether it does.
const LOOK: Duration = Duration::from_millis(5);

/// Linux tells times to programs in these units, on every architecture of today.
const TICKS_PER_SECOND: u32 = 100;

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
}

impl Running {
    /// Starts the server and waits until it listens on the unix socket; one that is there already is removed first.
    ///
    /// # Errors
    /// The command can't be started, ends, or does not listen in time.
    pub fn start(command: &mut Command, socket: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(socket);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut running = Self { child };
        let began = Instant::now();
        while UnixStream::connect(socket).is_err() {
            ensure!(began.elapsed() < START, "{command:?} does not listen");
            if let Some(status) = running.child.try_wait()? {
                bail!("{command:?} ended: {status}");
            }
            std::thread::sleep(LOOK);
        }
        Ok(running)
    }

    /// The number of the process.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time used so far by all threads, in seconds.
    ///
    /// # Errors
    /// The process has ended.
    pub fn cpu(&self) -> Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id()))?;
        let (_, fields) = stat.rsplit_once(')').context("stat")?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // Fields 14 and 15, user and system time; the first here is field 3.
        let ticks: u32 = fields[11].parse::<u32>()? + fields[12].parse::<u32>()?;
        Ok(f64::from(ticks) / f64::from(TICKS_PER_SECOND))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
