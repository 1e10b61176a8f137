//! Whole trees in other directories: a snapshot with what it is based on, out, and a tree in.

use std::fs;
use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::manifest::{Active, ImageFile, KIND, Manifest};
use super::place::Place;
use crate::chain::{OpenOptions, create_child, parent_link};
use crate::image::{Amendment, Image, OpenMode};
use crate::ops::Progress;
use crate::ops::zeroes::for_each_data_run;
use crate::storage::{Access, HostFile, Segment, Sharing, StagedFile, StorageError, StorageFile};
use crate::units::{u64_from, usize_from};

/// Bytes that are copied at once.
const STEP: u64 = 1 << 20;

/// A tree that was copied.
#[derive(Debug)]
#[non_exhaustive]
pub struct Transferred {
    /// Its base, at its new place.
    pub disk: PathBuf,
    /// The file that is written to there.
    pub active: PathBuf,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// Bytes that were copied; what the file systems could share is none.
    pub copied_bytes: u64,
}

/// Copies a snapshot and all that it is based on into the directory `dir`, where it is a disk of its own: the present
/// state is that of the snapshot. Each file is read back and compared. The disk stays as it is.
///
/// # Errors
/// `Missing`; `Storage` when a file can't be copied, or is there already; `Pending` while an operation is unfinished;
/// `Verification`. Files that were complete stay in `dir`, and there is no manifest.
pub fn export(disk: &Path, name: &str, dir: &Path, progress: &dyn Progress) -> Result<Transferred, SnapshotError> {
    let (place, manifest) = Place::find(disk)?;
    let _lock = place.lock()?;
    let missing = || SnapshotError::Missing {
        disk: place.disk(),
        name: name.to_owned(),
        known: Vec::new(),
    };
    let manifest = manifest.ok_or_else(missing)?;
    let tip = manifest.named(name).ok_or_else(missing)?.clone();
    let line = manifest.line(Some(tip.id)).cloned().collect();
    let copy = Copy::new(&place, &manifest, dir, progress)?;
    let mut exported = Manifest {
        snapshots: line,
        active: Active {
            file: tip.file.clone(),
            parent: Some(tip.id),
        },
        pending: None,
    };
    exported.snapshots.reverse();
    let files: Vec<&ImageFile> = exported.snapshots.iter().map(|snapshot| &snapshot.file).collect();
    let copied_bytes = copy.all(&files)?;
    let leaf = copy.to.new_leaf_name();
    let options = OpenOptions::new();
    let id = create_child(&copy.to.path(&leaf), &copy.to.path(&tip.file.name), None, &options)?;
    exported.active.file = ImageFile { name: leaf, id };
    copy.finish(exported, copied_bytes)
}

/// Copies the one tree in the directory `dir` into the directory `dest`, its present state included, in the way of
/// [`export`].
///
/// # Errors
/// As for [`export`]; `NoTree` when there is no manifest in `dir`, or several.
pub fn import(dir: &Path, dest: &Path, progress: &dyn Progress) -> Result<Transferred, SnapshotError> {
    let place = Place::only_one_in(dir)?;
    let _lock = place.lock()?;
    let manifest = place
        .read()?
        .ok_or_else(|| SnapshotError::NoTree { dir: dir.to_owned() })?;
    let copy = Copy::new(&place, &manifest, dest, progress)?;
    let depths = manifest.depths();
    let mut nodes: Vec<(Option<usize>, &ImageFile)> = manifest
        .snapshots
        .iter()
        .map(|snapshot| (depths.get(&snapshot.id).copied(), &snapshot.file))
        .collect();
    nodes.sort_by_key(|(depth, _)| *depth);
    let mut files: Vec<&ImageFile> = nodes.into_iter().map(|(_, file)| file).collect();
    files.push(&manifest.active.file);
    let copied_bytes = copy.all(&files)?;
    copy.finish(manifest.clone(), copied_bytes)
}

/// Files on their way from one directory into another.
struct Copy<'a> {
    from: &'a Place,
    to: Place,
    manifest: &'a Manifest,
    progress: &'a dyn Progress,
}

impl<'a> Copy<'a> {
    fn new(
        from: &'a Place,
        manifest: &'a Manifest,
        dir: &Path,
        progress: &'a dyn Progress,
    ) -> Result<Self, SnapshotError> {
        if manifest.pending.is_some() {
            return Err(SnapshotError::Pending { disk: from.disk() });
        }
        fs::create_dir_all(dir).map_err(|source| StorageError::at(dir, "create", source))?;
        Ok(Self {
            to: Place::in_directory(dir, from.base()),
            from,
            manifest,
            progress,
        })
    }

    /// Copies files, parents before their children.
    fn all(&self, files: &[&ImageFile]) -> Result<u64, SnapshotError> {
        for name in files
            .iter()
            .map(|file| self.to.path(&file.name))
            .chain([self.to.manifest()])
        {
            if name.symlink_metadata().is_ok() {
                return Err(StorageError::Exists { path: name }.into());
            }
        }
        let mut total = 0;
        for file in files {
            let path = self.from.path(&file.name);
            let length = fs::metadata(&path).map_err(|source| StorageError::at(&path, "query", source))?;
            total += length.len();
        }
        self.progress.begin(total);
        files.iter().map(|file| self.one(file)).sum()
    }

    /// Copies one file, compares it, and points it to its parent at the new place.
    fn one(&self, file: &ImageFile) -> Result<u64, SnapshotError> {
        let (path, target) = (self.from.path(&file.name), self.to.path(&file.name));
        let source = HostFile::open(&path, Access::ReadOnly, Sharing::Exclusive)?;
        let staged = StagedFile::create_beside(&target)?;
        let copied = copy_content(&source, &*staged.storage());
        let copied = copied.map_err(|source| StorageError::at(&target, "copy to", source))?;
        let same = is_same(&source, &*staged.storage(), self.progress);
        if !same.map_err(|source| StorageError::at(&target, "compare", source))? {
            return Err(SnapshotError::Verification { path: target });
        }
        let bad = |source| SnapshotError::Image {
            path: target.clone(),
            source,
        };
        let image = Image::open(staged.storage(), &OpenMode::read_write()).map_err(bad)?;
        match self.parent_of(file) {
            Some(parent) => {
                let parent = self.to.path(&parent.name);
                let opened = OpenOptions::new().open(&parent)?;
                let amendment = Amendment {
                    parent: Some(parent_link(&target, &parent, &opened)?),
                    ..image.amendment()
                };
                image.amend(&amendment).map_err(|source| SnapshotError::Relink {
                    path: target.clone(),
                    source,
                })?;
            }
            None if image.is_differencing() => return Err(SnapshotError::ParentElsewhere { path }),
            None => drop(image),
        }
        // INV-24: before the manifest refers to it.
        staged.publish(false, true)?;
        Ok(copied)
    }

    fn parent_of(&self, file: &ImageFile) -> Option<&ImageFile> {
        let snapshot = self.manifest.snapshots.iter().find(|snapshot| snapshot.file == *file);
        let parent = match snapshot {
            Some(snapshot) => snapshot.parent,
            None => self.manifest.active.parent,
        };
        parent
            .and_then(|id| self.manifest.snapshot(id))
            .map(|parent| &parent.file)
    }

    fn finish(self, manifest: Manifest, copied_bytes: u64) -> Result<Transferred, SnapshotError> {
        KIND.write(&self.to.manifest(), &manifest)?;
        Ok(Transferred {
            disk: self.to.disk(),
            active: self.to.path(&manifest.active.file.name),
            snapshots: manifest.listed().count(),
            copied_bytes,
        })
    }
}

/// Copies what is stored; holes stay holes. Returns how many bytes could not be shared.
fn copy_content(source: &dyn StorageFile, target: &dyn StorageFile) -> std::io::Result<u64> {
    let len = source.len()?;
    target.set_len(len)?;
    let (mut at, mut copied) = (0, 0);
    let mut buffer = vec![0; usize_from(STEP)];
    while at < len {
        let (segment, end) = source.segment_at(at)?;
        let end = end.min(len);
        if segment == Segment::Data && target.share_range_from(source, at, at, end - at).is_err() {
            let mut piece = at;
            while piece < end {
                let bytes = &mut buffer[..usize_from(STEP.min(end - piece))];
                source.read_exact_at(bytes, piece)?;
                for_each_data_run(bytes, |run| {
                    target.write_all_at(&bytes[run.clone()], piece + u64_from(run.start))
                })?;
                piece = (piece + STEP).min(end);
            }
            copied += end - at;
        }
        at = end;
    }
    target.sync()?;
    Ok(copied)
}

/// Whether two files are the same, byte by byte.
fn is_same(one: &dyn StorageFile, other: &dyn StorageFile, progress: &dyn Progress) -> std::io::Result<bool> {
    let len = one.len()?;
    if other.len()? != len {
        return Ok(false);
    }
    let (mut a, mut b) = (vec![0; usize_from(STEP)], vec![0; usize_from(STEP)]);
    let mut at = 0;
    while at < len {
        let part = usize_from(STEP.min(len - at));
        one.read_exact_at(&mut a[..part], at)?;
        other.read_exact_at(&mut b[..part], at)?;
        if a[..part] != b[..part] {
            return Ok(false);
        }
        progress.advance(STEP.min(len - at));
        at += STEP;
    }
    Ok(true)
}
