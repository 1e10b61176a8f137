//! What is told of the snapshots of a machine.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;
use vhd_core::ErrorKind;

use super::create::Taken;
use super::manifest::Manifest;
use crate::codes::Kind;
use crate::commands::vm::worker::MachineName;
use crate::failure::Failure;
use crate::human;
use crate::output::path_text;

/// A snapshot that was taken.
#[derive(Serialize)]
pub(super) struct CreatedReport {
    machine: MachineName,
    name: String,
    disks: usize,
    paused_us: u64,
}

/// A snapshot that was deleted.
#[derive(Serialize)]
pub(super) struct DeletedReport {
    machine: MachineName,
    name: String,
    /// Files that stay for now, and why.
    waiting: Vec<String>,
}

/// The snapshots of a machine.
#[derive(Serialize)]
pub(super) struct ListReport {
    machine: MachineName,
    snapshots: Vec<Listed>,
    /// A command that is under way.
    pending: Option<&'static str>,
}

#[derive(Serialize)]
struct Listed {
    name: String,
    id: String,
    created: Option<String>,
    paused_us: u64,
    disks: Vec<ListedDisk>,
}

#[derive(Serialize)]
struct ListedDisk {
    id: String,
    disk: String,
    snapshot: String,
}

impl CreatedReport {
    pub(super) fn new(machine: &MachineName, taken: Taken) -> Self {
        Self {
            machine: machine.clone(),
            name: taken.name,
            disks: taken.disks,
            paused_us: taken.paused_us,
        }
    }
}

impl fmt::Display for CreatedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let disks = human::count(u64::try_from(self.disks).unwrap_or(u64::MAX), "disk");
        writeln!(f, "snapshot:  {} (memory and {disks})", self.name)?;
        writeln!(
            f,
            "paused:    {}.{} ms",
            self.paused_us / 1000,
            self.paused_us % 1000 / 100
        )
    }
}

impl DeletedReport {
    pub(super) fn new(machine: &MachineName, name: &str, waiting: Vec<String>) -> Self {
        Self {
            machine: machine.clone(),
            name: name.to_owned(),
            waiting,
        }
    }
}

impl fmt::Display for DeletedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "deleted:   {}", self.name)?;
        self.waiting
            .iter()
            .try_for_each(|reason| writeln!(f, "waiting:   {reason}"))
    }
}

impl ListReport {
    pub(super) fn new(machine: &MachineName, manifest: &Manifest) -> Self {
        let snapshots = manifest.snapshots.iter().map(|snapshot| Listed {
            name: snapshot.name.clone(),
            id: snapshot.id.to_string(),
            created: human::unix_utc(snapshot.created),
            paused_us: snapshot.paused_us,
            disks: snapshot
                .disks
                .iter()
                .map(|part| ListedDisk {
                    id: part.id.clone(),
                    disk: path_text(&part.base),
                    snapshot: part.snapshot.to_string(),
                })
                .collect(),
        });
        Self {
            machine: machine.clone(),
            snapshots: snapshots.collect(),
            pending: manifest.pending.as_ref().map(super::manifest::Pending::name),
        }
    }
}

impl fmt::Display for ListReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.snapshots.is_empty() {
            writeln!(f, "no snapshots")?;
        }
        for snapshot in &self.snapshots {
            let disks: Vec<&str> = snapshot.disks.iter().map(|disk| disk.disk.as_str()).collect();
            let created = snapshot.created.as_deref().unwrap_or("-");
            writeln!(f, "{:20} {created}  {}", snapshot.name, disks.join(", "))?;
        }
        match self.pending {
            Some(pending) => writeln!(f, "`vhd vm snapshot {pending}` is under way, or was interrupted"),
            None => Ok(()),
        }
    }
}

/// The present state of a machine that runs is in no snapshot.
pub(super) fn unsaved(machine: &MachineName) -> Failure {
    let message = format!(
        "the machine {machine} runs, and its guest would be ended: its memory, and what it has written since the last snapshot, would \
         be lost. --discard-current loses them, --snapshot-first keeps them as a snapshot"
    );
    Failure::new(Kind::Library(ErrorKind::SnapshotsUnsaved), message)
}

/// A name for a snapshot that was given none: the time.
pub(super) fn automatic_name() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    human::unix_utc(seconds).unwrap_or_else(|| seconds.to_string())
}
