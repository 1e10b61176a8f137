//! The directory with the snapshots of a machine: the manifest, and a file of memory and state for each.
//!
//! Whoever has the name of the machine ([`Claim`](super::super::worker::Claim)) may change it; everybody of the same user may
//! read it.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use vhd_core::ErrorKind;
use vhd_core::format::UniqueId;
use vhd_core::snapshot::{Steps, Work};
use vhd_core::storage::{remove_file, sync_directory_of};

use super::manifest::{KIND, Manifest, Snapshot};
use crate::codes::Kind;
use crate::commands::vm::worker::MachineName;
use crate::control::place::{lasting_directory, prepare};
use crate::failure::Failure;

const MANIFEST: &str = "snapshots";

/// The snapshots of a machine, for one who has its name.
pub(crate) struct Store {
    directory: PathBuf,
    pub(super) manifest: Manifest,
    /// Told of each step that is durable.
    pub(super) steps: &'static dyn Steps,
    /// Set to stop a merge of files; what it has done is kept.
    pub(super) cancel: Arc<AtomicBool>,
}

impl Store {
    /// Reads what is there; nothing is made before something is kept.
    pub(crate) fn open(name: &MachineName, cancel: Arc<AtomicBool>) -> Result<Self, Failure> {
        Self::in_directory(directory_of(name)?, &(), cancel)
    }

    pub(super) fn in_directory(
        directory: PathBuf,
        steps: &'static dyn Steps,
        cancel: Arc<AtomicBool>,
    ) -> Result<Self, Failure> {
        let manifest = KIND.read(&directory.join(MANIFEST))?.unwrap_or_default();
        Ok(Self {
            directory,
            manifest,
            steps,
            cancel,
        })
    }

    /// The snapshot of this name.
    pub(super) fn find(&self, name: &str) -> Result<&Snapshot, Failure> {
        self.manifest.named(name).ok_or_else(|| missing(&self.manifest, name))
    }

    /// The file with memory and state of a snapshot.
    pub(super) fn memory_of(&self, id: UniqueId) -> PathBuf {
        self.directory.join(format!("{id}.memory"))
    }

    /// Replaces the manifest, durably. A machine without snapshots needs none.
    pub(super) fn write(&mut self, next: Manifest, step: &str) -> Result<(), Failure> {
        let path = self.directory.join(MANIFEST);
        if next.is_empty() {
            remove_file(&path)?;
            // What somebody put there stays, and the directory with it.
            let _ = fs::remove_dir(&self.directory);
        } else {
            self.make_directory()?;
            KIND.write(&path, &next)?;
        }
        self.manifest = next;
        self.steps.done(step);
        Ok(())
    }

    /// What goes along with the operations on disks.
    pub(super) fn work(&self) -> Work<'_> {
        Work {
            steps: self.steps,
            progress: &(),
            cancel: &self.cancel,
        }
    }

    /// For this user alone: memory of guests is in it.
    fn make_directory(&self) -> Result<(), Failure> {
        let failed = |path: &Path, error: &io::Error| Failure::io("prepare", path, error);
        let parent = self.directory.parent().unwrap_or(&self.directory);
        let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(|error| failed(parent, &error))?;
        prepare(parent).map_err(|error| failed(parent, &error))?;
        prepare(&self.directory).map_err(|error| failed(&self.directory, &error))?;
        Ok(sync_directory_of(&self.directory)?)
    }
}

/// The manifest of a machine, to be looked at; `None` if it has no snapshots.
pub(super) fn read(name: &MachineName) -> Result<Option<Manifest>, Failure> {
    Ok(KIND.read(&directory_of(name)?.join(MANIFEST))?)
}

/// There is no snapshot of that name.
fn missing(manifest: &Manifest, name: &str) -> Failure {
    let known: Vec<&str> = manifest.snapshots.iter().map(|known| known.name.as_str()).collect();
    let known = match known[..] {
        [] => "it has none at all".to_owned(),
        _ => format!("it has \"{}\"", known.join("\", \"")),
    };
    let kind = Kind::Library(ErrorKind::SnapshotMissing);
    Failure::new(kind, format!("the machine has no snapshot \"{name}\"; {known}"))
}

/// Where the snapshots of a machine are: a place that outlives the process and the system's start.
pub(super) fn directory_of(name: &MachineName) -> Result<PathBuf, Failure> {
    let none = || {
        Failure::new(
            Kind::Machine,
            "this user has no home directory, where snapshots of machines are kept",
        )
    };
    let place = lasting_directory().ok_or_else(none)?;
    Ok(place.join("vm").join(name.as_str()))
}
