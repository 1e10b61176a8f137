//! The disks of a snapshot: each is a snapshot in a tree, which is found again by its id.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use vhd_core::ErrorKind;
use vhd_core::device::LiveDevice;
use vhd_core::image::Footers;
use vhd_core::snapshot::{Snapshot, SnapshotError, SnapshotTree};
use vhd_core::storage::{Access, HostFile, Sharing};

use super::manifest::Part;
use super::store::Store;
use crate::codes::Kind;
use crate::failure::Failure;
use crate::output;

/// A disk of a machine that runs in this process.
pub(crate) struct LivePart {
    pub(crate) slot: usize,
    /// What the guest sees as its serial number.
    pub(crate) id: String,
    /// The base of its tree.
    pub(crate) base: PathBuf,
    pub(crate) device: Arc<LiveDevice>,
}

impl Store {
    /// Opens the tree of a disk, which may be one of those that run here.
    pub(super) fn tree<'t>(&'t self, base: &Path, running: &'t [LivePart]) -> Result<SnapshotTree<'t>, SnapshotError> {
        match running.iter().find(|live| live.base == base) {
            Some(live) => SnapshotTree::open_in_use(base, &live.device, self.work()),
            None => SnapshotTree::open(base, self.work()),
        }
    }

    /// The same for an operation that is brought to an end: a disk that is gone needs nothing.
    pub(super) fn tree_if_there<'t>(
        &'t self,
        part: &Part,
        running: &'t [LivePart],
    ) -> Result<Option<SnapshotTree<'t>>, Failure> {
        match self.tree(&part.base, running) {
            Ok(tree) => Ok(Some(tree)),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                output::warning(format_args!("the disk {} is not there any more", part.base.display()));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }
}

/// What a tree has of a disk; refuses if that is gone.
pub(super) fn snapshot_in<'t>(tree: &'t SnapshotTree<'_>, part: &Part) -> Result<&'t Snapshot, Failure> {
    let found = tree.manifest().snapshot(part.snapshot).filter(|found| !found.deleted);
    found.ok_or_else(|| {
        let message = format!(
            "{} has not the state any more that belongs to it: it was deleted there (`vhd snapshot delete`), and the machine \
             cannot go back to it",
            part.base.display()
        );
        Failure::new(Kind::MachineSnapshotBroken, message)
    })
}

/// Bytes of the disk that a snapshot is of.
pub(super) fn size_of(tree: &SnapshotTree<'_>, snapshot: &Snapshot) -> Result<u64, Failure> {
    let path = tree.path(&snapshot.file);
    let file = HostFile::open(&path, Access::ReadOnly, Sharing::Unlocked)?;
    let footers = Footers::read(&file).map_err(|error| Failure::library(error.kind(), &error).about(path.display()))?;
    Ok(footers.footer.current_size)
}
