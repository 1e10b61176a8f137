//! A directory of this host as a volume.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FallocateFlags, OFlags, RenameFlags};

use super::{VolumeFile, VolumeIo};

/// A directory of this host as a volume.
#[derive(Clone, Debug)]
pub struct HostVolume {
    root: PathBuf,
}

impl HostVolume {
    /// The volume in the directory `root`.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_path_buf(),
        }
    }

    /// The directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }
}

impl VolumeIo for HostVolume {
    type File = File;

    fn create_new(&self, path: &str) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(self.path(path))
    }

    fn open(&self, path: &str) -> io::Result<File> {
        // Without waiting: a pipe in place of a file would keep the coordinator for ever.
        use std::os::unix::fs::OpenOptionsExt;
        let flags = (OFlags::NONBLOCK | OFlags::NOFOLLOW).bits().cast_signed();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(self.path(path))?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(file)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match self.path(path).symlink_metadata() {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        // Names that are not Unicode are none of the protocol's.
        std::fs::read_dir(self.path(dir))?
            .filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose())
            .collect()
    }

    fn make_dir(&self, dir: &str) -> io::Result<()> {
        std::fs::create_dir(self.path(dir))
    }

    fn remove_dir(&self, dir: &str) -> io::Result<()> {
        std::fs::remove_dir(self.path(dir))
    }

    fn rename(&self, from: &str, to: &str, replace: bool) -> io::Result<()> {
        let flags = if replace {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        Ok(rustix::fs::renameat_with(
            CWD,
            self.path(from),
            CWD,
            self.path(to),
            flags,
        )?)
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(path))
    }

    fn clear(&self, path: &str) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.path(path))?.set_len(0)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }
}

impl VolumeFile for File {
    fn len(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn extend_to(&self, end: u64) -> io::Result<()> {
        // Not `set_len`: a request that takes effect late would cut off what a successor added.
        let len = self.metadata()?.len();
        if len < end {
            rustix::fs::fallocate(self, FallocateFlags::empty(), len, end - len)?;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}
