//! What is said over a control socket, a line each: a request, then how far it is, and in the end an answer.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vhd_core::snapshot::Snapshot;

use crate::commands::merge::MergeJson;
use crate::commands::resize::ResizeJson;

/// Changes when a message changes its meaning.
pub(super) const VERSION: u32 = 2;

/// Bytes in the longest line of a request.
pub(super) const LONGEST_REQUEST: usize = 16 << 10;

/// Bytes in the longest line that a server sends: a chain may have thousands of files.
pub(super) const LONGEST_ANSWER: usize = 16 << 20;

/// What a command asks for. It closes its sending side to have the job stopped at a safe point.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Request {
    pub(super) version: u32,
    #[serde(flatten)]
    pub(super) job: Job,
    /// Bytes that are copied in a second at most.
    pub(super) rate: Option<u64>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub(crate) enum Job {
    /// Keep the present state of the disk under a name.
    SnapshotCreate { name: String },
    /// Delete a snapshot, or with `subtree` all that descend from it too.
    SnapshotDelete { name: String, subtree: bool },
    /// Merge layers of the disk.
    Merge(MergeJob),
    /// Give the disk another size.
    Resize(ResizeJob),
}

/// What `vhd merge` asks for. Paths go from the root.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct MergeJob {
    pub(crate) child: PathBuf,
    pub(crate) into: Option<PathBuf>,
    pub(crate) children: Vec<PathBuf>,
    pub(crate) carry: bool,
    pub(crate) ignore_children: bool,
    pub(crate) batch: Option<u64>,
    pub(crate) dry_run: bool,
}

/// What `vhd resize` asks for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct ResizeJob {
    /// From the root.
    pub(crate) image: PathBuf,
    pub(crate) size: u64,
    pub(crate) shrink: bool,
    pub(crate) tree: bool,
    pub(crate) fix_gpt: bool,
    pub(crate) ignore_children: bool,
    pub(crate) dry_run: bool,
}

/// What the server sends.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    /// The job goes over so many bytes, of which so many are done. The answer follows.
    Progress {
        total: u64,
        done: u64,
    },
    Taken(Taken),
    Deleted(Deleted),
    Merged(MergeJson),
    Resized(ResizeJson),
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
