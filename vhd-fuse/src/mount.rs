//! A mount: its options, its threads, and its end.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;

use fuser::{BackgroundSession, Config, MountOption, Session, SessionACL};
use rustix::mount::UnmountFlags;

use crate::Directory;
use crate::filesystem::Tree;
use crate::mount_table::{SOURCE, is_mount_of_ours};

/// The device that the kernel's side of FUSE is reached by.
const DEVICE: &str = "/dev/fuse";
/// What mounts and unmounts for those who are not root, from the package fuse3.
const HELPER: &str = "fusermount3";
/// KiB that the kernel reads ahead: what it offers by itself is 128, which costs a third of the speed.
const READ_AHEAD: u32 = 1024;
/// Threads that answer requests, where there are as many processors.
const MAX_THREADS: usize = 8;

/// Why a tree cannot be mounted or unmounted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The kernel has no FUSE, or this process may not use it.
    #[error("{DEVICE} cannot be opened: {0} (load the module fuse, or pass the device into the container)")]
    NoDevice(#[source] io::Error),
    /// What mounts for those who are not root is missing.
    #[error("{HELPER} is missing: install the package fuse3, or mount as root")]
    NoHelper,
    /// The place is no directory, or cannot be looked at.
    #[error("{} is no directory that can be mounted on: {source}", path.display())]
    Place {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mount of ours is there already.
    #[error("{} has a mount of vhd already: `vhd umount` takes it away", path.display())]
    Occupied {
        /// Where.
        path: PathBuf,
    },
    /// A program uses the mount.
    #[error("{} is in use: close the files and leave the directories in it", path.display())]
    Busy {
        /// Where.
        path: PathBuf,
    },
    /// Nothing of ours is mounted there.
    #[error("{} is not mounted by vhd", path.display())]
    NotMounted {
        /// Where.
        path: PathBuf,
    },
    /// Anything else.
    #[error("cannot {operation} {}: {source}", path.display())]
    Failed {
        /// What was tried.
        operation: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// What all nodes of a mount have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    /// Who owns what has no owner of its own.
    pub(crate) owner: (u32, u32),
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
    pub(crate) umask: u16,
    /// Bytes of the disk.
    pub(crate) size: u64,
}

/// How a tree is mounted.
#[derive(Clone, Debug)]
pub struct MountOptions {
    name: String,
    size: u64,
    writable: bool,
    allow_other: bool,
    uid: Option<u32>,
    gid: Option<u32>,
    umask: u16,
}

impl MountOptions {
    /// A read-only mount for its owner alone. `name` is what `mount` and `df` show as its source,
    /// behind `vhd:`; `size` are the bytes of the disk.
    #[must_use]
    pub fn new(name: impl Into<String>, size: u64) -> Self {
        Self {
            name: name.into(),
            size,
            writable: false,
            allow_other: false,
            uid: None,
            gid: None,
            umask: 0,
        }
    }

    /// Lets what is writable in the tree be written.
    #[must_use]
    pub fn writable(self, writable: bool) -> Self {
        Self { writable, ..self }
    }

    /// Lets other users in, as far as modes allow.
    #[must_use]
    pub fn allow_other(self, allow_other: bool) -> Self {
        Self { allow_other, ..self }
    }

    /// Shows these owners in place of those of the tree.
    #[must_use]
    pub fn owner(self, uid: Option<u32>, gid: Option<u32>) -> Self {
        Self { uid, gid, ..self }
    }

    /// Takes these permission bits away everywhere.
    #[must_use]
    pub fn umask(self, umask: u16) -> Self {
        Self { umask, ..self }
    }

    /// Mounts a tree on a directory. Requests are answered until the mount is dropped or unmounted by anyone.
    ///
    /// # Errors
    /// [`MountError`]
    pub fn mount(self, root: Arc<dyn Directory>, place: &Path) -> Result<Mount, MountError> {
        check_place(place)?;
        check_device()?;
        let owner = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let tree = Tree::new(
            root,
            Shown {
                owner,
                uid: self.uid,
                gid: self.gid,
                umask: self.umask,
                size: self.size,
            },
        );
        let failed = |operation| {
            move |source: io::Error| MountError::Failed {
                operation,
                path: place.to_owned(),
                source,
            }
        };
        let session = Session::new(tree, place, &self.config()).map_err(failed("mount on"))?;
        let session = session.spawn().map_err(failed("serve"))?;
        raise_read_ahead(place);
        Ok(Mount {
            session: Some(session),
            place: place.to_owned(),
        })
    }

    fn config(&self) -> Config {
        // The kernel takes the name as it is, and the helper as one of its options.
        let name = match rustix::process::geteuid().is_root() {
            true => self.name.clone(),
            false => escaped(&self.name),
        };
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(format!("{SOURCE}{name}")),
            MountOption::Subtype("vhd".into()),
            MountOption::DefaultPermissions,
            MountOption::NoDev,
            MountOption::NoSuid,
            MountOption::NoAtime,
            if self.writable {
                MountOption::RW
            } else {
                MountOption::RO
            },
        ];
        config.acl = if self.allow_other {
            SessionACL::All
        } else {
            SessionACL::Owner
        };
        let processors = thread::available_parallelism().map_or(1, usize::from);
        config.n_threads = Some(processors.clamp(2, MAX_THREADS));
        config.clone_fd = true;
        config
    }
}

/// A mounted tree. Dropping it unmounts.
pub struct Mount {
    session: Option<BackgroundSession>,
    place: PathBuf,
}

impl Mount {
    /// Waits until somebody has unmounted it, and the last request is served.
    ///
    /// # Errors
    /// [`MountError::Failed`]
    pub fn wait(mut self) -> Result<(), MountError> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        session.join().map_err(|source| MountError::Failed {
            operation: "serve",
            path: self.place.clone(),
            source,
        })
    }
}

impl Drop for Mount {
    /// Unmounts if that is still to be done, and waits until no request is served any more.
    fn drop(&mut self) {
        let Some(session) = self.session.take() else { return };
        if let Err(error) = session.umount_and_join() {
            tracing::warn!(%error, place = %self.place.display(), "unmount");
        }
    }
}

/// Unmounts what is mounted on a directory: also where the process that served it is gone.
///
/// # Errors
/// [`MountError::Busy`], [`MountError::NotMounted`], [`MountError::NoHelper`], [`MountError::Failed`]
pub fn unmount(place: &Path) -> Result<(), MountError> {
    let path = place.to_owned();
    if !is_mount_of_ours(place) {
        return Err(MountError::NotMounted { path });
    }
    match rustix::mount::unmount(place, UnmountFlags::empty()) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::BUSY) => Err(MountError::Busy { path }),
        Err(rustix::io::Errno::PERM) => run_helper(place, &["-u", "--"]),
        Err(errno) => Err(MountError::Failed {
            operation: "unmount",
            path,
            source: errno.into(),
        }),
    }
}

/// Takes a mount out of the tree of directories although it is in use: what is open in it stays open, and ends with the
/// process that serves it.
///
/// # Errors
/// [`MountError::Failed`]
pub fn detach(place: &Path) -> Result<(), MountError> {
    match rustix::mount::unmount(place, UnmountFlags::DETACH) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::PERM) => run_helper(place, &["-u", "-z", "--"]),
        Err(errno) => Err(MountError::Failed {
            operation: "detach",
            path: place.to_owned(),
            source: errno.into(),
        }),
    }
}

/// Unmounts as somebody who is not root.
fn run_helper(place: &Path, options: &[&str]) -> Result<(), MountError> {
    let path = place.to_owned();
    let output = match Command::new(HELPER).args(options).arg(place).output() {
        Ok(output) => output,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MountError::NoHelper),
        Err(source) => {
            let operation = "unmount";
            return Err(MountError::Failed {
                operation,
                path,
                source,
            });
        }
    };
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    if text.contains("busy") {
        return Err(MountError::Busy { path });
    }
    Err(MountError::Failed {
        operation: "unmount",
        path,
        source: io::Error::other(text.trim().to_owned()),
    })
}

/// The text as a value in the list of options of the helper, where a comma ends one.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace(',', "\\,")
}

/// A second mount would hide the first; where the server of one is gone, nothing can be mounted at all.
fn check_place(place: &Path) -> Result<(), MountError> {
    if is_mount_of_ours(place) {
        return Err(MountError::Occupied { path: place.to_owned() });
    }
    let failed = |source| MountError::Place {
        path: place.to_owned(),
        source,
    };
    match fs::metadata(place) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(failed(io::ErrorKind::NotADirectory.into())),
        Err(error) => Err(failed(error)),
    }
}

fn check_device() -> Result<(), MountError> {
    if rustix::process::geteuid().is_root() {
        let opened = fs::File::options().read(true).write(true).open(DEVICE);
        return opened.map(drop).map_err(MountError::NoDevice);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(HELPER).exists());
    if found { Ok(()) } else { Err(MountError::NoHelper) }
}

/// Lets the kernel read further ahead than it offers. As root only; without it reads are as fast as they were.
fn raise_read_ahead(place: &Path) {
    let Ok(found) = fs::metadata(place) else { return };
    let (major, minor) = (rustix::fs::major(found.dev()), rustix::fs::minor(found.dev()));
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&setting, READ_AHEAD.to_string()) {
        tracing::debug!(%error, setting, "readahead stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_option_of_the_helper() {
        assert_eq!(escaped("a,dev\\b.vhd"), "a\\,dev\\\\b.vhd");
    }

    #[test]
    fn what_is_not_ours_is_not_unmounted() {
        assert!(matches!(
            unmount(Path::new("/proc")),
            Err(MountError::NotMounted { .. })
        ));
    }
}
