//! Directories that are copied into. Everything is named from an open directory, and no symbolic link is followed: what
//! a disk holds cannot lead out of the destination, whatever its names are.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chmodat, chownat, mkdirat, openat, symlinkat, unlinkat,
    utimensat,
};
use vhd_fs::files::{FileType, Metadata, Time};

use super::os_name;
use crate::failure::Failure;

/// New directories are their owner's alone until they are complete.
const PRIVATE: Mode = Mode::RWXU;

/// An open directory.
pub(super) struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// The directory that the user named; the last place where a symbolic link is followed.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(path, flags, Mode::empty());
        let fd = opened.map_err(|errno| Failure::io("open the directory", path, &errno.into()))?;
        Ok(Self {
            fd,
            path: path.to_owned(),
        })
    }

    fn failed(&self, operation: &str, name: &[u8], errno: impl Into<io::Error>) -> Failure {
        Failure::io(operation, &self.path.join(os_name(name)), &errno.into())
    }

    /// A new directory in this one, or the one that is there.
    pub(super) fn directory(&self, name: &[u8]) -> Result<Self, Failure> {
        match mkdirat(&self.fd, os_name(name), PRIVATE) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(self.failed("create the directory", name, errno)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(&self.fd, os_name(name), flags, Mode::empty());
        Ok(Self {
            fd: opened.map_err(|errno| self.failed("open the directory", name, errno))?,
            path: self.path.join(os_name(name)),
        })
    }

    /// A new, empty file. One that is there is replaced if `force`.
    pub(super) fn file(&self, name: &[u8], force: bool) -> Result<File, Failure> {
        self.make_room(name, force)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = openat(&self.fd, os_name(name), flags, Mode::RUSR | Mode::WUSR);
        Ok(opened.map_err(|errno| self.failed("create", name, errno))?.into())
    }

    /// A new symbolic link.
    pub(super) fn symlink(&self, name: &[u8], target: &[u8], force: bool) -> Result<(), Failure> {
        self.make_room(name, force)?;
        symlinkat(os_name(target), &self.fd, os_name(name)).map_err(|errno| self.failed("create the link", name, errno))
    }

    fn make_room(&self, name: &[u8], force: bool) -> Result<(), Failure> {
        match force.then(|| unlinkat(&self.fd, os_name(name), AtFlags::empty())) {
            None | Some(Ok(()) | Err(rustix::io::Errno::NOENT)) => Ok(()),
            Some(Err(errno)) => Err(self.failed("replace", name, errno)),
        }
    }

    /// Removes a file that is not complete.
    pub(super) fn remove(&self, name: &[u8]) {
        // What failed before is what the user is told.
        let _ = unlinkat(&self.fd, os_name(name), AtFlags::empty());
    }

    /// Gives what was copied its mode, its times and, if `owners`, its owner.
    pub(super) fn finish(&self, name: &[u8], meta: &Metadata, owners: bool) -> Result<(), Failure> {
        let name_os = os_name(name);
        let is_link = meta.kind == FileType::Symlink;
        if owners {
            let owner = (Some(Uid::from_raw(meta.uid)), Some(Gid::from_raw(meta.gid)));
            chownat(&self.fd, name_os, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| self.failed("set the owner of", name, errno))?;
        }
        if !is_link {
            // Programs of a disk must not run as somebody here only because they were copied.
            let kept = if owners { 0o7777 } else { 0o777 };
            let mode = Mode::from_raw_mode(meta.mode & kept);
            chmodat(&self.fd, name_os, mode, AtFlags::empty())
                .map_err(|errno| self.failed("set the mode of", name, errno))?;
        }
        let times = Timestamps {
            last_access: timespec(meta.accessed),
            last_modification: timespec(meta.modified),
        };
        utimensat(&self.fd, name_os, &times, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.failed("set the time of", name, errno))
    }

    /// Says that a file or directory of a disk is not complete here.
    pub(super) fn write_failed(&self, name: &[u8], error: io::Error) -> Failure {
        self.failed("write", name, error)
    }
}

fn timespec(time: Time) -> Timespec {
    Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
    }
}
