//! The programs that serve.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use vhd_benches::running::Running;

use crate::images::Image;

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
        Running::start(&mut self.command(path, places), &places.socket)
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
