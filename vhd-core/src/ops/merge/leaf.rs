//! The record of a merge of a leaf that is in use: what is copied and when, the disk itself decides.

use std::path::Path;

use super::MergeError;
use super::journal::{Journal, Phase, Source};
use super::known::Known;
use crate::format::UniqueId;
use crate::job::{Head, JobKind, sweep};
use crate::storage::{self, StorageError};

/// Puts the record in its place that says that the image at `target` is about to take in what its child holds.
pub(crate) fn announce_leaf(child: (&Path, UniqueId), target: (&Path, UniqueId)) -> Result<(), MergeError> {
    let (child, target) = (known(child)?, known(target)?);
    sweep(JobKind::Merge, &Journal::path(&child.path))?;
    if let Some(recorded) = Journal::read(&child.path)?
        && (recorded.target.id != target.id
            || recorded.layers.len() != 1
            || !recorded.children.is_empty()
            || !recorded.carried.is_empty())
    {
        return Err(recorded.unfinished());
    }
    let source = Source {
        known: child,
        fingerprint: None,
    };
    let mut journal = Journal {
        target,
        layers: vec![source],
        children: Vec::new(),
        carried: Vec::new(),
        phase: Phase::Copying(0),
        boot: None,
        head: Head::default(),
    };
    // INV-20, INV-36: record and markers are durable before the target changes.
    journal.announce()
}

/// Everything is in the target, durably: the record goes.
pub(crate) fn close_leaf(child: &Path) -> Result<(), MergeError> {
    match Journal::read(child)? {
        Some(journal) => journal.close(),
        None => Ok(sweep(JobKind::Merge, &Journal::path(child))?),
    }
}

fn known((path, id): (&Path, UniqueId)) -> Result<Known, MergeError> {
    let path = storage::full_name(path).map_err(|source| StorageError::at(path, "find", source))?;
    Ok(Known { path, id })
}
