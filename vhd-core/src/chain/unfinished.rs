//! What an interrupted resize leaves beside an image: a record of what it was doing (INV-28).
//!
//! It is here and not with the resize, because whoever opens an image has to know: while a fixed image grows there
//! is a moment in which its end is no footer, and that is not to be taken for a raw file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ChainError;
use crate::format::FOOTER_SIZE;
use crate::image::{Footers, OpenError, check_size};
use crate::record::{Checked, RecordError, RecordKind, check_count, check_path};
use crate::storage::{StorageFile, beside};
use crate::units::UnixSeconds;

const KIND: RecordKind = RecordKind {
    name: "resize",
    version: 1,
};

/// A resize that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResizeRecord {
    /// Bytes that the disks are to have.
    pub(crate) size: u64,
    /// All images of a tree are resized.
    pub(crate) tree: bool,
    /// The files, parents before their children.
    pub(crate) files: Vec<ResizedFile>,
}

/// One of the files of a resize.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResizedFile {
    /// Where it is, from the record's directory.
    pub(crate) path: PathBuf,
    /// Which of the files is its parent.
    pub(crate) parent: Option<usize>,
    /// The footer before, in hexadecimal digits.
    pub(crate) footer: String,
    /// When the file was modified before.
    pub(crate) modified: Option<UnixSeconds>,
}

impl Checked for ResizeRecord {
    fn check(&self) -> Result<(), String> {
        check_size(self.size).map_err(|error| format!("its size: {error}"))?;
        check_count("files", self.files.len(), 1)?;
        for (index, file) in self.files.iter().enumerate() {
            check_path(&file.path)?;
            if file.footer.len() != 2 * FOOTER_SIZE {
                let found = file.footer.len();
                return Err(format!("a footer of {found} digits, expected {}", 2 * FOOTER_SIZE));
            }
            if file.parent.is_some_and(|parent| parent >= index) {
                return Err(format!("file {index} has a parent that does not come before it"));
            }
        }
        Ok(())
    }
}

impl ResizeRecord {
    /// The name of the record of an image, or of the tree of which it is the base.
    pub(crate) fn path_for(image: &Path) -> PathBuf {
        beside(image, ".resize")
    }

    /// The record at `path`, if there is one.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>, RecordError> {
        KIND.read(path)
    }

    /// Puts the record at `path`, durably.
    pub(crate) fn write(&self, path: &Path) -> Result<(), RecordError> {
        KIND.write(path, self)
    }
}

/// Why a file without a footer is not what it seems: a resize of it was interrupted.
pub(super) fn unfinished_resize(path: &Path, file: &dyn StorageFile) -> Option<ChainError> {
    let record = ResizeRecord::path_for(path);
    if !record.exists() || !matches!(Footers::read(file), Err(OpenError::NoFooter { .. })) {
        return None;
    }
    let size = ResizeRecord::read(&record).ok().flatten().map(|record| record.size);
    Some(ChainError::ResizeUnfinished {
        path: path.to_owned(),
        record,
        size,
    })
}
