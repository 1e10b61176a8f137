//! The time stamp of an image that others are based on.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use vhd_core::chain::dependants::dependants_of;
use vhd_core::chain::require_vhd;
use vhd_core::storage::{Access, HostFile, Sharing};

use crate::failure::Failure;
use crate::output;

/// When a parent's file was changed last. Its children remember that; where its content does not change, it stays.
pub(crate) struct ParentTime {
    path: PathBuf,
    modified: SystemTime,
}

impl ParentTime {
    pub(crate) fn of(path: &Path) -> Result<Self, Failure> {
        let time = std::fs::metadata(path).and_then(|metadata| metadata.modified());
        Ok(Self {
            path: path.to_owned(),
            modified: time.map_err(|error| Failure::io("query", path, &error))?,
        })
    }

    /// For a file that other images are known to be based on.
    pub(crate) fn if_parent(path: &Path) -> Result<Option<Self>, Failure> {
        require_vhd(&HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?, path)?;
        let found = dependants_of(path)?;
        (!found.children().is_empty()).then(|| Self::of(path)).transpose()
    }

    /// Gives the file its former time.
    pub(crate) fn keep(self) {
        let file = std::fs::File::options().write(true).open(&self.path);
        if let Err(error) = file.and_then(|file| file.set_modified(self.modified)) {
            let path = self.path.display();
            output::warning(format_args!(
                "{path}: its children will find another modification time: {error}"
            ));
        }
    }
}
