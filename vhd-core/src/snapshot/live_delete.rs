//! Deleting snapshots of a disk that is in use. Where the deleted snapshot is what the leaf is based on, the leaf is merged
//! into its file while requests go on, and that file is the leaf afterwards.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::delete::{Settled, can_wait};
use super::error::SnapshotError;
use super::manifest::{ImageFile, KIND, Manifest, Pending};
use super::tree::SnapshotTree;
use crate::device::{BlockDevice as _, Commit, DeviceError, Layer, LayeredDevice, LeafMerge, LeafMerged, LiveDevice};
use crate::image::{Image, OpenMode};
use crate::job::require_no_job;
use crate::ops::merge::{MergeError, announce_leaf, close_leaf, is_unfinished};
use crate::ops::verify::record_path;
use crate::storage::{Access, FileIdentity, HostFile, StorageError, remove_file};

/// How long readers of a snapshot that have just gone may take to be gone.
const PATIENCE: Duration = Duration::from_secs(1);

impl SnapshotTree<'_> {
    /// [`delete`](Self::delete) for a disk in use; the tree was opened by [`open_in_use`](Self::open_in_use). The files of
    /// deleted snapshots directly below the leaf are merged with it, at `rate` bytes per second at most. Those that have other dependants stay until the disk is not in use.
    ///
    /// # Errors
    /// Those of [`delete`](Self::delete). What was begun the next command goes on with.
    pub fn delete_in_use(&mut self, name: &str, rate: Option<u64>) -> Result<Settled, SnapshotError> {
        self.mark_deleted(name, false)?;
        let mut merged = Vec::new();
        let mut refused = None;
        while let Some((child, into)) = self.leaf_to_merge() {
            match self.merge_leaf(&child, &into, rate) {
                Ok(()) => merged.push(self.path(&into)),
                Err(error) if can_wait(&error) && self.manifest.pending.is_none() => {
                    refused = Some((self.path(&into), error));
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        let mut settled = self.settle()?;
        merged.append(&mut settled.merged);
        settled.merged = merged;
        if let Some((path, error)) = refused
            && let Some(waiting) = settled.waiting.iter_mut().find(|waiting| waiting.path == path)
        {
            // The cause, and not that this very process has the disk.
            waiting.reason = Some(error);
        }
        Ok(settled)
    }

    /// The leaf, and the file of the deleted snapshot that only the leaf is based on.
    fn leaf_to_merge(&self) -> Option<(ImageFile, ImageFile)> {
        let below = self.manifest.snapshot(self.manifest.active.parent?)?;
        let alone = self.manifest.dependants(below.id).len() == 1;
        (below.deleted && alone).then(|| (self.manifest.active.file.clone(), below.file.clone()))
    }

    /// Merges the leaf into the file below it, or goes on with that.
    pub(super) fn merge_leaf(
        &mut self,
        child: &ImageFile,
        into: &ImageFile,
        rate: Option<u64>,
    ) -> Result<(), SnapshotError> {
        let device = self.in_use.expect("the tree is one of a disk in use");
        let present = device.present();
        present.settle().map_err(|source| self.device_error(into, source))?;
        self.check_leaf(&present, child, into)?;
        let below = open_below(self.path(into), &present)?;
        drop(present);
        match self.merge_into(device, child, into, &below, rate) {
            Ok(()) => self.finish_leaf(child),
            Err(error) => {
                close_below(below);
                Err(error)
            }
        }
    }

    fn merge_into(
        &mut self,
        device: &LiveDevice,
        child: &ImageFile,
        into: &ImageFile,
        below: &Arc<Image>,
        rate: Option<u64>,
    ) -> Result<(), SnapshotError> {
        let mut intent = self.manifest.clone();
        intent.pending = Some(Pending::Merge {
            child: child.clone(),
            into: into.clone(),
        });
        // INV-25: before the first sector of the file changes.
        self.write(intent, "merge announced")?;
        let paths = [child, into].map(|file| self.path(file));
        // Digests of what is about to change, and of what is about to go, would raise a false alarm.
        for path in &paths {
            remove_file(&record_path(path))?;
        }
        announce_leaf((&paths[0], child.id), (&paths[1], into.id))?;
        self.work.steps.done("merge recorded");
        let pace = Pace::new(rate);
        let work = LeafMerge {
            begin: &|bytes| self.work.progress.begin(bytes),
            advance: &|bytes| {
                self.work.progress.advance(bytes);
                pace.wait(bytes);
            },
            cancel: self.work.cancel,
        };
        let merged = device.merge_leaf(below, &work, self.commit_of(child, into));
        match merged.map_err(|source| self.device_error(into, source))? {
            LeafMerged::Done(_) => Ok(self.work.steps.done("switched")),
            LeafMerged::Cancelled => Err(SnapshotError::Interrupted {
                child: self.path(child),
            }),
        }
    }

    /// INV-55: what makes it known that the disk goes on in the file below the former leaf. That one is durable then.
    fn commit_of(&self, child: &ImageFile, into: &ImageFile) -> Commit {
        let (manifest, record, next) = (self.place.manifest(), self.path(child), self.without_leaf(child, into));
        Box::new(move || {
            // The file below is the disk by itself from here on, and nothing half-done.
            close_leaf(&record).map_err(failed)?;
            KIND.write(&manifest, &next).map_err(failed)
        })
    }

    /// The manifest when the disk has gone on in the file below the leaf.
    fn without_leaf(&self, child: &ImageFile, into: &ImageFile) -> Manifest {
        let mut next = self.manifest.clone();
        if let Some(deleted) = next.snapshots.iter().position(|snapshot| snapshot.file == *into) {
            next.active.parent = next.snapshots.remove(deleted).parent;
        }
        next.active.file = into.clone();
        next.pending = Some(Pending::Remove { file: child.clone() });
        next
    }

    /// Makes durable that the disk goes on in the file below its former leaf, whose file goes.
    pub(super) fn finish_leaf(&mut self, child: &ImageFile) -> Result<(), SnapshotError> {
        let device = self.in_use.expect("the tree is one of a disk in use");
        let flushed = device.flush();
        flushed.map_err(|source| self.device_error(child, source))?;
        let known = self.place.read()?;
        self.manifest = known.ok_or_else(|| self.stale("it is gone".to_owned()))?;
        self.work.steps.done("merge finished");
        self.finish_removal(child)
    }

    /// All that can be refused is refused before anything is written.
    fn check_leaf(&self, present: &LayeredDevice, child: &ImageFile, into: &ImageFile) -> Result<(), SnapshotError> {
        let [Layer::Vhd(leaf), Layer::Vhd(below), ..] = present.layers() else {
            return Err(self.stale(format!("{} is not over {}", child.name, into.name)));
        };
        if leaf.unique_id() != child.id || below.unique_id() != into.id {
            return Err(self.stale(format!("{} is not over {}", child.name, into.name)));
        }
        let (path, other) = (self.path(child), self.path(into));
        if leaf.disk_size() != below.disk_size() {
            let (size, other_size) = (leaf.disk_size(), below.disk_size());
            return Err(MergeError::SizeMismatch {
                path,
                size,
                other,
                other_size,
            }
            .into());
        }
        if !is_unfinished(&path)? {
            require_no_job([&path, &other])?;
        }
        self.place.refuse_children(child)?;
        let found = self.place.dependants(into);
        let own = FileIdentity::of_path(&path).ok();
        let others = |path: &PathBuf| FileIdentity::of_path(path).ok() != own;
        if found.child_paths().iter().any(others) {
            found.refuse_children()?;
        }
        found.refuse_unknown()?;
        // Those who read the snapshot in this process.
        let begun = Instant::now();
        while present.shares_parent() {
            if begun.elapsed() > PATIENCE {
                return Err(in_use(other));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn device_error(&self, file: &ImageFile, source: DeviceError) -> SnapshotError {
        SnapshotError::Device {
            path: self.path(file),
            source,
        }
    }
}

/// Opens the image below the leaf for writing, beside the one that the disk reads.
fn open_below(path: PathBuf, present: &LayeredDevice) -> Result<Arc<Image>, SnapshotError> {
    let Some(reader) = present.layers()[1].file().host_file() else {
        return Err(in_use(path));
    };
    let file = HostFile::open_beside(&path, reader)?;
    let image = Image::open(Arc::new(file), &OpenMode::read_write());
    image
        .map(Arc::new)
        .map_err(|source| SnapshotError::Image { path, source })
}

/// The disk goes on as it was; what was copied is kept. The image is closed by whoever drops it last: until then its
/// lock keeps it from being opened again.
fn close_below(image: Arc<Image>) {
    if let Some(Err(error)) = Arc::into_inner(image).map(Image::close) {
        tracing::warn!(%error, "a file that a leaf was being merged into could not be closed");
    }
}

fn in_use(path: PathBuf) -> SnapshotError {
    StorageError::Locked {
        path,
        wanted: Access::ReadWrite,
        holder: None,
    }
    .into()
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> DeviceError {
    DeviceError::Io {
        operation: "record the merge of the leaf",
        offset: 0,
        source: std::io::Error::other(error),
    }
}

/// Keeps to a rate.
struct Pace {
    rate: Option<u64>,
    begun: Instant,
    done: std::cell::Cell<u64>,
}

impl Pace {
    fn new(rate: Option<u64>) -> Self {
        Self {
            rate,
            begun: Instant::now(),
            done: std::cell::Cell::new(0),
        }
    }

    /// Waits until so many more bytes are due.
    fn wait(&self, bytes: u64) {
        let Some(rate) = self.rate.filter(|rate| *rate > 0) else {
            return;
        };
        self.done.set(self.done.get() + bytes);
        let due = u128::from(self.done.get()) * 1_000_000 / u128::from(rate);
        let due = Duration::from_micros(u64::try_from(due).unwrap_or(u64::MAX));
        thread::sleep(due.saturating_sub(self.begun.elapsed()));
    }
}
