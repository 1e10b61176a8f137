//! What an interrupted operation left is brought to an end before anything else is done.

use std::sync::Arc;

use super::manifest::Pending;
use super::parts::LivePart;
use super::store::{Store, directory_of};
use crate::commands::vm::worker::MachineName;
use crate::failure::Failure;
use crate::output;

impl Store {
    /// Completes or undoes what is pending; doing it twice is harmless. `running` are the disks that this process has in use.
    /// Returns what became of it.
    ///
    /// # Errors
    /// What keeps it from an end: it is tried again by the next command.
    pub(crate) fn recover(&mut self, running: &[LivePart]) -> Result<Option<String>, Failure> {
        let Some(pending) = self.manifest.pending.clone() else {
            return Ok(None);
        };
        let (what, recovered) = match &pending {
            Pending::Create { snapshot } => (
                format!("the snapshot \"{}\" was not completed, and is gone", snapshot.name),
                self.finish_deletion(snapshot, running).map(drop),
            ),
            Pending::Delete { snapshot } => (
                format!("the deletion of \"{}\" is completed", snapshot.name),
                self.finish_deletion(snapshot, running).map(drop),
            ),
            Pending::Apply {
                is_applied: true,
                disks,
                kept,
                ..
            } => (
                "the disks had been put back to the snapshot".to_owned(),
                self.finish_application(disks, kept),
            ),
            Pending::Apply { disks, kept, .. } => (
                "the disks are as before it went back to a snapshot".to_owned(),
                self.undo_application(disks, kept),
            ),
        };
        let command = pending.name();
        recovered.map_err(|failure| {
            let about =
                format!("an interrupted `vhd vm snapshot {command}` comes first, and cannot be brought to its end");
            failure.about(about)
        })?;
        Ok(Some(format!(
            "an interrupted `vhd vm snapshot {command}` was found; {what}"
        )))
    }

    /// The same, and says what became of it.
    ///
    /// # Errors
    /// As of [`recover`](Self::recover).
    pub(crate) fn recover_loudly(&mut self, running: &[LivePart]) -> Result<(), Failure> {
        self.recover(running)?.iter().for_each(output::warning);
        Ok(())
    }

    /// The same before a machine of this name begins: what would show it a mixture of two states has to be recovered.
    ///
    /// # Errors
    /// The disks are neither as before nor as after going back to a snapshot.
    pub(super) fn recover_before_start(&mut self) -> Result<(), Failure> {
        let is_mixed = matches!(self.manifest.pending, Some(Pending::Apply { .. }));
        match self.recover_loudly(&[]) {
            Err(failure) if is_mixed => Err(failure),
            Err(failure) => {
                output::warning(failure.message());
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }
}

/// Brings to an end what was interrupted, for one who has the machine's name and is about to run it.
///
/// # Errors
/// As of [`Store::recover_before_start`], and a manifest that cannot be read.
pub(crate) fn recover_before_start(name: &MachineName) -> Result<(), Failure> {
    // A user without a place for snapshots has none.
    match directory_of(name) {
        Ok(directory) => Store::in_directory(directory, &(), Arc::default())?.recover_before_start(),
        Err(_) => Ok(()),
    }
}
