//! `DISK@NAME`: the file of a snapshot.

use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::manifest::{ImageFile, Manifest, NOW, Pending};
use super::place::Place;
use crate::format::UniqueId;

/// The base of the disk that `file` is the base or another file of: itself, for a disk without snapshots.
///
/// # Errors
/// Those of reading the manifest.
pub fn base_of(file: &Path) -> Result<PathBuf, SnapshotError> {
    Ok(Place::find(file)?.0.disk())
}

/// A base whose file is not what a guest writes to.
#[derive(Clone, Debug)]
pub struct FrozenBase {
    /// The snapshot that the base's file is, if it is not deleted.
    pub snapshot: Option<String>,
    /// The file that is written to.
    pub active: PathBuf,
}

/// The file of the snapshot `name` of a disk, or for [`NOW`] that of its active leaf. It is to be read only.
///
/// # Errors
/// `Missing`; those of reading the manifest.
pub fn resolve(disk: &Path, name: &str) -> Result<PathBuf, SnapshotError> {
    let (place, manifest) = Place::find(disk)?;
    let is_now = name.eq_ignore_ascii_case(NOW);
    let missing = |known| SnapshotError::Missing {
        disk: place.disk(),
        name: name.to_owned(),
        known,
    };
    match manifest {
        None if is_now => Ok(place.disk()),
        None => Err(missing(Vec::new())),
        Some(manifest) if is_now => Ok(place.current_path(&manifest, &manifest.active.file)),
        Some(manifest) => match manifest.named(name) {
            Some(snapshot) => Ok(place.current_path(&manifest, &snapshot.file)),
            None => Err(missing(
                manifest.listed().map(|snapshot| snapshot.name.clone()).collect(),
            )),
        },
    }
}

/// What is to be known of a disk that is read by its base's name, if it has snapshots: that file is the oldest of them.
#[must_use]
pub fn frozen_base(disk: &Path) -> Option<FrozenBase> {
    let place = Place::with_base(disk).ok()?;
    let manifest = place.read().ok()??;
    // After a killed command the base may be the present state already, before the manifest says so.
    let active = place.current_path(&manifest, &manifest.active.file);
    if active == place.disk() {
        return None;
    }
    let mut listed = manifest.listed();
    let snapshot = listed.find(|snapshot| snapshot.file.name == place.base());
    Some(FrozenBase {
        snapshot: snapshot.map(|snapshot| snapshot.name.clone()),
        active,
    })
}

/// A snapshot that is not deleted, and where it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotFile {
    /// What it is called now.
    pub name: String,
    /// Tells it from all others, whatever it is called and whichever file it is in.
    pub id: UniqueId,
    /// Its file, which is to be read only.
    pub path: PathBuf,
    /// The identity of the image in the file.
    pub image_id: UniqueId,
}

/// The snapshots of the disk that `file` belongs to, whichever of its files that is, the oldest first; none for a disk
/// without snapshots. Reading one of them may find that another command has merged its file into another one meanwhile: then
/// its place is to be asked for again.
///
/// # Errors
/// Those of reading the manifest.
pub fn snapshots_beside(file: &Path) -> Result<Vec<SnapshotFile>, SnapshotError> {
    let (place, manifest) = Place::find(file)?;
    Ok(manifest.map_or_else(Vec::new, |manifest| place.snapshots(&manifest)))
}

/// A disk with snapshots, seen from the file that is written to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ActiveDisk {
    /// The base.
    pub disk: PathBuf,
    /// The snapshots that are not deleted, the oldest first.
    pub snapshots: Vec<SnapshotFile>,
}

/// The snapshots of the disk whose active leaf `leaf` is; `None` for a file that is the active leaf of no disk with
/// snapshots.
///
/// # Errors
/// Those of reading the manifest.
pub fn snapshots_of(leaf: &Path) -> Result<Option<ActiveDisk>, SnapshotError> {
    let own = Place::with_base(leaf)?;
    let (place, Some(manifest)) = Place::find(leaf)? else {
        return Ok(None);
    };
    if place.current_path(&manifest, &manifest.active.file) != own.disk() {
        return Ok(None);
    }
    Ok(Some(ActiveDisk {
        disk: place.disk(),
        snapshots: place.snapshots(&manifest),
    }))
}

impl Place {
    /// The snapshots that are not deleted, the oldest first.
    fn snapshots(&self, manifest: &Manifest) -> Vec<SnapshotFile> {
        let mut listed: Vec<_> = manifest.listed().collect();
        // Of two within a second the one that is based on the other is the younger.
        let depths = manifest.depths();
        listed.sort_by_key(|snapshot| (snapshot.created, depths.get(&snapshot.id).copied()));
        let snapshots = listed.into_iter().map(|snapshot| {
            let file = self.current_file(manifest, &snapshot.file);
            SnapshotFile {
                name: snapshot.name.clone(),
                id: snapshot.id,
                path: self.path(&file.name),
                image_id: file.id,
            }
        });
        snapshots.collect()
    }

    /// Where an image is: when a merge was interrupted before the manifest said that it is done, in the file that it
    /// was merged into.
    pub(super) fn current_path(&self, manifest: &Manifest, file: &ImageFile) -> PathBuf {
        self.path(&self.current_file(manifest, file).name)
    }

    fn current_file<'a>(&self, manifest: &'a Manifest, file: &'a ImageFile) -> &'a ImageFile {
        match &manifest.pending {
            Some(Pending::Merge { child, into }) if child == file && !self.path(&file.name).exists() => into,
            _ => file,
        }
    }
}
