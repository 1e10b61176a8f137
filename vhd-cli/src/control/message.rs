//! What is said over the control socket of a disk.

use serde::{Deserialize, Serialize};
use vhd_core::snapshot::Snapshot;

/// Changes when a message changes its meaning.
pub(super) const VERSION: u32 = 1;

/// What a command asks for.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Request {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) job: Job,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(super) enum Job {
    /// Keep the present state of the disk under a name.
    SnapshotCreate { name: String },
    /// Delete a snapshot, or with `subtree` all that descend from it too.
    SnapshotDelete { name: String, subtree: bool },
}

/// What the server answers.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Answer {
    Taken(Taken),
    Deleted(Deleted),
    /// Why not, as a code of the command and a message for people.
    Failed {
        code: String,
        message: String,
    },
}

/// A snapshot that was taken of the disk in use.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Taken {
    /// The snapshot.
    pub(crate) snapshot: Snapshot,
    /// The name of the file that is written to from here on, beside the base.
    pub(crate) active: String,
    /// Microseconds that requests had to wait at most.
    pub(crate) paused_us: u64,
}

/// A snapshot that was deleted of the disk in use. Files are names beside the base.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Deleted {
    /// What is written to from here on.
    pub(crate) active: String,
    pub(crate) removed: Vec<String>,
    pub(crate) merged: Vec<String>,
    pub(crate) waiting: Vec<WaitingFile>,
}

/// The file of a deleted snapshot that stays for now.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct WaitingFile {
    pub(crate) name: String,
    pub(crate) file: String,
    pub(crate) dependants: u64,
    pub(crate) reason: Option<String>,
}

impl Deleted {
    pub(super) fn files(&self) -> impl Iterator<Item = &String> {
        let waiting = self.waiting.iter().map(|waiting| &waiting.file);
        let gone = self.removed.iter().chain(&self.merged);
        gone.chain(waiting).chain([&self.active])
    }
}
