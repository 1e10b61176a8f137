//! `snapshots/`: every snapshot of the disk, read-only. A new one appears without a new mount.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use vhd_core::device::Disk;
use vhd_core::error::with_causes;
use vhd_core::format::UniqueId;
use vhd_core::snapshot::{self, SnapshotFile};
use vhd_fuse::{Directory, Fixed, Kind, Name, Node, NodeError};

use super::MountArgs;
use super::on_demand::{OnDemand, OpenDisks};
use super::shown;

/// `DT_DIR`.
const DIRECTORY: u8 = 4;

/// The snapshots of a disk. Nothing of one is opened before something in its directory is looked at.
pub(super) struct Snapshots {
    shared: Arc<Shared>,
    /// Those that were looked up, by identity.
    known: Mutex<HashMap<UniqueId, Node>>,
}

/// What all snapshots have in common.
struct Shared {
    /// The base of the disk as it was opened. Whichever of its files is mounted, all snapshots are shown.
    image: PathBuf,
    disks: Arc<OpenDisks>,
    args: MountArgs,
    time: SystemTime,
}

impl Snapshots {
    /// The snapshots of the disk that `image` belongs to.
    pub(super) fn new(image: &Path, disks: Arc<OpenDisks>, args: &MountArgs, time: SystemTime) -> Self {
        Self {
            shared: Arc::new(Shared {
                // The file that stays while others go.
                image: snapshot::base_of(image).unwrap_or_else(|_| image.to_owned()),
                disks,
                args: args.clone(),
                time,
            }),
            known: Mutex::default(),
        }
    }

    /// The snapshots that there are now.
    fn listed(&self) -> Result<Vec<SnapshotFile>, NodeError> {
        let found = snapshot::snapshots_beside(&self.shared.image());
        found.map_err(|error| NodeError::Unreadable(with_causes(&error)))
    }
}

impl Shared {
    /// The base of the disk: a merge of what is written to may have made another file of it.
    fn image(&self) -> PathBuf {
        let leaf = self.disks.leaf_path();
        let base = leaf.and_then(|leaf| snapshot::base_of(&leaf).ok());
        base.unwrap_or_else(|| self.image.clone())
    }
}

impl Directory for Snapshots {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        let names = self.listed()?.into_iter().map(|snapshot| Name {
            name: snapshot.name.into(),
            file_type: DIRECTORY,
        });
        Ok(names.collect())
    }

    fn node(&self, wanted: &OsStr) -> Result<Node, NodeError> {
        let listed = self.listed()?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|id, _| listed.iter().any(|snapshot| snapshot.id == *id));
        let found = listed.into_iter().find(|snapshot| wanted == OsStr::new(&snapshot.name));
        let found = found.ok_or(NodeError::NotFound)?;
        let id = found.id;
        let node = known.entry(id).or_insert_with(|| {
            let shown = Snapshot {
                shared: Arc::clone(&self.shared),
                found,
                shown: Mutex::default(),
            };
            let node = Node::of_mount(Kind::Directory(Arc::new(shown)), self.shared.time);
            // A name that another snapshot has now leads to another directory.
            node.instance(instance(id))
        });
        Ok(node.clone())
    }
}

/// A number that two snapshots do not share.
fn instance(id: UniqueId) -> u64 {
    id.0.chunks(8).fold(0, |number, bytes| {
        bytes.iter().fold(0_u64, |word, &byte| word << 8 | u64::from(byte)) ^ number
    })
}

/// The directory of a snapshot.
struct Snapshot {
    shared: Arc<Shared>,
    found: SnapshotFile,
    /// What it shows, once that was looked at.
    shown: Mutex<Option<Arc<Fixed>>>,
}

impl Snapshot {
    fn shown(&self) -> Result<Arc<Fixed>, NodeError> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shown) = &*shown {
            return Ok(Arc::clone(shown));
        }
        let Shared { disks, args, time, .. } = &*self.shared;
        let disk = OnDemand::new(self.shared.image(), &self.found, disks)?;
        let content = shown::disk(&Disk::new(disk), args, false, *time).map_err(|failure| {
            NodeError::Unreadable(format!("{}: {}", self.found.path.display(), failure.message()))
        })?;
        Ok(Arc::clone(shown.insert(Arc::new(content))))
    }
}

impl Directory for Snapshot {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        self.shown()?.names()
    }

    fn node(&self, name: &OsStr) -> Result<Node, NodeError> {
        self.shown()?.node(name)
    }
}
