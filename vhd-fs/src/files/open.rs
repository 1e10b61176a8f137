//! Which file system a partition has, and opening it.

use std::sync::Arc;

use super::ext::Ext;
use super::ntfs::Ntfs;
use super::region::{Budget, Region, SharedDisk};
use super::xfs::Xfs;
use super::{FileError, FileSystem, Files, exfat, fat};
use crate::window::Window;
use crate::{exfat as exfat_map, ext as ext_map, fat as fat_map, ntfs as ntfs_map, xfs as xfs_map};

/// How a file system is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenFiles {
    replay: bool,
}

impl OpenFiles {
    /// Shows the state on the disk, whatever a journal says.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether a journal that is not empty is replayed into memory, where the reader can (ext3 and ext4). Nothing is
    /// written either way.
    #[must_use]
    pub fn replay(self, replay: bool) -> Self {
        Self { replay }
    }

    /// Opens the file system in the bytes `start..start + len` of a disk.
    ///
    /// # Errors
    /// [`FileError::Unrecognised`] where there is none that can be read here, and what opening meets.
    pub fn open(self, disk: &SharedDisk, start: u64, len: u64) -> Result<Files, FileError> {
        let len = len.min(disk.size().saturating_sub(start));
        let window = Window::new(&**disk, start, len);
        let format = crate::probe::file_system(&window).map_err(|reason| match reason {
            crate::Unusable::Io(error) => FileError::Io(error),
            other => FileError::Unrecognised(other.to_string()),
        })?;
        let disk = Arc::clone(disk);
        let open = move |budget: &Arc<Budget>| {
            let region = Region::new(Arc::clone(&disk), start, len, Arc::clone(budget));
            self.open_format(format, region)
        };
        Files::open(format, Arc::new(open))
    }

    fn open_format(self, format: &'static str, region: Region) -> Result<Box<dyn FileSystem>, FileError> {
        Ok(match format {
            ext_map::NAME => Box::new(Ext::open(region, self.replay)?),
            ntfs_map::NAME => Box::new(Ntfs::open(region)?),
            fat_map::NAME => Box::new(fat::open(region)?),
            exfat_map::NAME => Box::new(exfat::open(region)?),
            xfs_map::NAME => Box::new(Xfs::open(region)?),
            other => return Err(FileError::Unrecognised(format!("{other} has no files"))),
        })
    }
}
