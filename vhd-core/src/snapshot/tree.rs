//! The snapshots of a disk, for one command at a time.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use super::error::SnapshotError;
use super::manifest::{ImageFile, KIND, Manifest, Pending, Snapshot, check_name};
use super::place::Place;
use super::recovered::Recovered;
use super::survey::plain;
use crate::chain::{ChainError, MAX_DEPTH, OpenOptions, create_child_of, create_over, link_to_open};
use crate::device::{BlockDevice as _, LiveDevice};
use crate::format::UniqueId;
use crate::ops::Progress;
use crate::ops::verify::record_path;
use crate::record::Checked as _;
use crate::storage::{self, TreeLock};

/// Told of each step of an operation when it is durable: for tests that look at what a crash would leave there.
pub trait Steps: Sync {
    /// A step is done.
    fn done(&self, step: &str);
}

/// Steps that no one looks at.
impl Steps for () {
    fn done(&self, _step: &str) {}
}

/// What goes along with an operation.
#[derive(Clone, Copy)]
pub struct Work<'a> {
    /// Told of each step.
    pub steps: &'a dyn Steps,
    /// Told how far a merge is.
    pub progress: &'a dyn Progress,
    /// Set to stop a merge. What it has done is kept.
    pub cancel: &'a AtomicBool,
}

/// The snapshots of a disk. Other commands are kept away from them while this is there.
pub struct SnapshotTree<'w> {
    pub(super) place: Place,
    pub(super) manifest: Manifest,
    pub(super) work: Work<'w>,
    /// The disk, for a tree that belongs to one in use.
    pub(super) in_use: Option<&'w LiveDevice>,
    recovered: Option<Recovered>,
    /// Snapshots whose deletion was interrupted, and went on when the tree was opened.
    pub(super) given_up: Vec<String>,
    pub(super) lock: Arc<TreeLock>,
}

impl<'w> SnapshotTree<'w> {
    /// Opens the tree of the disk that `disk` is the base or another file of, and first brings an interrupted
    /// operation to an end. A plain disk is a tree without snapshots.
    ///
    /// # Errors
    /// [`SnapshotError`]. `Stale` when the files are not those of the manifest, `Locked` when another command has
    /// the tree, or an image that an interrupted operation needs is in use.
    pub fn open(disk: &Path, work: Work<'w>) -> Result<Self, SnapshotError> {
        Self::open_for(disk, work, None)
    }

    /// Opens the tree of a disk that this process has in use.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); `Stale` if the device's leaf is not the active one of the tree.
    pub fn open_in_use(disk: &Path, device: &'w LiveDevice, work: Work<'w>) -> Result<Self, SnapshotError> {
        let tree = Self::open_for(disk, work, Some(device))?;
        let (active, used) = (&tree.manifest.active.file, device.present().leaf().unique_id());
        if active.id != used {
            return Err(tree.stale(format!("{} is the active file, and {used} is in use", active.name)));
        }
        Ok(tree)
    }

    fn open_for(disk: &Path, work: Work<'w>, in_use: Option<&'w LiveDevice>) -> Result<Self, SnapshotError> {
        let (place, found) = Place::find(disk)?;
        let lock = place.lock()?;
        // Under the lock: it may have changed before.
        let manifest = match place.read()? {
            Some(manifest) => manifest,
            None if found.is_some() => {
                drop(lock);
                return Self::open_for(disk, work, in_use);
            }
            None => plain(&place)?,
        };
        let mut tree = Self {
            place,
            manifest,
            work,
            in_use,
            recovered: None,
            given_up: Vec::new(),
            lock: Arc::new(lock),
        };
        let deleted = tree.manifest.snapshots.iter().filter(|snapshot| snapshot.deleted);
        let deleted: Vec<String> = deleted.map(|snapshot| snapshot.name.clone()).collect();
        tree.recovered = tree.recover()?;
        if tree.recovered.is_some() {
            tree.given_up = deleted;
        }
        tree.verify_files()?;
        Ok(tree)
    }

    /// Puts another manifest in the place of what is there, and opens the tree.
    pub(super) fn replace(
        place: Place,
        lock: TreeLock,
        manifest: Manifest,
        work: Work<'w>,
    ) -> Result<Self, SnapshotError> {
        let mut tree = Self {
            place,
            manifest: manifest.clone(),
            work,
            in_use: None,
            recovered: None,
            given_up: Vec::new(),
            lock: Arc::new(lock),
        };
        tree.write(manifest, "manifest made anew")?;
        tree.verify_files()?;
        Ok(tree)
    }

    /// What was found of an interrupted operation, and what became of it.
    #[must_use]
    pub fn recovered(&self) -> Option<&Recovered> {
        self.recovered.as_ref()
    }

    /// The manifest as it is now.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The base.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.place.disk()
    }

    /// The file of an image.
    #[must_use]
    pub fn path(&self, file: &ImageFile) -> PathBuf {
        self.place.path(&file.name)
    }

    /// Gives a snapshot another name.
    ///
    /// # Errors
    /// `Missing`, `Exists`, `Name`.
    pub fn rename(&mut self, old: &str, new: &str) -> Result<(), SnapshotError> {
        let id = self.named(old)?.id;
        self.check_new_name(new)?;
        let mut next = self.manifest.clone();
        let renamed = next.snapshots.iter_mut().find(|snapshot| snapshot.id == id);
        if let Some(snapshot) = renamed {
            new.clone_into(&mut snapshot.name);
        }
        self.write(next, "renamed")
    }

    /// The snapshot of this name.
    pub(super) fn named(&self, name: &str) -> Result<&Snapshot, SnapshotError> {
        self.manifest.named(name).ok_or_else(|| SnapshotError::Missing {
            disk: self.disk(),
            name: name.to_owned(),
            known: self.manifest.listed().map(|snapshot| snapshot.name.clone()).collect(),
        })
    }

    /// Whether a snapshot can be given this name.
    pub(super) fn check_new_name(&self, name: &str) -> Result<(), SnapshotError> {
        check_name(name)?;
        match self.manifest.named(name) {
            None => Ok(()),
            Some(_) => Err(SnapshotError::Exists {
                disk: self.disk(),
                name: name.to_owned(),
            }),
        }
    }

    /// Replaces the manifest, durably. A disk without snapshots needs none.
    pub(super) fn write(&mut self, next: Manifest, step: &str) -> Result<(), SnapshotError> {
        next.check().map_err(|reason| self.stale(reason))?;
        let plain = next.snapshots.is_empty() && next.pending.is_none() && next.active.file.name == self.place.base();
        if plain {
            storage::remove_file(&self.place.manifest())?;
        } else {
            KIND.write(&self.place.manifest(), &next)?;
        }
        self.manifest = next;
        self.work.steps.done(step);
        Ok(())
    }

    /// Makes an empty child of an image, which nothing refers to yet.
    pub(super) fn make_leaf(&mut self, over: &ImageFile) -> Result<ImageFile, SnapshotError> {
        let name = self.place.new_leaf_name();
        let mut intent = self.manifest.clone();
        intent.pending = Some(Pending::Leaf {
            file: name.clone(),
            over: over.clone(),
        });
        // INV-25: a leaf that a crash leaves is known before it is there.
        self.write(intent, "leaf announced")?;
        let made = match self.in_use {
            Some(device) => self.create_leaf_in_use(&name, over, device),
            None => self.create_leaf(&name, over),
        };
        if made.is_err() {
            // As well as it goes: what stays is found by the next command.
            let _ = self.recover();
        }
        made
    }

    fn create_leaf(&self, name: &str, over: &ImageFile) -> Result<ImageFile, SnapshotError> {
        let (path, parent) = (self.place.path(name), self.path(over));
        // The leaf that is frozen is held by this very command.
        let opened = OpenOptions::new().force_share(true).open(&parent)?;
        if opened.paths().len() >= MAX_DEPTH {
            return Err(ChainError::TooDeep { path, limit: MAX_DEPTH }.into());
        }
        // INV-34: the file that is open, and not one that has come in its place.
        let found = opened.layers().next().map(|leaf| leaf.layer.unique_id());
        if found != Some(over.id) {
            return Err(self.stale(format!("{} is another image, not {}", over.name, over.id)));
        }
        let id = create_child_of(&path, &parent, None, &opened)?;
        Ok(self.made_leaf(name, id))
    }

    /// The same over a leaf that is written to meanwhile: nothing is read from its file.
    fn create_leaf_in_use(
        &self,
        name: &str,
        over: &ImageFile,
        device: &LiveDevice,
    ) -> Result<ImageFile, SnapshotError> {
        let (path, parent) = (self.place.path(name), self.path(over));
        let present = device.present();
        if present.layers().len() >= MAX_DEPTH {
            return Err(ChainError::TooDeep { path, limit: MAX_DEPTH }.into());
        }
        let leaf = present.leaf();
        let link = link_to_open(&path, &parent, Some(leaf), Some(&**leaf.file()))?;
        let id = create_over(&path, Some(leaf), present.size_bytes(), &link, None)?;
        Ok(self.made_leaf(name, id))
    }

    fn made_leaf(&self, name: &str, id: UniqueId) -> ImageFile {
        self.work.steps.done("leaf made");
        ImageFile {
            name: name.to_owned(),
            id,
        }
    }

    /// Removes a file that the manifest does not refer to any more, and says so in it.
    pub(super) fn finish_removal(&mut self, file: &ImageFile) -> Result<(), SnapshotError> {
        match self.place.identity(&file.name)? {
            None => {}
            Some(id) if id == file.id => {
                // INV-23: the manifest without it is durable.
                storage::remove_file(&self.path(file))?;
                storage::remove_file(&record_path(&self.path(file)))?;
                self.work.steps.done("file removed");
            }
            Some(id) => return Err(self.stale(format!("{} is the image {id}, not {}", file.name, file.id))),
        }
        self.forget_pending()
    }

    /// Says in the manifest that nothing is pending any more.
    pub(super) fn forget_pending(&mut self) -> Result<(), SnapshotError> {
        let mut next = self.manifest.clone();
        next.pending = None;
        self.write(next, "nothing pending")
    }

    /// Each file is there and has the identity that the manifest says.
    fn verify_files(&self) -> Result<(), SnapshotError> {
        for file in self.manifest.files() {
            match self.place.identity(&file.name)? {
                Some(id) if id == file.id => {}
                Some(id) => return Err(self.stale(format!("{} is the image {id}, not {}", file.name, file.id))),
                None => return Err(self.stale(format!("{} is not there", file.name))),
            }
        }
        Ok(())
    }

    pub(super) fn stale(&self, reason: String) -> SnapshotError {
        SnapshotError::Stale {
            manifest: self.place.manifest(),
            reason,
        }
    }
}

/// Seconds since 1970-01-01 00:00:00 UTC.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
