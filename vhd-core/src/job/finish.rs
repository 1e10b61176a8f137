//! How an open job is finished: by the command that began it, with what its record says of the options.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{JobError, JobKind, OpenJob};
use crate::record::Checked;
use crate::storage::resolved;

/// What finishes an open job.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finish {
    /// The merge of the child goes on.
    Merge {
        /// The image that goes.
        child: PathBuf,
        /// The target, where it is not the child's parent.
        into: Option<PathBuf>,
        /// Other children are carried along.
        carry: bool,
    },
    /// The resize goes on.
    Resize {
        /// The base of the tree, or the image.
        image: PathBuf,
        /// Bytes that the disk is to have.
        size: u64,
        /// All images of the tree are resized.
        tree: bool,
    },
    /// The change of identity goes on.
    NewId {
        /// The image.
        image: PathBuf,
    },
    /// The repair goes on.
    Repair {
        /// The image.
        image: PathBuf,
    },
}

/// What the record of a merge says, as far as it is needed here.
#[derive(Deserialize)]
struct MergeRecord {
    target: Target,
    layers: Vec<IgnoredAny>,
    carried: Vec<IgnoredAny>,
}

#[derive(Deserialize)]
struct Target {
    path: PathBuf,
}

/// The same of a resize.
#[derive(Deserialize)]
struct ResizeRecord {
    size: u64,
    tree: bool,
}

impl Checked for MergeRecord {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl Checked for ResizeRecord {
    fn check(&self) -> Result<(), String> {
        Ok(())
    }
}

impl OpenJob {
    /// What finishes the job; `None` if its record is gone meanwhile.
    ///
    /// # Errors
    /// The record can't be read.
    pub fn finish(&self) -> Result<Option<Finish>, JobError> {
        let record = &self.record;
        let name = record
            .as_os_str()
            .to_str()
            .and_then(|name| name.strip_suffix(self.kind.suffix()));
        let image = name.map_or_else(|| self.image.path.clone(), PathBuf::from);
        let directory = record.parent().unwrap_or(Path::new("/"));
        let kind = self.kind.record();
        Ok(match self.kind {
            JobKind::Repair => Some(Finish::Repair { image }),
            JobKind::NewId => Some(Finish::NewId { image }),
            JobKind::Resize => kind.read::<ResizeRecord>(record)?.map(|resize| Finish::Resize {
                image,
                size: resize.size,
                tree: resize.tree,
            }),
            JobKind::Merge => kind.read::<MergeRecord>(record)?.map(|merge| Finish::Merge {
                child: image,
                into: (merge.layers.len() > 1).then(|| resolved(&merge.target.path, directory)),
                carry: !merge.carried.is_empty(),
            }),
        })
    }
}
