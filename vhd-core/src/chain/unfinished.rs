//! What an interrupted resize leaves beside an image: a record of what it was doing (INV-28).
//!
//! It is here and not with the resize, because whoever opens an image has to know: while a fixed image grows there
//! is a moment in which its end is no footer, and that is not to be taken for a raw file.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::ChainError;
use crate::format::{DiskType, FOOTER_SIZE, Footer};
use crate::image::{Footers, OpenError, check_size};
use crate::job::{Head, JobKind};
use crate::record::{Checked, RecordError, RecordKind, check_count, check_path};
use crate::storage::StorageFile;
use crate::units::UnixSeconds;

const KIND: RecordKind = JobKind::Resize.record();

/// A resize that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ResizeRecord {
    /// Bytes that the disks are to have.
    pub(crate) size: u64,
    /// All images of a tree are resized.
    pub(crate) tree: bool,
    /// The files, parents before their children.
    pub(crate) files: Vec<ResizedFile>,
    /// The images that show that the resize is open.
    #[serde(flatten)]
    pub(crate) head: Head,
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
        self.head.check()
    }
}

impl ResizedFile {
    /// The footer before, as it stood in the file.
    pub(crate) fn former_raw(&self) -> Option<[u8; FOOTER_SIZE]> {
        let mut bytes = [0; FOOTER_SIZE];
        if self.footer.len() != 2 * FOOTER_SIZE || !self.footer.is_ascii() {
            return None;
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&self.footer[2 * index..2 * index + 2], 16).ok()?;
        }
        Some(bytes)
    }

    fn former_footer(&self) -> Option<Footer> {
        Footer::decode(&self.former_raw()?).ok()
    }
}

impl ResizeRecord {
    /// The name of the record of an image, or of the tree of which it is the base.
    pub(crate) fn path_for(image: &Path) -> PathBuf {
        let real = image.canonicalize();
        JobKind::Resize.record_path(real.as_deref().unwrap_or(image))
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
    if !record.exists() {
        return None;
    }
    let read = ResizeRecord::read(&record).ok().flatten();
    let is_between = match Footers::read(file) {
        Err(OpenError::NoFooter { .. }) => true,
        Ok(found) => read
            .as_ref()
            .is_some_and(|read| has_other_footer(&found.footer, read, file)),
        Err(_) => false,
    };
    is_between.then(|| ChainError::ResizeUnfinished {
        path: path.to_owned(),
        record,
        size: read.map(|record| record.size),
    })
}

/// Whether the footer of the other size stands where it would be read as a part of the disk.
fn has_other_footer(footer: &Footer, record: &ResizeRecord, file: &dyn StorageFile) -> bool {
    if footer.disk_type != DiskType::Fixed {
        return false;
    }
    let former = record.files.iter().filter_map(ResizedFile::former_footer);
    let former = former.filter(|former| former.unique_id == footer.unique_id);
    let sizes = former.map(|former| former.current_size).chain([record.size]);
    let mut inside = sizes.filter(|size| *size < footer.current_size);
    inside.any(|at| {
        let mut sector = [0; FOOTER_SIZE];
        let found = file
            .read_exact_at(&mut sector, at)
            .ok()
            .map(|()| Footer::decode(&sector));
        found.is_some_and(|found| {
            found.is_ok_and(|found| found.unique_id == footer.unique_id && found.current_size == at)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(footer: &str) -> ResizedFile {
        ResizedFile {
            path: PathBuf::new(),
            parent: None,
            footer: footer.to_owned(),
            modified: None,
        }
    }

    #[test]
    fn footers_survive_as_digits() {
        let digits: String = (0..=255_u8)
            .cycle()
            .take(FOOTER_SIZE)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let raw = file(&digits).former_raw().unwrap();
        assert!(raw.iter().zip((0..=255_u8).cycle()).all(|(found, byte)| *found == byte));
        for bad in ["", "00", &"0g".repeat(512), &"00".repeat(511), &"\u{e9}".repeat(512)] {
            assert_eq!(file(bad).former_raw(), None);
        }
    }
}
