//! A file that gets its name when it is complete.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use super::names::sync_directory;
use super::on_volume::refuse_on_volume;
use super::partial::PartialName;
use super::{HostFile, StorageError};

/// Names that were taken meanwhile are tried anew, this often.
const NAME_ATTEMPTS: u32 = 100;
/// Bytes of the target's name that go into a temporary one, so that it stays below the usual 255.
const NAME_PART_MAX: usize = 200;

/// A new file without a name, which [`publish`](StagedFile::publish) gives it. Dropped before that, or
/// killed, it leaves nothing.
///
/// Where the file system has no nameless files it is called `.<name>.<pid>-<n>.partial` until published.
/// To replace an existing file, any file has such a name for the moment between two system calls. A process
/// killed with such a name in use leaves the file behind; one that is asked to end can
/// [remove it](super::remove_partial_files).
///
/// Where a file can have no second name and a rename always replaces (exFAT in user space), the name is claimed with an
/// empty file, which is then replaced: a process killed between the two leaves an empty file of the target's name, and
/// the whole content under the temporary one.
#[derive(Debug)]
pub struct StagedFile {
    storage: Arc<HostFile>,
    directory: Directory,
    target: PathBuf,
    name: OsString,
    /// The temporary name, where the file system demands one.
    partial: Option<PartialName>,
}

/// The directory that the file will be in, held open: all names are relative to it.
#[derive(Debug)]
struct Directory {
    file: File,
    path: PathBuf,
}

impl StagedFile {
    /// Creates an empty file in the directory of `target`, for reading and writing, with the rights that the
    /// process gives new files. It is not locked: nobody else can reach it before it is published.
    ///
    /// # Errors
    ///
    /// `NotFound` when there is no such directory, `NotAFile` when `target` names none, `Io`.
    pub fn create_beside(target: &Path) -> Result<Self, StorageError> {
        Self::create(target, true)
    }

    fn create(target: &Path, nameless: bool) -> Result<Self, StorageError> {
        let name = file_name(target).ok_or_else(|| StorageError::NotAFile {
            path: target.to_path_buf(),
        })?;
        let directory = Directory::of(target)?;
        let (file, partial) = match if nameless {
            directory.create_nameless()
        } else {
            Err(Errno::OPNOTSUPP)
        } {
            Ok(file) => (file, None),
            // Also what kernels before nameless files say.
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT | Errno::INVAL) => {
                let (file, partial) = directory.create_partial(name)?;
                (file, Some(partial))
            }
            Err(errno) => return Err(StorageError::at(&directory.path, "create a file in", errno)),
        };
        let storage = Arc::new(HostFile::new_at(file, target));
        Ok(Self {
            storage,
            directory,
            target: target.to_path_buf(),
            name: name.to_owned(),
            partial,
        })
    }

    /// The file, to be filled. It stays usable after the file is published.
    #[must_use]
    pub fn storage(&self) -> Arc<HostFile> {
        Arc::clone(&self.storage)
    }

    /// Gives the file its name. With `replace`, a file of that name is replaced in one step: at every moment
    /// there is either the old or the new one, and the new one gets the old one's owner and mode. A symbolic
    /// link is replaced itself, not the file that it points to. With `durable`, the content is durable before
    /// the name, and the name before the call returns.
    ///
    /// # Errors
    ///
    /// `Exists` when there is a file of that name and `replace` is false; `OnVolume` when a cluster volume has the file that would
    /// be replaced. `Io` when the system fails: then
    /// the file did not get the name, except where the last step, syncing the directory, was what failed.
    pub fn publish(mut self, replace: bool, durable: bool) -> Result<(), StorageError> {
        use super::StorageFile as _;
        let file = self.storage.host_file().expect("a host file");
        if replace {
            refuse_on_volume(&self.target)?;
            self.directory
                .copy_rights(&self.name, file)
                .map_err(|e| StorageError::at(&self.target, "replace", e))?;
        }
        if durable {
            file.sync_all().map_err(|e| StorageError::at(&self.target, "sync", e))?;
        }
        match &self.partial {
            // Most often there is nothing to replace, and then no temporary name is needed.
            None => match self.directory.link(file, &self.name) {
                Err(Errno::EXIST) if replace => {
                    let partial = self.directory.link_partial(file, &self.name)?;
                    let partial = self.partial.insert(partial); // to be removed on failure
                    self.directory.rename(partial.as_os_str(), &self.name, true)
                }
                result => result,
            },
            Some(partial) => self.directory.rename(partial.as_os_str(), &self.name, replace),
        }
        .map_err(|errno| publish_error(&self.target, errno))?;
        if let Some(partial) = self.partial.take() {
            partial.keep();
        }
        if durable {
            let synced = sync_directory(&self.directory.file);
            synced.map_err(|source| StorageError::at(&self.directory.path, "sync", source))?;
        }
        Ok(())
    }
}

impl Directory {
    fn of(target: &Path) -> Result<Self, StorageError> {
        let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
        let path = parent.unwrap_or(Path::new(".")).to_path_buf();
        match OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_DIRECTORY)
            .open(&path)
        {
            Ok(file) => Ok(Self { file, path }),
            Err(source) => Err(StorageError::at(&path, "open", source)),
        }
    }

    fn create_nameless(&self) -> Result<File, Errno> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.file, ".", flags, new_file_mode())?.into())
    }

    fn create_partial(&self, name: &OsStr) -> Result<(File, PartialName), StorageError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        self.with_partial_name(name, |partial| {
            Ok(rustix::fs::openat(&self.file, partial, flags, new_file_mode())?.into())
        })
    }

    /// Gives a nameless file a temporary name.
    fn link_partial(&self, file: &File, name: &OsStr) -> Result<PartialName, StorageError> {
        self.with_partial_name(name, |partial| self.link(file, partial))
            .map(|((), partial)| partial)
    }

    /// Does `create` with temporary names until one is free.
    fn with_partial_name<T>(
        &self,
        name: &OsStr,
        create: impl Fn(&OsStr) -> Result<T, Errno>,
    ) -> Result<(T, PartialName), StorageError> {
        let mut attempts = 0;
        loop {
            let partial = partial_name(name);
            let create = |partial: &OsStr| Ok::<T, io::Error>(create(partial)?);
            match PartialName::create(&self.file, partial.clone(), create) {
                Ok(created) => return Ok(created),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && attempts < NAME_ATTEMPTS => {
                    attempts += 1;
                }
                Err(error) => return Err(StorageError::at(&self.path.join(partial), "create", error)),
            }
        }
    }

    /// Gives a nameless file a name that must be free.
    fn link(&self, file: &File, name: &OsStr) -> Result<(), Errno> {
        // By its number in /proc, as any user may; without /proc by the handle itself, as root may.
        let number = format!("/proc/self/fd/{}", file.as_raw_fd());
        match rustix::fs::linkat(CWD, number.as_str(), &self.file, name, AtFlags::SYMLINK_FOLLOW) {
            Err(Errno::NOENT) => rustix::fs::linkat(file, "", &self.file, name, AtFlags::EMPTY_PATH),
            result => result,
        }
    }

    fn rename(&self, from: &OsStr, to: &OsStr, replace: bool) -> Result<(), Errno> {
        let flags = if replace {
            RenameFlags::empty()
        } else {
            RenameFlags::NOREPLACE
        };
        match rustix::fs::renameat_with(&self.file, from, &self.file, to, flags) {
            // A file system that can't rename without replacing: a second name does not replace either.
            Err(Errno::INVAL | Errno::NOSYS) if !replace => {
                match rustix::fs::linkat(&self.file, from, &self.file, to, AtFlags::empty()) {
                    Ok(()) => {}
                    // EMLINK, and what systems without links say in various ways.
                    Err(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::MLINK) => {
                        return self.claim_and_rename(from, to);
                    }
                    Err(errno) => return Err(errno),
                }
                // Published is published: a temporary name that can't be removed is no reason to say otherwise.
                let _ = rustix::fs::unlinkat(&self.file, from, AtFlags::empty());
                Ok(())
            }
            result => result,
        }
    }

    /// Renames without replacing another's file, where a rename always replaces and a file has one name only: of those
    /// who create the empty file, one succeeds, and only that one goes on to replace it.
    fn claim_and_rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        drop(rustix::fs::openat(&self.file, to, flags, new_file_mode())?);
        let renamed = rustix::fs::renameat(&self.file, from, &self.file, to);
        if renamed.is_err() {
            let _ = rustix::fs::unlinkat(&self.file, to, AtFlags::empty()); // the claim, which is still empty
        }
        renamed
    }

    /// Gives `file` the owner, group and mode of the file called `name`, if there is one.
    fn copy_rights(&self, name: &OsStr, file: &File) -> io::Result<()> {
        let old = match rustix::fs::openat(&self.file, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
            Ok(old) => File::from(old).metadata()?,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let new = file.metadata()?;
        if (new.uid(), new.gid(), new.mode()) == (old.uid(), old.gid(), old.mode()) {
            return Ok(()); // file systems without rights refuse even to set what is there
        }
        let (owner, group) = (Some(Uid::from_raw(old.uid())), Some(Gid::from_raw(old.gid())));
        let same_group = rustix::fs::fchown(file, owner, group).or_else(|_| rustix::fs::fchown(file, None, group));
        // What the old group was allowed is no business of another one.
        let mode = if same_group.is_ok() {
            old.mode()
        } else {
            old.mode() & !0o070
        };
        Ok(rustix::fs::fchmod(file, Mode::from_raw_mode(mode & 0o777))?)
    }
}

fn publish_error(target: &Path, errno: Errno) -> StorageError {
    match errno {
        Errno::EXIST => StorageError::Exists {
            path: target.to_path_buf(),
        },
        Errno::ISDIR => StorageError::NotAFile {
            path: target.to_path_buf(),
        },
        errno => StorageError::at(target, "create", errno),
    }
}

/// The last component, if it is a name: not for `/`, `a/..` or `a/`.
fn file_name(target: &Path) -> Option<&OsStr> {
    let ends_in_name = !matches!(target.as_os_str().as_bytes(), [.., b'/'] | [.., b'/', b'.']);
    target.file_name().filter(|_| ends_in_name)
}

fn partial_name(name: &OsStr) -> OsString {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let bytes = name.as_bytes();
    let mut partial = OsString::from(".");
    partial.push(OsStr::from_bytes(&bytes[..bytes.len().min(NAME_PART_MAX)]));
    partial.push(format!(
        ".{}-{}.partial",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    ));
    partial
}

/// What any new file gets, less the process's mask.
fn new_file_mode() -> Mode {
    Mode::from_raw_mode(0o666)
}

#[cfg(test)]
#[path = "staged_file_tests.rs"]
mod tests;
