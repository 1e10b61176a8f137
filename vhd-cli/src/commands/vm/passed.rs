//! A disk whose files the process of a machine may not open: a command opens them and passes them on, with their locks.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vhd_core::chain::{ImageFormat, OpenOptions, OpenedDisk};
use vhd_core::error::with_causes;

use super::disk_spec::DiskSpec;
use super::open_disk::{How, open_whole};
use crate::codes::Kind;
use crate::failure::Failure;
use crate::input::{ChainArgs, Source};

/// What is said of open files that follow.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Passed {
    /// Where they are, the leaf first.
    pub(super) files: Vec<PathBuf>,
    /// They are the bytes of the disk.
    is_raw: bool,
    /// The leaf is not open for writing.
    pub(super) read_only: bool,
}

impl Passed {
    /// Opens a disk as the process would, with all that is looked at before.
    pub(super) fn open(spec: &DiskSpec) -> Result<(Self, Vec<OwnedFd>), Failure> {
        if spec.resizable {
            let message = format!(
                "{}: the process of the machine is confined to the directories of the disks that it began with, and so cannot \
                 resize this one: leave `,resizable` away, or start the machine with --allow DIR for its directory",
                spec.image
            );
            return Err(Failure::new(Kind::OutsideSandbox, message));
        }
        let how = How {
            chain: ChainArgs::with_parents(std::iter::empty()),
            ignore_children: false,
        };
        let source = Source::or_remote(&spec.typed().path, None)?;
        let read_only = spec.read_only || source.is_snapshot && !spec.snapshot;
        let opened = open_whole(&how, spec, &source, read_only)?;
        let passed = Self {
            files: opened.paths().iter().map(|path| absolute(path)).collect(),
            is_raw: opened.format() == ImageFormat::Raw,
            read_only,
        };
        let files = opened.into_descriptors().map_err(|error| {
            let message = format!(
                "{}: its files cannot be passed to the process of the machine: {}",
                spec.image,
                with_causes(&error)
            );
            Failure::new(Kind::OutsideSandbox, message)
        })?;
        Ok((passed, files))
    }

    /// The disk again, on the other side. Whoever passed the files has looked at what is beside them.
    pub(super) fn receive(&self, files: Vec<OwnedFd>) -> Result<OpenedDisk, Failure> {
        let options = OpenOptions::new().write(!self.read_only).ignore_children(true);
        let options = options.format(self.is_raw.then_some(ImageFormat::Raw));
        Ok(options.open_descriptors(files)?)
    }
}

fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
