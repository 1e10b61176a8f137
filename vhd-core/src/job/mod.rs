//! Open jobs: jobs on several files that have begun and have not ended, in this process or in one that died.
//!
//! A job has one record, beside one of its images. Every image that the job changes or removes has a marker beside it,
//! `IMAGE.job`, which leads to the record. So whoever holds any of the images sees the job:
//!
//! ```text
//!   markers, durable | record, durable | the job ... | the record is renamed | markers go | it goes
//! ```
//!
//! A marker is a signpost and nothing else: it counts if the record that it leads to exists and names the image
//! (INV-37). A record is input, not truth: a job touches a file that only its record names if the marker of that
//! file leads back to the record (INV-38). docs/jobs.md has the order of the writes, what a crash leaves at each step,
//! and what each command does about it.

mod error;
mod finish;
mod kind;
mod marker;
mod turn;

use std::path::{Path, PathBuf};
use std::{fs, io};

use serde::{Deserialize, Serialize};

pub use error::JobError;
pub use finish::Finish;
pub use kind::JobKind;

use crate::record::{Checked, check_count, check_path};
use crate::storage::{
    FileIdentity, StorageError, beside, full_name, relative_to, remove_file, resolved, sync_directory_of,
};
use marker::Marker;
use turn::Turn;

/// An image that a job changes, removes or relies on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobImage {
    /// The file; in a record, from the record's directory.
    pub path: PathBuf,
    /// A guest may write to its disk while the job is open: the job notices. Else nobody writes to it, and nothing
    /// new is based on it.
    pub guest: bool,
}

impl JobImage {
    /// An image that a guest may write to meanwhile.
    pub(crate) fn in_use(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            guest: true,
        }
    }

    /// An image that nobody else writes to.
    pub(crate) fn held(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            guest: false,
        }
    }
}

/// What every record of a job says beside what its kind says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// The images that have a marker.
    #[serde(default)]
    pub(crate) images: Vec<JobImage>,
}

impl Checked for Head {
    fn check(&self) -> Result<(), String> {
        check_count("images", self.images.len(), 0)?;
        self.images.iter().try_for_each(|image| check_path(&image.path))
    }
}

/// A job that is open on an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenJob {
    /// Which job.
    pub kind: JobKind,
    /// Its record.
    pub record: PathBuf,
    /// What it does with the image.
    pub image: JobImage,
}

impl OpenJob {
    fn pending(self) -> JobError {
        JobError::Pending {
            image: self.image.path,
            kind: self.kind,
            record: self.record,
        }
    }
}

/// The job that is open on the image at `path`, if there is one. Nothing is changed.
///
/// # Errors
/// [`JobError::Record`] when a marker or the record that it leads to can't be read: then nobody knows.
pub fn open_job(path: &Path) -> Result<Option<OpenJob>, JobError> {
    other_job(path, None)
}

/// The same for the holder of the job with the record `own`.
fn other_job(path: &Path, own: Option<&Path>) -> Result<Option<OpenJob>, JobError> {
    let Some(image) = real_path(path) else {
        return Ok(None);
    };
    let Some(marker) = Marker::read(&image)?.filter(|marker| Some(&*marker.record) != own) else {
        return Ok(None);
    };
    let named = marker.kind.head_naming(&marker.record, &image)?;
    Ok(named.map(|named| OpenJob {
        kind: marker.kind,
        record: marker.record,
        image: JobImage {
            path: path.to_owned(),
            ..named
        },
    }))
}

/// Refuses if a job is open on one of the images: for a job that begins.
///
/// # Errors
/// [`JobError::Pending`], and those of [`open_job`].
pub fn require_no_job<P: AsRef<Path>>(images: impl IntoIterator<Item = P>) -> Result<(), JobError> {
    require_only(None, images)
}

/// Refuses if the image is not one that a guest may write to, or that something may be based on: an open job changes
/// it.
///
/// # Errors
/// [`JobError::Pending`], and those of [`open_job`].
pub fn require_steady(image: &Path) -> Result<(), JobError> {
    match open_job(image)? {
        Some(job) if !job.image.guest => Err(job.pending()),
        _ => Ok(()),
    }
}

/// Refuses if a job other than the one with this record is open on one of the images.
pub(crate) fn require_only<P: AsRef<Path>>(
    own: Option<&Path>,
    images: impl IntoIterator<Item = P>,
) -> Result<(), JobError> {
    let own = own.map(canonical);
    for image in images {
        if let Some(job) = other_job(image.as_ref(), own.as_deref())? {
            return Err(job.pending());
        }
    }
    Ok(())
}

/// Removes what a job with this record has left that was killed when it was done; nothing, if it is not done.
pub(crate) fn sweep(kind: JobKind, record: &Path) -> Result<(), JobError> {
    let record = canonical(record);
    let Some(head) = kind.record().read::<Head>(&done_path(&record))? else {
        return Ok(());
    };
    let dir = record.parent().unwrap_or(Path::new("/")).to_owned();
    let images = head.images.into_iter().map(|image| JobImage {
        path: resolved(&image.path, &dir),
        ..image
    });
    Job::new(kind, &record, images).remove_done()
}

/// The name of the record of a job that is done. A record is renamed to it, which needs no space and is one step.
pub(crate) fn done_path(record: &Path) -> PathBuf {
    beside(record, ".done")
}

/// A job of which this process makes itself the holder.
#[derive(Debug)]
pub(crate) struct Job {
    kind: JobKind,
    record: PathBuf,
    images: Vec<JobImage>,
}

impl Job {
    /// The job whose record is, or is to be, at `record`.
    pub(crate) fn new(kind: JobKind, record: &Path, images: impl IntoIterator<Item = JobImage>) -> Self {
        let mut job = Self {
            kind,
            record: canonical(record),
            images: Vec::new(),
        };
        for image in images {
            let path = canonical(&image.path);
            if job.images.iter().all(|known| known.path != path) {
                job.images.push(JobImage { path, ..image });
            }
        }
        job
    }

    /// What the record says of the images: a directory that is copied as a whole is a job on the copies.
    pub(crate) fn head(&self) -> Head {
        let images = self.images.iter().map(|image| JobImage {
            path: self.relative(&image.path),
            guest: image.guest,
        });
        Head {
            images: images.collect(),
        }
    }

    fn relative(&self, path: &Path) -> PathBuf {
        relative_to(path, self.record.parent().unwrap_or(Path::new("/")))
    }

    /// Makes the job visible from all its images, then lets `write` put the record in its place. What is there of
    /// both already stays, so an open job can be announced again with more images.
    ///
    /// INV-36: the markers are durable before the record is, which is durable before the first image changes.
    ///
    /// # Errors
    /// [`JobError::Pending`] when another job is open on one of the images: then nothing of this one is left. The
    /// error of `write`.
    pub(crate) fn announce<E: From<JobError>>(&self, write: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let _turn = Turn::take(&self.directories())?;
        require_only(Some(&self.record), self.images.iter().map(|image| &image.path))?;
        let announced = self.write_markers().map_err(E::from).and_then(|()| write());
        if announced.is_err() && !self.record.exists() {
            self.remove_markers();
        }
        announced
    }

    fn write_markers(&self) -> Result<(), JobError> {
        let marker = Marker::new(self.kind, &self.record);
        let mut unsynced: Vec<&JobImage> = Vec::new();
        for image in &self.images {
            if marker.write(&image.path)? {
                unsynced.push(image);
            }
        }
        // One sync for each directory: a chain may have hundreds of images in it.
        unsynced.sort_by_key(|image| image.path.parent());
        unsynced.dedup_by_key(|image| image.path.parent());
        for image in unsynced {
            sync_directory_of(&image.path)?;
        }
        Ok(())
    }

    /// Ends the job, of which nothing is left to be done.
    ///
    /// INV-36: no marker leads to the record any more, durably, before the first one goes.
    ///
    /// # Errors
    /// The record can't be renamed: the job is open. It can't be removed: [`sweep`] does that.
    pub(crate) fn close(&self) -> Result<(), JobError> {
        match fs::rename(&self.record, done_path(&self.record)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StorageError::at(&self.record, "rename", error).into());
            }
            _ => sync_directory_of(&self.record)?,
        }
        self.remove_done()
    }

    fn remove_done(&self) -> Result<(), JobError> {
        let _turn = Turn::take(&self.directories())?;
        self.remove_markers();
        remove_file(&done_path(&self.record))?;
        Ok(())
    }

    /// A marker that stays is not trusted by anybody: its record is gone.
    fn remove_markers(&self) {
        for image in &self.images {
            if let Err(error) = self.remove_marker(&image.path) {
                tracing::warn!(image = %image.path.display(), %error, "the marker of a job that ended stays");
            }
        }
    }

    fn remove_marker(&self, image: &Path) -> Result<(), JobError> {
        if self.is_marked(image) {
            let marker = Marker::path(image);
            fs::remove_file(&marker).map_err(|source| StorageError::at(&marker, "remove", source))?;
        }
        Ok(())
    }

    /// Whether the marker of an image leads to this job.
    fn is_marked(&self, image: &Path) -> bool {
        let marker = Marker::read(image).ok().flatten();
        marker.is_some_and(|marker| marker.kind == self.kind && marker.record == self.record)
    }

    /// INV-38: proves that a file which only the record names belongs to the job: its own marker says so. A record
    /// that was made up, or copied without its images, names files whose markers say something else.
    ///
    /// # Errors
    /// [`JobError::Unproven`].
    pub(crate) fn prove(&self, image: &Path) -> Result<(), JobError> {
        let is_link = image.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        if !is_link && self.is_marked(&canonical(image)) {
            return Ok(());
        }
        Err(JobError::Unproven {
            record: self.record.clone(),
            image: image.to_owned(),
        })
    }

    /// The same for a file that is changed and not removed, and shows in another way that it belongs to the job: one in
    /// the record's own directory needs no marker. Who may write a record there may write a marker too.
    ///
    /// # Errors
    /// [`JobError::Unproven`].
    pub(crate) fn prove_related(&self, image: &Path) -> Result<(), JobError> {
        let is_link = image.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink());
        match !is_link && canonical(image).parent() == self.record.parent() {
            true => Ok(()),
            false => self.prove(image),
        }
    }

    fn directories(&self) -> Vec<PathBuf> {
        let paths = self.images.iter().map(|image| &image.path).chain([&self.record]);
        let mut dirs: Vec<PathBuf> = paths.filter_map(|path| path.parent()).map(Path::to_owned).collect();
        dirs.sort();
        dirs.dedup();
        dirs
    }
}

/// A repair that is being applied: its undo file is the record, and stays when the repair is done.
#[derive(Debug)]
pub struct RepairJob(Job);

impl RepairJob {
    /// The repair of the image at `image`.
    #[must_use]
    pub fn of(image: &Path) -> Self {
        let record = JobKind::Repair.record_path(&canonical(image));
        Self(Job::new(JobKind::Repair, &record, [JobImage::held(image)]))
    }

    /// Refuses if another job is open on the image.
    ///
    /// # Errors
    /// [`JobError::Pending`].
    pub fn check(&self) -> Result<(), JobError> {
        require_only(Some(&self.0.record), self.0.images.iter().map(|image| &image.path))
    }

    /// Whether the repair, or its undoing, began and did not end: also when all of it is in the image already.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.0.images.iter().any(|image| self.0.is_marked(&image.path))
    }

    /// The undo file is there, durably, and the first byte of the image is about to change.
    ///
    /// # Errors
    /// [`JobError`].
    pub fn begin(&self) -> Result<(), JobError> {
        self.0.announce(|| Ok(()))
    }

    /// All of the repair, or of its undoing, is in the image durably.
    pub fn end(&self) {
        self.0.remove_markers();
    }
}

/// The file at `path` without symbolic links; `None` if there is none.
fn real_path(path: &Path) -> Option<PathBuf> {
    path.canonicalize().ok()
}

/// The name of a file that may be gone, without symbolic links as far as can be told.
fn canonical(path: &Path) -> PathBuf {
    full_name(path).unwrap_or_else(|_| path.to_owned())
}

fn is_same_file(a: &Path, b: &Path) -> bool {
    let identity = |path: &Path| FileIdentity::of_path(path).ok();
    a == b || identity(a).is_some_and(|a| Some(a) == identity(b))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
