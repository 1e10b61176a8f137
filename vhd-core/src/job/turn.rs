//! Beginnings and ends of jobs in one directory come one after the other.

use std::fs::{File, TryLockError};
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::JobError;
use crate::storage::{Access, StorageError};

/// A beginning or an end takes a moment: somebody who holds a directory longer has stopped.
const ATTEMPTS: u32 = 500;
const PAUSE: Duration = Duration::from_millis(20);

/// The right to change the markers in some directories, until it is dropped.
pub(super) struct Turn {
    _locked: Vec<File>,
}

impl Turn {
    /// Waits for it, in the order of the list: which is sorted, so nobody waits in a circle.
    pub(super) fn take(dirs: &[PathBuf]) -> Result<Self, JobError> {
        let locked = dirs.iter().map(lock);
        let locked: Vec<Option<File>> = locked.collect::<Result<_, _>>()?;
        Ok(Self {
            _locked: locked.into_iter().flatten().collect(),
        })
    }
}

/// `None` where the file system has no such locks: then two jobs that begin in the same moment may not see one
/// another, and their image locks keep them apart.
fn lock(dir: &PathBuf) -> Result<Option<File>, StorageError> {
    let file = File::open(dir).map_err(|source| StorageError::at(dir, "open", source))?;
    for _ in 0..ATTEMPTS {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => sleep(PAUSE),
            Err(TryLockError::Error(error)) => {
                tracing::debug!(dir = %dir.display(), %error, "a directory can't be locked");
                return Ok(None);
            }
        }
    }
    Err(StorageError::Locked {
        path: dir.clone(),
        wanted: Access::ReadWrite,
        holder: None,
    })
}
