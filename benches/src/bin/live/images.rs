//! The disks whose snapshots are taken, as VHD and as qcow2.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use vhd_benches::{BLOCK, REQUEST};
use vhd_core::chain::OpenOptions;

const GIB: u64 = 1 << 30;

/// A disk before a snapshot is taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) name: &'static str,
    /// Bytes.
    pub(crate) size: u64,
    /// Files below the one that is written to.
    depth: u64,
}

/// What is measured: an empty disk, the largest one that a VHD can be, and chains.
pub(crate) const SHAPES: [Shape; 4] = [
    Shape::new("empty, 64 GiB", 64 * GIB, 0),
    Shape::new("empty, 2040 GiB", 2040 * GIB, 0),
    Shape::new("64 GiB, chain of depth 1", 64 * GIB, 1),
    Shape::new("64 GiB, chain of depth 50", 64 * GIB, 50),
];

/// Where each file of a chain has data of its own, in bytes: behind what the client writes to.
const fn own_data(level: u64) -> u64 {
    GIB + level * BLOCK
}

impl Shape {
    const fn new(name: &'static str, size: u64, depth: u64) -> Self {
        Self { name, size, depth }
    }

    /// The disk as VHD, with a snapshot for each level; the file that its snapshots are known by.
    pub(crate) fn vhd(&self, vhd: &Path, dir: &Path) -> Result<PathBuf> {
        std::fs::create_dir(dir)?;
        let base = dir.join("disk.vhd");
        create(vhd, &base, self.size)?;
        let mut active = base.clone();
        for level in 0..self.depth {
            write(&active, own_data(level), &[1; REQUEST])?;
            active = snapshot(vhd, &base, &format!("level {level}"))?;
        }
        Ok(base)
    }

    /// The disk as qcow2; the file that is written to.
    pub(crate) fn qcow2(&self, dir: &Path) -> Result<PathBuf> {
        std::fs::create_dir(dir)?;
        let mut active = dir.join("disk.qcow2");
        let size = self.size.to_string();
        let new = ["create", "-q", "-f", "qcow2"];
        run(Command::new("qemu-img").args(new).arg(&active).arg(size))?;
        for level in 0..self.depth {
            let write = format!("write -q -P 1 {} {REQUEST}", own_data(level));
            run(Command::new("qemu-io").args(["-f", "qcow2", "-c", &write]).arg(&active))?;
            let child = dir.join(format!("child-{level}.qcow2"));
            let mut command = Command::new("qemu-img");
            command.args(new).args(["-F", "qcow2", "-b"]).arg(&active).arg(&child);
            run(&mut command)?;
            active = child;
        }
        Ok(active)
    }
}

/// Creates an empty dynamic image.
pub(crate) fn create(vhd: &Path, path: &Path, size: u64) -> Result<()> {
    let size = size.to_string();
    run(Command::new(vhd).args(["create", "--size", &size]).arg(path)).map(drop)
}

/// Takes a snapshot of a disk, in use or not; the file that is written to from then on.
pub(crate) fn snapshot(vhd: &Path, disk: &Path, name: &str) -> Result<PathBuf> {
    let output = run(Command::new(vhd)
        .args(["snapshot", "create", "--json", "--name", name])
        .arg(disk))?;
    let report: Value = serde_json::from_slice(&output)?;
    let active = report["active"].as_str().context("the active file")?;
    Ok(disk.with_file_name(active))
}

/// Deletes a snapshot of a disk, in use or not, and makes sure that one file was merged.
pub(crate) fn delete(vhd: &Path, disk: &Path, name: &str, rate: Option<u64>) -> Result<()> {
    let mut command = Command::new(vhd);
    command.args(["snapshot", "delete", "--json"]);
    if let Some(rate) = rate {
        command.args(["--rate", &rate.to_string()]);
    }
    let report: Value = serde_json::from_slice(&run(command.arg(disk).arg(name))?)?;
    let count = |key: &str| report[key].as_array().map(Vec::len);
    ensure!(count("merged") == Some(1) && count("waiting") == Some(0), "{report}");
    Ok(())
}

/// Writes to an image that nobody uses, and makes that durable.
pub(crate) fn write(path: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    let opened = OpenOptions::new().write(true).open(path)?;
    opened.disk().write_at(bytes, offset)?;
    opened.close()?;
    Ok(())
}

/// Runs a command; what it prints.
fn run(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {said}", output.status);
    Ok(output.stdout)
}
