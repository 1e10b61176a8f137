//! Changing a disk of a volume as a whole: in a copy, which takes its place when it is done.
//!
//! In a disk's file blocks stay where they are (INV-95). What moves them, or the table, does so in a copy that nobody else has,
//! under a name that is used once; the coordinator then puts it into the disk's place in one step. Killed at any moment it
//! leaves the disk as it was, or as it shall be, and perhaps the copy, which the next command removes.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use csv_lock::{CsvError, incoming};

use super::new_disk::SUFFIX;
use super::table::table_of;
use super::{DiskName, Right};
use crate::failure::Failure;

/// A copy of a disk, and the right to write that disk.
pub(crate) struct WorkingCopy {
    right: Arc<Right>,
    disk: DiskName,
    name: String,
    file: PathBuf,
    /// It may still take the disk's place, and then is needed.
    stays: bool,
}

impl WorkingCopy {
    /// Takes the right to write a disk, and copies it.
    pub(crate) fn of(disk: &DiskName) -> Result<Self, Failure> {
        let right = Right::take(disk)?;
        let name = format!("{}{SUFFIX}", right.session());
        let copy = Self {
            file: disk.volume.dir.join(incoming(&name)),
            right,
            disk: disk.clone(),
            name,
            stays: false,
        };
        fs::copy(disk.file(), &copy.file).map_err(|error| Failure::io("copy", &disk.file(), &error))?;
        Ok(copy)
    }

    /// The copy.
    pub(crate) fn path(&self) -> &Path {
        &self.file
    }

    /// The directory of the disk: what the copy names as its parents is found there.
    pub(crate) fn home(&self) -> PathBuf {
        let file = self.disk.file();
        file.parent()
            .map_or_else(|| self.disk.volume.dir.clone(), Path::to_owned)
    }

    /// The copy is done and closed: it takes the disk's place.
    pub(crate) fn publish(mut self) -> Result<(), Failure> {
        let failed = |error| Failure::io("sync", &self.file, &error);
        File::open(&self.file)
            .and_then(|file| file.sync_all())
            .map_err(failed)?;
        let replaced = self.right.replace(&self.name, table_of(&self.file)?);
        self.stays = matches!(replaced, Err(CsvError::NoCoordinator { .. }));
        let volume = &self.disk.volume.name;
        replaced.map_err(|error| Failure::from(error).about(format_args!("volume {volume}")))
    }
}

impl Drop for WorkingCopy {
    fn drop(&mut self) {
        if !self.stays {
            // In the disk's place it has another name.
            let _ = fs::remove_file(&self.file);
        }
    }
}
