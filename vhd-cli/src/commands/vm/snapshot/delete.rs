//! Deleting a snapshot of a machine: its name goes at once, then its memory, then what its disks have of it.

use vhd_core::error::with_causes;
use vhd_core::snapshot::{Settled, Snapshot as DiskSnapshot, SnapshotError, SnapshotTree};
use vhd_core::storage::remove_file;

use super::manifest::{Part, Pending, Snapshot};
use super::parts::LivePart;
use super::store::Store;
use crate::failure::Failure;

impl Store {
    /// Deletes a snapshot; what the others and the present state have does not change. Returns what has to wait.
    pub(crate) fn delete(&mut self, name: &str, running: &[LivePart]) -> Result<Vec<String>, Failure> {
        let snapshot = self.find(name)?.clone();
        let mut next = self.manifest.with(Some(Pending::Delete {
            snapshot: snapshot.clone(),
        }));
        next.snapshots.retain(|other| other.id != snapshot.id);
        // INV-88: it is not listed any more before the first of its parts goes.
        self.write(next, "snapshot dropped")?;
        self.finish_deletion(&snapshot, running)
    }

    /// Removes the parts of a snapshot, as far as they are there.
    pub(super) fn finish_deletion(
        &mut self,
        snapshot: &Snapshot,
        running: &[LivePart],
    ) -> Result<Vec<String>, Failure> {
        let waiting = self.remove_parts(snapshot, running)?;
        self.forget_pending()?;
        Ok(waiting)
    }

    pub(super) fn remove_parts(&self, snapshot: &Snapshot, running: &[LivePart]) -> Result<Vec<String>, Failure> {
        remove_file(&self.memory_of(snapshot.id))?;
        self.steps.done("memory removed");
        let mut waiting = Vec::new();
        for part in &snapshot.disks {
            waiting.extend(self.remove_part(part, running)?);
        }
        Ok(waiting)
    }

    fn remove_part(&self, part: &Part, running: &[LivePart]) -> Result<Vec<String>, Failure> {
        let Some(mut tree) = self.tree_if_there(part, running)? else {
            return Ok(Vec::new());
        };
        let is_running = running.iter().any(|live| live.base == part.base);
        Ok(reasons(&drop_from(&mut tree, is_running, |it| it.id == part.snapshot)?))
    }

    /// Says in the manifest that nothing is pending any more.
    pub(super) fn forget_pending(&mut self) -> Result<(), Failure> {
        self.write(self.manifest.with(None), "nothing pending")
    }
}

/// Deletes a snapshot of a disk, or goes on with that.
pub(super) fn drop_from(
    tree: &mut SnapshotTree<'_>,
    is_running: bool,
    is_meant: impl Fn(&DiskSnapshot) -> bool,
) -> Result<Settled, SnapshotError> {
    let Some(found) = tree.manifest().snapshots.iter().find(|it| is_meant(it)).cloned() else {
        return Ok(Settled::default());
    };
    // One that was given up before may still have its file.
    if !found.deleted {
        tree.give_up(&found.name, false)?;
    }
    match is_running {
        true => tree.settle_in_use(),
        false => tree.settle(),
    }
}

/// Why files stay for now that nobody wants to wait for.
fn reasons(settled: &Settled) -> Vec<String> {
    let reasons = settled.waiting.iter().filter_map(|waiting| {
        let reason = with_causes(waiting.reason.as_ref()?);
        Some(format!("{} stays for now: {reason}", waiting.path.display()))
    });
    reasons.collect()
}
