//! A machine that was saved: its file is completed when its disks are closed (INV-86), and then whoever asked is answered.

use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};

use hypervisor::Saved;

use super::message::Answer;
use super::server::answer_failure;
use crate::commands::vm::save::state_failed;
use crate::control::line::send;
use crate::failure::Failure;

/// What is to be completed.
pub(crate) struct Pending {
    pub(super) saved: Saved,
    /// What the file is called, for messages.
    pub(super) file: String,
    pub(super) client: UnixStream,
}

/// A place for it, between the thread that was asked and the one that closes the disks.
#[derive(Default)]
pub(crate) struct Saving(Mutex<Option<Pending>>);

impl Saving {
    pub(super) fn put(&self, pending: Pending) {
        *self.locked() = Some(pending);
    }

    /// Completes the file with the record, or says the reason why not; answers. Does nothing where nothing was
    /// saved.
    pub(crate) fn complete(&self, record: Result<Vec<u8>, &Failure>) -> Result<(), Failure> {
        let Some(Pending { saved, file, client }) = self.locked().take() else {
            return Ok(());
        };
        let mut completed = Ok(());
        let answer = match record.map(|record| saved.complete(&record)) {
            Ok(Ok(())) => Answer::Done,
            Ok(Err(error)) => {
                let failure = state_failed(error).about(file);
                let answer = answer_failure(&failure);
                completed = Err(failure);
                answer
            }
            Err(failure) => answer_failure(failure),
        };
        // Whoever went away learns it from the file: one that is not complete says so. The client removes it.
        let _ = send(&client, &answer);
        completed
    }

    fn locked(&self) -> MutexGuard<'_, Option<Pending>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
