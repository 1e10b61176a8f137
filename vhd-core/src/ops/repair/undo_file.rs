//! The undo file of an image: beside it, under its name with `.undo` behind it.

use std::io;
use std::path::{Path, PathBuf};

use super::error::{Doing as _, RepairError};
use super::journal::Journal;
use crate::storage::{self, StagedFile, StorageError, StorageFile as _, beside, read_existing};
use crate::units::u64_from;

/// Bytes: no repair takes more, and nothing larger is read.
pub(super) const MAX_UNDO: u64 = 1 << 30;

/// An undo file with a journal in it.
#[derive(Debug)]
pub struct UndoFile {
    path: PathBuf,
    journal: Journal,
}

impl UndoFile {
    /// The path of the undo file of the image at `image`.
    #[must_use]
    pub fn path_of(image: &Path) -> PathBuf {
        beside(image, ".undo")
    }

    /// The undo file of the image at `image`; `None` if there is none.
    ///
    /// # Errors
    /// [`RepairError::UndoMismatch`] if it is damaged; the file system.
    pub fn find(image: &Path) -> Result<Option<Self>, RepairError> {
        let path = Self::path_of(image);
        let Some(bytes) = read_existing(&path, MAX_UNDO)? else {
            return Ok(None);
        };
        if u64_from(bytes.len()) > MAX_UNDO {
            let source = io::Error::new(
                io::ErrorKind::FileTooLarge,
                format!("an undo file has at most {MAX_UNDO} bytes"),
            );
            return Err(StorageError::Io {
                path,
                operation: "read",
                source,
            }
            .into());
        };
        let journal = Journal::decode(&bytes)?;
        Ok(Some(Self { path, journal }))
    }

    /// Writes the undo file of the image at `image`. It is durable, complete and under its name when the call
    /// returns, and not there otherwise (INV-16).
    ///
    /// # Errors
    /// `Exists` if there is one; the file system.
    pub fn create(image: &Path, journal: &Journal) -> Result<Self, RepairError> {
        let path = Self::path_of(image);
        let staged = StagedFile::create_beside(&path)?;
        // It has parts of the image in it: whoever may not read that may not read this.
        if let Some(file) = staged.storage().host_file() {
            let rights = std::fs::metadata(image).map(|metadata| metadata.permissions());
            rights
                .and_then(|rights| file.set_permissions(rights))
                .doing("set the rights of the undo file", 0)?;
        }
        staged
            .storage()
            .write_all_at(&journal.encode(), 0)
            .doing("write the undo file", 0)?;
        staged.publish(false, true)?;
        Ok(Self {
            path,
            journal: journal.clone(),
        })
    }

    /// What it holds.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the file durably, after what it says was undone.
    ///
    /// # Errors
    /// The file system.
    pub fn remove(self) -> Result<(), RepairError> {
        storage::remove_file(&self.path)?;
        Ok(())
    }
}
