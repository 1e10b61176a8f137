//! Deleting snapshots: the name goes at once, the file when nothing needs it.

use std::collections::HashSet;
use std::path::PathBuf;

use super::error::SnapshotError;
use super::manifest::{Node, Pending, Snapshot};
use super::tree::SnapshotTree;
use crate::ErrorKind;
use crate::format::UniqueId;
use crate::job::require_no_job;

/// What was done about the files of deleted snapshots.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Settled {
    /// Files that nothing depended on, and that are gone.
    pub removed: Vec<PathBuf>,
    /// Files whose one dependant was merged into them.
    pub merged: Vec<PathBuf>,
    /// Deleted snapshots whose files stay for now.
    pub waiting: Vec<Waiting>,
}

/// A deleted snapshot whose file stays for now.
#[derive(Debug)]
#[non_exhaustive]
pub struct Waiting {
    /// The name that it had.
    pub name: String,
    /// Its file.
    pub path: PathBuf,
    /// How many depend on it directly.
    pub dependants: usize,
    /// Why the file of one with fewer than two dependants could not go: it is in use, or others need it.
    pub reason: Option<SnapshotError>,
}

impl SnapshotTree<'_> {
    /// Deletes a snapshot, or with `subtree` all that descend from it too. What the others and the present state
    /// read does not change.
    ///
    /// # Errors
    /// `Missing`, and those of [`settle`](SnapshotTree::settle). The deletion itself is durable before any file is
    /// touched.
    pub fn delete(&mut self, name: &str, subtree: bool) -> Result<Settled, SnapshotError> {
        self.give_up(name, subtree)?;
        self.settle()
    }

    /// Takes the name of a snapshot, or with `subtree` those of all that descend from it too, durably. What becomes of the
    /// files is for [`settle`](Self::settle) or [`settle_in_use`](Self::settle_in_use) to say.
    ///
    /// # Errors
    /// `Missing`, `Record`.
    pub fn give_up(&mut self, name: &str, subtree: bool) -> Result<(), SnapshotError> {
        // The same command again: it has gone on with what was interrupted.
        if self.manifest.named(name).is_none() && self.given_up.iter().any(|given_up| given_up == name) {
            return Ok(());
        }
        let id = self.named(name)?.id;
        let ids = if subtree {
            self.manifest.descendants(id)
        } else {
            vec![id]
        };
        let mut next = self.manifest.clone();
        for snapshot in next.snapshots.iter_mut().filter(|snapshot| ids.contains(&snapshot.id)) {
            snapshot.deleted = true;
        }
        self.write(next, "snapshots marked as deleted")
    }

    /// Does what can be done about the files of deleted snapshots: those that nothing depends on go, those that one
    /// depends on take in its sectors. Those with several dependants stay as they are, and so do those that are in
    /// use.
    ///
    /// # Errors
    /// [`SnapshotError`]; what was done is kept, and the next call goes on.
    pub fn settle(&mut self) -> Result<Settled, SnapshotError> {
        let mut settled = Settled::default();
        let mut blocked = Vec::new();
        while let Some((snapshot, dependant)) = self.next_to_settle(&blocked) {
            let path = self.path(&snapshot.file);
            let done = match dependant {
                None => self.drop_file(&snapshot),
                Some(dependant) => self.merge_dependant(&snapshot, dependant),
            };
            match (done, dependant) {
                (Ok(()), None) => settled.removed.push(path),
                (Ok(()), Some(_)) => settled.merged.push(path),
                (Err(error), _) if can_wait(&error) && self.manifest.pending.is_none() => {
                    blocked.push(snapshot.id);
                    settled.waiting.push(self.waiting(&snapshot, Some(error)));
                }
                (Err(error), _) => return Err(error),
            }
        }
        let seen: HashSet<UniqueId> = blocked.into_iter().collect();
        let others = self.manifest.snapshots.iter();
        let others = others.filter(|snapshot| snapshot.deleted && !seen.contains(&snapshot.id));
        let others: Vec<Waiting> = others.map(|snapshot| self.waiting(snapshot, None)).collect();
        settled.waiting.extend(others);
        Ok(settled)
    }

    fn waiting(&self, snapshot: &Snapshot, reason: Option<SnapshotError>) -> Waiting {
        Waiting {
            name: snapshot.name.clone(),
            path: self.path(&snapshot.file),
            dependants: self.manifest.dependants(snapshot.id).len(),
            reason,
        }
    }

    /// A deleted snapshot with one dependant or none. Files that only go come first: what they hold need not be
    /// merged. Then those nearest to the base: so a sector is copied once in each merge of its own file only.
    fn next_to_settle(&self, blocked: &[UniqueId]) -> Option<(Snapshot, Option<Node>)> {
        let deleted = self.manifest.snapshots.iter().filter(|snapshot| snapshot.deleted);
        let ready = deleted
            .filter(|snapshot| !blocked.contains(&snapshot.id))
            .filter_map(|snapshot| {
                let dependants = self.manifest.dependants(snapshot.id);
                (dependants.len() < 2).then(|| (snapshot, dependants.first().copied()))
            });
        let depths = self.manifest.depths();
        let first = ready.min_by_key(|(snapshot, dependant)| (dependant.is_some(), depths.get(&snapshot.id).copied()));
        first.map(|(snapshot, dependant)| (snapshot.clone(), dependant))
    }

    /// Removes a snapshot that nothing depends on, with its file.
    fn drop_file(&mut self, snapshot: &Snapshot) -> Result<(), SnapshotError> {
        if snapshot.file.name == self.place.base() {
            return Err(self.stale(format!("nothing is based on the base, {}", self.place.base())));
        }
        let _held = self.place.hold(&snapshot.file.name)?;
        self.place.refuse_children(&snapshot.file)?;
        // INV-37: an open job on the file could not be finished any more.
        require_no_job([self.path(&snapshot.file)])?;
        let mut next = self.manifest.clone();
        next.snapshots.retain(|other| other.id != snapshot.id);
        next.pending = Some(Pending::Remove {
            file: snapshot.file.clone(),
        });
        // INV-23: before the file goes.
        self.write(next, "snapshot dropped")?;
        self.finish_removal(&snapshot.file)
    }
}

/// Somebody else uses or needs a file, or has a job on it: the deletion is done when he does not any more.
pub(super) fn can_wait(error: &SnapshotError) -> bool {
    matches!(
        error.kind(),
        ErrorKind::Locked | ErrorKind::HasChildren | ErrorKind::JobPending
    )
}
