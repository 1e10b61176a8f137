//! The disks: the same bytes in each kind of image.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
use vhd_core::chain::OpenOptions;

/// Bytes of the disk.
pub(crate) const SIZE: u64 = 256 << 20;
/// Images of a chain.
const DEPTH: u32 = 8;
/// Bytes of the pieces that a layer of a chain has.
const PIECE: u64 = 256 << 10;

/// Where images are made.
pub(crate) struct Images {
    pub(crate) dir: PathBuf,
    vhd: PathBuf,
}

impl Images {
    pub(crate) fn new(dir: &Path, vhd: &Path) -> Result<Self> {
        let images = Self {
            dir: dir.to_owned(),
            vhd: vhd.to_owned(),
        };
        let file = File::create(images.source())?;
        let mut random = fastrand::Rng::with_seed(1);
        for offset in (0..SIZE).step_by(1 << 20) {
            let bytes: Vec<u8> = (0..1 << 20).map(|_| random.u8(..)).collect();
            file.write_all_at(&bytes, offset)?;
        }
        Ok(images)
    }

    fn source(&self) -> PathBuf {
        self.dir.join("source.raw")
    }

    /// An image of its own in a directory of that name: `raw`, `fixed`, `dynamic`, or `chain of 8`.
    pub(crate) fn make(&self, name: &str, kind: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("disk.vhd");
        match kind {
            "raw" => {
                // By the same program as the others, so that the page cache holds it in folios of the same size: ext4
                // walks over all blocks of a folio for each small write into it.
                let path = dir.join("disk.raw");
                self.convert(&path, "raw")?;
                return Ok(path);
            }
            "fixed" | "dynamic" => self.convert(&path, kind)?,
            _ => {
                self.convert(&path, "dynamic")?;
                return self.chain(&dir, path);
            }
        }
        Ok(path)
    }

    fn convert(&self, path: &Path, kind: &str) -> Result<()> {
        let mut command = Command::new(&self.vhd);
        command.args(["convert", "--from", "raw", "--to", kind]);
        run(command.arg(self.source()).arg(path))
    }

    /// Children, each with an eighth of the disk in pieces all over it; the leaf.
    fn chain(&self, dir: &Path, base: PathBuf) -> Result<PathBuf> {
        let mut leaf = base;
        for depth in 1..DEPTH {
            let child = dir.join(format!("child-{depth}.vhd"));
            let mut command = Command::new(&self.vhd);
            run(command.arg("create").arg(&child).arg("--parent").arg(&leaf))?;
            let disk = OpenOptions::new().write(true).open(&child)?;
            let source = File::open(self.source())?;
            let mut bytes = vec![0; usize::try_from(PIECE)?];
            for piece in (0..SIZE / PIECE).filter(|piece| piece % u64::from(DEPTH) == u64::from(depth)) {
                source.read_exact_at(&mut bytes, piece * PIECE)?;
                disk.disk().write_at(&bytes, piece * PIECE)?;
            }
            disk.close()?;
            leaf = child;
        }
        Ok(leaf)
    }
}

/// Runs a program that must succeed.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let output = command.output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}
