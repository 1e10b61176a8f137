//! The marker beside an image: which record to look into.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{JobError, JobKind};
use crate::record::{Checked, RecordKind, check_path};
use crate::storage::{beside, relative_to, resolved};

const KIND: RecordKind = RecordKind {
    name: "job",
    version: 1,
};

/// A signpost to the record of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Marker {
    pub(super) kind: JobKind,
    /// In the file, from its directory.
    pub(super) record: PathBuf,
}

impl Checked for Marker {
    fn check(&self) -> Result<(), String> {
        check_path(&self.record)
    }
}

impl Marker {
    pub(super) fn new(kind: JobKind, record: &Path) -> Self {
        let record = record.to_owned();
        Self { kind, record }
    }

    /// The marker of an image.
    pub(super) fn path(image: &Path) -> PathBuf {
        beside(image, ".job")
    }

    /// The marker of an image whose path has no symbolic links; the record's path has none then.
    pub(super) fn read(image: &Path) -> Result<Option<Self>, JobError> {
        let read = KIND.read::<Self>(&Self::path(image));
        let marker = read.map_err(|source| JobError::Unreadable {
            image: image.to_owned(),
            source: Box::new(source),
        })?;
        let dir = image.parent().unwrap_or(Path::new("/"));
        Ok(marker.map(|marker| Self {
            record: super::canonical(&resolved(&marker.record, dir)),
            ..marker
        }))
    }

    /// Puts the marker beside an image; its content is durable, its name when the directory is. `false` if it is there
    /// already. The caller has seen that what is there leads to no open job.
    pub(super) fn write(&self, image: &Path) -> Result<bool, JobError> {
        if Self::read(image)?.as_ref() == Some(self) {
            return Ok(false);
        }
        let dir = image.parent().unwrap_or(Path::new("/"));
        let stored = Self {
            record: relative_to(&self.record, dir),
            ..self.clone()
        };
        KIND.put(&Self::path(image), &stored)?;
        Ok(true)
    }
}
