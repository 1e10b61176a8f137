//! What a child has recorded of its parent, beside what a file is.

use std::path::Path;

use super::create::modified;
use super::disagree::times_agree;
use super::locate::candidates;
use super::{ChainError, OpenedDisk};
use crate::format::{Timestamp, UniqueId};
use crate::image::{Image, ParentPath};
use crate::storage::FileIdentity;

/// What a child has recorded of its parent, and what the file is that is compared with it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Relation {
    /// The places where the child says that its parent is, best first.
    pub paths: Vec<RecordedPath>,
    /// The identity; nil for a raw file.
    pub id: Fact<UniqueId>,
    /// When the file was modified last. Unset in many children, which agrees with everything.
    pub modified: Fact<Timestamp>,
    /// Bytes on the disk: the child's own, since it has no record of its parent's.
    pub disk_size: Fact<u64>,
}

/// Something as the child has it, and as the file has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact<T> {
    /// What the child says.
    pub recorded: T,
    /// What the file is.
    pub found: T,
    /// They are the same, as far as this can be told.
    pub agrees: bool,
}

/// A place where a child says that its parent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordedPath {
    /// As it is written in the child.
    pub path: ParentPath,
    /// On this machine it leads to the file.
    pub leads_there: bool,
}

impl Relation {
    /// Compares what the differencing image at `child` says of its parent with the disk at `parent`, open as
    /// `opened`.
    ///
    /// # Errors
    /// [`ChainError`] when the child's locators or the parent's time can't be read.
    pub fn of(child: &Path, image: &Image, parent: &Path, opened: &OpenedDisk) -> Result<Self, ChainError> {
        let base = opened.layers().next().and_then(|leaf| leaf.layer.image());
        let (wanted, recorded) = image.header().map_or((UniqueId::NIL, Timestamp::UNSET), |header| {
            (header.parent_id, header.parent_timestamp)
        });
        let modified = modified(parent)?;
        let in_footer = base.map(|base| base.footer().timestamp);
        Ok(Self {
            paths: recorded_paths(child, image, parent)?,
            id: Fact::exact(wanted, base.map_or(UniqueId::NIL, Image::unique_id)),
            modified: Fact {
                recorded,
                found: modified,
                agrees: times_agree(recorded, modified, in_footer),
            },
            disk_size: Fact::exact(image.disk_size(), opened.disk().size()),
        })
    }

    /// One of the recorded places leads to the file.
    #[must_use]
    pub fn path_agrees(&self) -> bool {
        self.paths.iter().any(|path| path.leads_there)
    }
}

impl<T: PartialEq> Fact<T> {
    fn exact(recorded: T, found: T) -> Self {
        Self {
            agrees: recorded == found,
            recorded,
            found,
        }
    }
}

fn recorded_paths(child: &Path, image: &Image, parent: &Path) -> Result<Vec<RecordedPath>, ChainError> {
    let named = image.parent_paths().map_err(|source| ChainError::Image {
        path: child.to_owned(),
        source,
    })?;
    let wanted = FileIdentity::of_path(parent).map_err(|source| ChainError::Read {
        path: parent.to_owned(),
        source,
    })?;
    let leads_there = |path: &ParentPath| {
        let places = candidates(child, std::slice::from_ref(path), &[], &[]);
        let mut files = places.filter_map(|place| FileIdentity::of_path(&place.path).ok());
        files.any(|file| file == wanted)
    };
    let paths = named.into_iter().map(|path| RecordedPath {
        leads_there: leads_there(&path),
        path,
    });
    Ok(paths.collect())
}
