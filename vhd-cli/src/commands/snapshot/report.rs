//! What is told of a change.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use vhd_core::snapshot::{Applied, Created, Rescanned, Settled, SnapshotTree, Waiting};
use vhd_core::units::u64_from;

use crate::control::Deleted;
use crate::human;
use crate::output::path_text;

/// A snapshot that was taken.
#[derive(Serialize)]
pub(super) struct CreatedReport {
    name: String,
    id: String,
    created: Option<String>,
    frozen: String,
    active: String,
    /// Bytes of the record of digests, with --digest.
    digest_bytes: Option<u64>,
}

/// A snapshot that was applied.
#[derive(Serialize)]
pub(super) struct AppliedReport {
    disk: String,
    name: String,
    active: String,
    taken: Option<String>,
    discarded_bytes: u64,
    #[serde(flatten)]
    settled: SettledReport,
}

/// A snapshot with another name.
#[derive(Serialize)]
pub(super) struct RenamedReport {
    pub(super) disk: String,
    pub(super) old: String,
    pub(super) new: String,
}

/// A snapshot that was deleted.
#[derive(Serialize)]
pub(super) struct DeletedReport {
    disk: String,
    name: String,
    active: String,
    #[serde(flatten)]
    settled: SettledReport,
}

/// A manifest that was made anew.
#[derive(Serialize)]
pub(super) struct RescannedReport {
    disk: String,
    active: String,
    snapshots: u64,
    named_by_file: Vec<String>,
    lost: Vec<String>,
    damaged: Option<String>,
    #[serde(flatten)]
    settled: SettledReport,
}

/// What was done about the files of deleted snapshots.
#[derive(Serialize)]
struct SettledReport {
    removed: Vec<String>,
    merged: Vec<String>,
    waiting: Vec<WaitingReport>,
}

#[derive(Serialize)]
struct WaitingReport {
    name: String,
    file: String,
    dependants: u64,
    reason: Option<String>,
}

impl CreatedReport {
    pub(super) fn of(created: &Created, digest_bytes: Option<u64>) -> Self {
        let snapshot = &created.snapshot;
        Self {
            name: snapshot.name.clone(),
            id: snapshot.id.to_string(),
            created: human::unix_utc(snapshot.created),
            frozen: snapshot.file.name.clone(),
            active: path_text(&created.active),
            digest_bytes,
        }
    }
}

impl AppliedReport {
    pub(super) fn of(disk: &Path, applied: &Applied) -> Self {
        Self {
            disk: path_text(disk),
            name: applied.snapshot.name.clone(),
            active: path_text(&applied.active),
            taken: applied.taken.as_ref().map(|taken| taken.name.clone()),
            discarded_bytes: applied.discarded_bytes,
            settled: SettledReport::of(&applied.settled),
        }
    }
}

impl DeletedReport {
    pub(super) fn of(tree: &SnapshotTree<'_>, name: &str, settled: &Settled) -> Self {
        Self {
            disk: path_text(&tree.disk()),
            name: name.to_owned(),
            active: path_text(&tree.path(&tree.manifest().active.file)),
            settled: SettledReport::of(settled),
        }
    }
}

impl DeletedReport {
    /// What the server of the disk with this base has done.
    pub(super) fn in_use(base: &Path, name: &str, deleted: Deleted) -> Self {
        let text = |file: &String| path_text(&base.with_file_name(file));
        let waiting = deleted.waiting.iter().map(|waiting| WaitingReport {
            name: waiting.name.clone(),
            file: text(&waiting.file),
            dependants: waiting.dependants,
            reason: waiting.reason.clone(),
        });
        Self {
            disk: path_text(base),
            name: name.to_owned(),
            active: text(&deleted.active),
            settled: SettledReport {
                removed: deleted.removed.iter().map(text).collect(),
                merged: deleted.merged.iter().map(text).collect(),
                waiting: waiting.collect(),
            },
        }
    }
}

impl RescannedReport {
    pub(super) fn of(tree: &SnapshotTree<'_>, found: &Rescanned, settled: &Settled) -> Self {
        let manifest = tree.manifest();
        Self {
            disk: path_text(&tree.disk()),
            active: path_text(&tree.path(&manifest.active.file)),
            snapshots: u64_from(manifest.listed().count()),
            named_by_file: found.named_by_file.clone(),
            lost: found.lost.clone(),
            damaged: found.damaged.as_deref().map(path_text),
            settled: SettledReport::of(settled),
        }
    }
}

impl SettledReport {
    fn of(settled: &Settled) -> Self {
        let texts = |paths: &[std::path::PathBuf]| paths.iter().map(|path| path_text(path)).collect();
        Self {
            removed: texts(&settled.removed),
            merged: texts(&settled.merged),
            waiting: settled.waiting.iter().map(WaitingReport::of).collect(),
        }
    }
}

impl WaitingReport {
    fn of(waiting: &Waiting) -> Self {
        Self {
            name: waiting.name.clone(),
            file: path_text(&waiting.path),
            dependants: u64_from(waiting.dependants),
            reason: waiting.reason.as_ref().map(ToString::to_string),
        }
    }
}

impl fmt::Display for CreatedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "Took snapshot \"{}\": {} stays as it is", self.name, self.frozen)?;
        writeln!(f, "Write to {} from now on", self.active)
    }
}

impl fmt::Display for AppliedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(taken) = &self.taken {
            writeln!(f, "Took snapshot \"{taken}\" of the state before")?;
        }
        writeln!(f, "{} is at snapshot \"{}\" again", self.disk, self.name)?;
        if self.discarded_bytes > 0 {
            writeln!(f, "Discarded {} of writes", human::bytes(self.discarded_bytes))?;
        }
        writeln!(f, "Write to {} from now on", self.active)?;
        self.settled.fmt(f)
    }
}

impl fmt::Display for RenamedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: snapshot \"{}\" is now \"{}\"", self.disk, self.old, self.new)
    }
}

impl fmt::Display for DeletedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: deleted snapshot \"{}\"", self.disk, self.name)?;
        writeln!(f, "Write to {}", self.active)?;
        self.settled.fmt(f)
    }
}

impl fmt::Display for RescannedReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = human::count(self.snapshots, "snapshot");
        writeln!(f, "{}: {count}, {} is written to", self.disk, self.active)?;
        for name in &self.named_by_file {
            writeln!(f, "Not known before, and named by its file: \"{name}\"")?;
        }
        for name in &self.lost {
            writeln!(f, "Its image is not there any more: \"{name}\"")?;
        }
        if let Some(damaged) = &self.damaged {
            writeln!(f, "The former manifest was damaged; it is kept as {damaged}")?;
        }
        self.settled.fmt(f)
    }
}

impl fmt::Display for SettledReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for file in &self.removed {
            writeln!(f, "Removed {file}")?;
        }
        for file in &self.merged {
            writeln!(f, "Merged what was based on it into {file}")?;
        }
        for waiting in &self.waiting {
            write!(f, "{} of \"{}\" stays for now: ", waiting.file, waiting.name)?;
            match &waiting.reason {
                Some(reason) => writeln!(f, "{reason}")?,
                None => writeln!(f, "{} are based on it", waiting.dependants)?,
            }
        }
        Ok(())
    }
}
