//! The programs that serve a disk and take snapshots of it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::json;
use vhd_benches::running::Running;

use crate::images::{self, Shape};
use crate::qmp::Monitor;

/// What every server calls the disk.
pub(crate) const EXPORT: &str = "disk";

const DAEMON: &str = "qemu-storage-daemon";

/// The snapshot that is taken.
const SNAPSHOT: &str = "measured";

/// A disk and what serves it.
pub(crate) enum Program<'a> {
    Vhd { vhd: &'a Path, disk: PathBuf },
    Daemon { disk: PathBuf },
}

/// A server, and how to ask it for a snapshot.
pub(crate) enum Server<'a> {
    Vhd {
        _running: Running,
        vhd: &'a Path,
        disk: PathBuf,
    },
    Daemon {
        _running: Running,
        monitor: Monitor,
        overlay: PathBuf,
    },
}

impl<'a> Program<'a> {
    /// The disk in the format of each program that is installed, below a directory.
    pub(crate) fn all(vhd: &'a Path, shape: &Shape, dir: &Path) -> Result<Vec<Self>> {
        std::fs::create_dir(dir)?;
        let disk = shape.vhd(vhd, &dir.join("vhd"))?;
        let mut all = vec![Self::Vhd { vhd, disk }];
        if is_peer_installed() {
            let disk = shape.qcow2(&dir.join("qemu"))?;
            all.push(Self::Daemon { disk });
        }
        Ok(all)
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Vhd { .. } => "vhd nbd",
            Self::Daemon { .. } => "qemu-storage-daemon, qcow2",
        }
    }

    /// Serves the disk on a socket.
    pub(crate) fn serve(&self, socket: &Path) -> Result<Server<'a>> {
        match self {
            Self::Vhd { vhd, disk } => Ok(Server::Vhd {
                _running: serve(vhd, disk, socket)?,
                vhd,
                disk: disk.clone(),
            }),
            Self::Daemon { disk } => {
                let control = socket.with_file_name("qmp");
                let _ = std::fs::remove_file(&control);
                let mut command = Command::new(DAEMON);
                let chardev = format!("socket,id=qmp,server=on,wait=off,path={}", control.display());
                command.args(["--chardev", &chardev, "--monitor", "chardev=qmp"]);
                let node = format!(
                    "driver=qcow2,node-name={EXPORT},file.driver=file,file.filename={}",
                    disk.display()
                );
                command.args(["--blockdev", &node]);
                let server = format!("addr.type=unix,addr.path={}", socket.display());
                let export = format!("type=nbd,id=export,node-name={EXPORT},name={EXPORT},writable=on");
                command.args(["--nbd-server", &server, "--export", &export]);
                Ok(Server::Daemon {
                    _running: Running::start(&mut command, socket)?,
                    monitor: Monitor::connect(&control)?,
                    overlay: disk.with_file_name("overlay.qcow2"),
                })
            }
        }
    }

    /// Makes the disk what it was before the snapshot, except for what the client wrote. Nothing may serve it.
    pub(crate) fn undo(&self) -> Result<()> {
        match self {
            Self::Vhd { vhd, disk } => images::delete(vhd, disk, SNAPSHOT, None),
            Self::Daemon { disk } => Ok(std::fs::remove_file(disk.with_file_name("overlay.qcow2"))?),
        }
    }
}

impl Server<'_> {
    /// Takes a snapshot; it is there when this returns.
    pub(crate) fn snapshot(&mut self) -> Result<()> {
        match self {
            Self::Vhd { vhd, disk, .. } => images::snapshot(vhd, disk, SNAPSHOT).map(drop),
            Self::Daemon { monitor, overlay, .. } => {
                let arguments = json!({
                    "node-name": EXPORT,
                    "snapshot-file": overlay,
                    "snapshot-node-name": "overlay",
                    "format": "qcow2",
                });
                monitor.run("blockdev-snapshot-sync", &arguments)
            }
        }
    }
}

/// `vhd nbd` with the present state of a disk.
pub(crate) fn serve(vhd: &Path, disk: &Path, socket: &Path) -> Result<Running> {
    let mut command = Command::new(vhd);
    let export = format!("{EXPORT}={}@now", disk.display());
    command.arg("nbd").arg("--unix").arg(socket).args(["--export", &export]);
    Running::start(&mut command, socket)
}

/// Whether qemu's programs are there.
pub(crate) fn is_peer_installed() -> bool {
    let is_there = |program: &str| Command::new(program).arg("--version").output().is_ok();
    [DAEMON, "qemu-img", "qemu-io"].iter().all(|program| is_there(program))
}
