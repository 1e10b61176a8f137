//! The jobs that leave a record, and what their records have in common.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Head, JobError, JobImage, is_same_file};
use crate::record::RecordKind;
use crate::storage::{beside, resolved};

/// A job that leaves a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// A merge: the record is beside the image that goes.
    Merge,
    /// A resize: the record is beside the base.
    Resize,
    /// A new identity: the record is beside the image.
    NewId,
    /// A repair: the undo file is beside the image.
    Repair,
}

impl JobKind {
    /// What follows the image's name in that of the record.
    pub(crate) const fn suffix(self) -> &'static str {
        match self {
            Self::Merge => ".merge",
            Self::Resize => ".resize",
            Self::NewId => ".new-id",
            Self::Repair => ".undo",
        }
    }

    /// What the record is; the undo file of a repair has a format of its own.
    pub(crate) const fn record(self) -> RecordKind {
        let name = match self {
            Self::Merge => "merge",
            Self::Resize => "resize",
            Self::NewId => "new-id",
            Self::Repair => "repair",
        };
        RecordKind { name, version: 1 }
    }

    /// The record of a job of this kind beside `image`.
    pub(crate) fn record_path(self, image: &Path) -> PathBuf {
        beside(image, self.suffix())
    }

    /// What the record at `record` says of `image`; `None` if the job is done, or is not about the image.
    pub(super) fn head_naming(self, record: &Path, image: &Path) -> Result<Option<JobImage>, JobError> {
        if self == Self::Repair {
            let is_own = record == self.record_path(image) && record.exists();
            return Ok(is_own.then(|| JobImage::held(image)));
        }
        let read = self.record().read::<Head>(record);
        let head = read.map_err(|source| JobError::Unreadable {
            image: image.to_owned(),
            source: Box::new(source),
        })?;
        let dir = record.parent().unwrap_or(Path::new("/"));
        let images = head.map(|head| head.images).unwrap_or_default();
        let is_image = |named: &&JobImage| resolved(&named.path, dir) == image;
        let is_linked = |named: &&JobImage| is_same_file(&resolved(&named.path, dir), image);
        let named = images.iter().find(is_image).or_else(|| images.iter().find(is_linked));
        Ok(named.map(|named| JobImage {
            guest: named.guest || self.is_complete(record),
            ..named.clone()
        }))
    }

    /// Whether what is left of the job changes nothing that anybody reads: a merge whose child is gone has everything in
    /// its target (INV-21).
    fn is_complete(self, record: &Path) -> bool {
        let name = record.to_str().and_then(|name| name.strip_suffix(self.suffix()));
        self == Self::Merge && name.is_some_and(|child| !Path::new(child).exists())
    }

    /// The command that ends the job of this record.
    pub(super) fn remedy(self, record: &Path) -> String {
        let name = record.display().to_string();
        let image = name.strip_suffix(self.suffix()).unwrap_or(&name);
        match self {
            Self::Merge => format!("vhd merge {image}, with the options that it was begun with"),
            Self::Resize => format!("vhd resize {image}, with the size and options that it was begun with"),
            Self::NewId => format!("vhd new-id {image}"),
            Self::Repair => format!("vhd repair {image} --yes, or --undo"),
        }
    }
}

impl fmt::Display for JobKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Merge => "merge",
            Self::Resize => "resize",
            Self::NewId => "change of identity",
            Self::Repair => "repair",
        })
    }
}
