//! The programs that serve.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use crate::images::Image;

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

/// Linux tells times to programs in these units, on every architecture of today.
const TICKS_PER_SECOND: u32 = 100;

/// Who serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    Vhd,
    /// Another build of it.
    Former,
    /// With `--cache` and `--aio`.
    Qemu(&'static str, &'static str),
    Nbdkit,
}

/// A server and what it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) program: Program,
    pub(crate) image: Image,
    pub(crate) tls: bool,
}

/// Where things are.
pub(crate) struct Places {
    /// The program `vhd`.
    pub(crate) vhd: PathBuf,
    /// Another build of it, if that is measured.
    pub(crate) former: PathBuf,
    pub(crate) socket: PathBuf,
    /// Certificates, by the names that qemu-nbd wants.
    pub(crate) certificates: PathBuf,
}

impl Server {
    pub(crate) fn name(&self) -> String {
        let program = match self.program {
            Program::Vhd => "vhd nbd".to_owned(),
            Program::Former => "former vhd nbd".to_owned(),
            Program::Qemu(cache, aio) => format!("qemu-nbd {cache}/{aio}"),
            Program::Nbdkit => "nbdkit file".to_owned(),
        };
        let image = match self.image {
            Image::Raw => "raw",
            Image::Fixed => "fixed",
            Image::Dynamic => "dynamic",
            Image::Chain => "chain of 8, blocks",
            Image::Pieces => "chain of 8, 64 KiB pieces",
            Image::EmptyRaw => "sparse raw",
            Image::EmptyDynamic => "empty dynamic",
        };
        format!("{program}, {image}{}", if self.tls { ", TLS" } else { "" })
    }

    fn command(&self, path: &Path, places: &Places) -> Command {
        let (socket, pki) = (&places.socket, &places.certificates);
        match self.program {
            Program::Vhd | Program::Former => {
                let program = match self.program {
                    Program::Former => &places.former,
                    _ => &places.vhd,
                };
                let mut command = Command::new(program);
                command.args(["nbd", "--unix"]).arg(socket).arg(path);
                if self.image.is_raw() {
                    command.args(["--from", "raw"]);
                }
                if self.tls {
                    command.arg("--tls-cert").arg(pki.join("server-cert.pem"));
                    command.arg("--tls-key").arg(pki.join("server-key.pem"));
                }
                command
            }
            Program::Qemu(cache, aio) => {
                let mut command = Command::new("qemu-nbd");
                let format = if self.image.is_raw() { "raw" } else { "vpc" };
                command.args(["--persistent", "--shared=16", "--export-name=", "--format", format]);
                command.arg(format!("--cache={cache}")).arg(format!("--aio={aio}"));
                command.arg("--socket").arg(socket).arg(path);
                if self.tls {
                    let dir = pki.display();
                    let object = format!("tls-creds-x509,id=tls,endpoint=server,verify-peer=no,dir={dir}");
                    command.args(["--tls-creds=tls", "--object", &object]);
                }
                command
            }
            Program::Nbdkit => {
                let mut command = Command::new("nbdkit");
                command
                    .args(["--foreground", "--unix"])
                    .arg(socket)
                    .arg("file")
                    .arg(path);
                command
            }
        }
    }

    /// Starts the server and waits until it listens.
    pub(crate) fn start(&self, path: &Path, places: &Places) -> Result<Running> {
        let _ = std::fs::remove_file(&places.socket);
        let mut command = self.command(path, places);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("{command:?}"))?;
        let mut running = Running { child };
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&places.socket).is_err() {
            ensure!(began.elapsed() < START, "{command:?} does not listen");
            if let Some(status) = running.child.try_wait()? {
                bail!("{command:?} ended: {status}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }
}

/// A server that runs until it is dropped.
pub(crate) struct Running {
    child: Child,
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time used so far by all threads, in seconds.
    pub(crate) fn cpu(&self) -> Result<f64> {
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
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

/// An authority and a certificate for `localhost`.
pub(crate) fn make_certificates(dir: &Path) -> Result<()> {
    let script = r#"
set -e
cd "$1"
req() { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -sha256 "$@" 2>/dev/null; }
req -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem
req -subj /CN=localhost -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE \
    -CA ca-cert.pem -CAkey ca-key.pem -keyout server-key.pem -out server-cert.pem
"#;
    let status = Command::new("bash").args(["-c", script, "bash"]).arg(dir).status()?;
    ensure!(status.success(), "openssl failed");
    Ok(())
}
