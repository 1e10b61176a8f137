//! The directory with the snapshots of a machine: the manifest, and a file of memory and state for each.
//!
//! Whoever has the name of the machine ([`Claim`](super::super::worker::Claim)) may change it; everybody of the same user may
//! read it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use hypervisor::StateFile;
use vhd_core::ErrorKind;
use vhd_core::format::UniqueId;
use vhd_core::snapshot::{Steps, Work};
use vhd_core::storage::{remove_file, sync_directory_of};

use super::manifest::{KIND, Manifest, Snapshot};
use crate::codes::Kind;
use crate::commands::vm::record::Record;
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
    /// Without snapshots the directory is put aside: the process is confined to the one that there is.
    is_held: bool,
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
            is_held: false,
        })
    }

    /// The same for the process of the machine ([`hold_directory`]).
    pub(crate) fn of_running(name: &MachineName, cancel: Arc<AtomicBool>) -> Result<Self, Failure> {
        let store = Self::open(name, cancel)?;
        Ok(Self { is_held: true, ..store })
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
            self.leave();
        } else {
            self.enter()?;
            KIND.write(&path, &next)?;
        }
        self.manifest = next;
        self.steps.done(step);
        Ok(())
    }

    /// There is a snapshot, or there will be one.
    fn enter(&self) -> Result<(), Failure> {
        if self.is_held && !self.directory.is_dir() {
            let moved = fs::rename(held(&self.directory), &self.directory);
            moved.map_err(|error| Failure::io("prepare", &self.directory, &error))?;
            return Ok(sync_directory_of(&self.directory)?);
        }
        make_directory(&self.directory)
    }

    /// There is none any more. What somebody put into the directory stays, and the directory with it.
    fn leave(&self) {
        let _ = match self.is_held {
            false => fs::remove_dir(&self.directory),
            true if is_empty(&self.directory) => fs::rename(&self.directory, held(&self.directory)),
            true => Ok(()),
        };
    }

    /// What goes along with the operations on disks.
    pub(super) fn work(&self) -> Work<'_> {
        Work {
            steps: self.steps,
            progress: &(),
            cancel: &self.cancel,
        }
    }
}

/// Makes a directory for this user alone: memory of guests is in it.
fn make_directory(directory: &Path) -> Result<(), Failure> {
    let failed = |path: &Path, error: &io::Error| Failure::io("prepare", path, error);
    let parent = directory.parent().unwrap_or(directory);
    let made = DirBuilder::new().recursive(true).mode(0o700).create(parent);
    made.map_err(|error| failed(parent, &error))?;
    prepare(parent).map_err(|error| failed(parent, &error))?;
    prepare(directory).map_err(|error| failed(directory, &error))?;
    Ok(sync_directory_of(directory)?)
}

/// The directory of a machine, or one that becomes it, so that its process can be confined to it before it has a snapshot; `None`
/// for a user who has no place for snapshots.
pub(crate) fn hold_directory(name: &MachineName) -> Result<Option<PathBuf>, Failure> {
    let Ok(directory) = directory_of(name) else {
        return Ok(None);
    };
    if directory.is_dir() {
        return Ok(Some(directory));
    }
    let aside = held(&directory);
    make_directory(&aside)?;
    Ok(Some(aside))
}

/// The machine has ended: what was put aside goes.
pub(crate) fn leave_directory(name: &MachineName) {
    // One that is not there need not go.
    let _ = directory_of(name).map(|directory| fs::remove_dir(held(&directory)));
}

/// Removes what machines have put aside that were killed: `is_alive` says of which names there is a process.
pub(crate) fn sweep_directories(is_alive: impl Fn(&MachineName) -> bool) {
    let entries = lasting_directory().and_then(|place| place.join("vm").read_dir().ok());
    for entry in entries.into_iter().flatten().flatten() {
        let name = entry.file_name();
        let name = name.to_str().and_then(|name| name.strip_prefix('.'));
        let name = name.and_then(|name| name.parse::<MachineName>().ok());
        // A machine has its name before it has its directory.
        if name.is_some_and(|name| !is_alive(&name)) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// What the directory of a machine without snapshots is called while it runs: no machine has such a name.
fn held(directory: &Path) -> PathBuf {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    directory.with_file_name(format!(".{name}"))
}

fn is_empty(directory: &Path) -> bool {
    directory.read_dir().is_ok_and(|mut entries| entries.next().is_none())
}

/// What the snapshots of a machine say of its disks, as far as they can be read.
pub(crate) fn records(name: &MachineName) -> Vec<Record> {
    let Ok(store) = Store::open(name, Arc::default()) else {
        return Vec::new();
    };
    let record = |snapshot: &Snapshot| {
        let file = File::open(store.memory_of(snapshot.id)).ok()?;
        Record::parse(StateFile::open(file).ok()?.owner().ok()?).ok()
    };
    store.manifest.snapshots.iter().filter_map(record).collect()
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
