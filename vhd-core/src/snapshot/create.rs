//! Taking a snapshot: the active leaf is frozen, and a child of it becomes the new one.

use std::path::PathBuf;

use super::error::SnapshotError;
use super::manifest::{Active, Snapshot};
use super::tree::{SnapshotTree, now};
use crate::format::UniqueId;
use crate::storage::{Access, HostFile, Sharing};

/// A snapshot that was taken.
#[derive(Clone, Debug)]
pub struct Created {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// The file that is written to from here on.
    pub active: PathBuf,
}

impl SnapshotTree<'_> {
    /// Keeps the present state under a name. Readers of the active leaf are not concerned.
    ///
    /// # Errors
    /// `Name`, `Exists`; `Storage` (locked) while somebody writes to the active leaf; `Create`.
    pub fn create(&mut self, name: &str) -> Result<Created, SnapshotError> {
        self.check_new_name(name)?;
        let former = self.manifest.active.clone();
        let _held = HostFile::open(&self.path(&former.file), Access::ReadOnly, Sharing::Exclusive)?;
        let leaf = self.make_leaf(&former.file)?;
        let snapshot = frozen(UniqueId::random(), name, former);
        let mut next = self.manifest.clone();
        next.active = Active {
            file: leaf,
            parent: Some(snapshot.id),
        };
        next.snapshots.push(snapshot.clone());
        next.pending = None;
        // INV-24: the leaf is durable under its name.
        self.write(next, "snapshot taken")?;
        Ok(Created {
            active: self.path(&self.manifest.active.file),
            snapshot,
        })
    }
}

/// The snapshot that a former leaf is.
pub(super) fn frozen(id: UniqueId, name: &str, leaf: Active) -> Snapshot {
    Snapshot {
        id,
        name: name.to_owned(),
        created: now(),
        file: leaf.file,
        parent: leaf.parent,
        deleted: false,
    }
}
