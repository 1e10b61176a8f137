//! `snapshots/`: every snapshot of the disk, read-only. A new one appears without a new mount.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use vhd_core::chain::{OpenOptions, OpenedDisk};
use vhd_core::error::with_causes;
use vhd_core::snapshot;
use vhd_fuse::{Directory, Kind, Name, Node, NodeError};

use super::MountArgs;
use super::shown;

/// `DT_DIR`.
const DIRECTORY: u8 = 4;

/// The snapshots of a disk, opened when they are looked at first.
pub(super) struct Snapshots {
    /// The file that is mounted.
    image: PathBuf,
    options: OpenOptions,
    args: MountArgs,
    time: SystemTime,
    opened: Mutex<HashMap<String, (OpenedDisk, Node)>>,
}

impl Snapshots {
    pub(super) fn new(image: &Path, args: &MountArgs, time: SystemTime) -> Self {
        Self {
            image: image.to_owned(),
            options: args.source.chain.options(),
            args: args.clone(),
            time,
            opened: Mutex::default(),
        }
    }

    /// The snapshots that there are now: names and files.
    fn listed(&self) -> Result<Vec<(String, PathBuf)>, NodeError> {
        let found = snapshot::snapshots_of(&self.image).map_err(|error| NodeError::Unreadable(with_causes(&error)))?;
        Ok(found.map(|disk| disk.snapshots).unwrap_or_default())
    }

    fn open(&self, path: &Path) -> Result<(OpenedDisk, Node), NodeError> {
        let unreadable = |text: String| NodeError::Unreadable(format!("{}: {text}", path.display()));
        let opened = self
            .options
            .open(path)
            .map_err(|error| unreadable(with_causes(&error)))?;
        let shown = shown::disk(&opened.disk(), &self.args, false, self.time);
        let shown = shown.map_err(|failure| unreadable(failure.message().to_owned()))?;
        let node = Node::of_mount(Kind::Directory(Arc::new(shown)), self.time);
        Ok((opened, node))
    }
}

impl Directory for Snapshots {
    fn names(&self) -> Result<Vec<Name>, NodeError> {
        let names = self.listed()?.into_iter().map(|(name, _)| Name {
            name: name.into(),
            file_type: DIRECTORY,
        });
        Ok(names.collect())
    }

    fn node(&self, wanted: &OsStr) -> Result<Node, NodeError> {
        let listed = self.listed()?;
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        opened.retain(|name, _| listed.iter().any(|(other, _)| other == name));
        let (name, path) = listed
            .into_iter()
            .find(|(name, _)| wanted == OsStr::new(name))
            .ok_or(NodeError::NotFound)?;
        if let Some((_, node)) = opened.get(&name) {
            return Ok(node.clone());
        }
        let (disk, node) = self.open(&path)?;
        opened.insert(name, (disk, node.clone()));
        Ok(node)
    }
}
