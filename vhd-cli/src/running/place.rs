//! The directory of a process that others find by its name: a lock, held as long as it lives, and its sockets.
//!
//! What a process left that was killed is recognised by its lock, which nobody holds, and removed by whoever looks next
//! (INV-85 of `docs/invariants.md`).

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::Name;
use crate::control::place::{directory, prepare};
use crate::failure::Failure;

const LOCK: &str = "lock";
#[cfg(target_arch = "x86_64")]
const SOCKET: &str = "socket";

/// How often a name is tried that is taken: one who looks for what was left has the lock for a moment.
const TRIES: u32 = 20;
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Where the directories of all processes of one kind are.
#[derive(Clone, Debug)]
pub(crate) struct Folder(PathBuf);

/// The right to a name, as long as this exists.
#[derive(Debug)]
pub(crate) struct Claim {
    name: Name,
    place: PathBuf,
    _lock: File,
}

impl Folder {
    /// The folder of a kind, in this user's directory for sockets.
    pub(crate) fn of(kind: &str) -> Self {
        Self(directory().join(kind))
    }

    /// A folder in another place.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    /// The directory of the process of that name.
    pub(crate) fn place(&self, name: &Name) -> PathBuf {
        self.0.join(name.as_str())
    }

    /// The socket in the directory of a process.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn socket(&self, name: &Name) -> PathBuf {
        self.place(name).join(SOCKET)
    }

    /// Takes a name, with what a dead process of that name left. `None` if a process has it.
    pub(crate) fn claim(&self, name: Name) -> Result<Option<Claim>, Failure> {
        let place = self.place(&name);
        let failed = |error: io::Error| Failure::io("prepare", &place, &error);
        for directory in self.0.parent().into_iter().chain([&*self.0]) {
            prepare(directory).map_err(failed)?;
        }
        for _ in 0..TRIES {
            if let Some(lock) = lock(&place, true).map_err(failed)? {
                empty(&place).map_err(failed)?;
                return Ok(Some(Claim {
                    name,
                    place,
                    _lock: lock,
                }));
            }
            thread::sleep(TRY_AGAIN);
        }
        Ok(None)
    }

    /// The names of the processes that live. What others left is removed.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn names(&self) -> io::Result<Vec<Name>> {
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names = Vec::new();
        for entry in entries {
            // What is not ours has no such name.
            let name = entry?.file_name().to_str().and_then(|name| name.parse::<Name>().ok());
            names.extend(name.filter(|name| self.is_alive(name)));
        }
        names.sort();
        Ok(names)
    }

    /// Whether the process of that name lives; if not, what it left is removed.
    pub(crate) fn is_alive(&self, name: &Name) -> bool {
        let place = self.place(name);
        match lock(&place, false) {
            Ok(Some(_lock)) => {
                let _ = clear(&place);
                false
            }
            Ok(None) => true,
            // A directory without a lock is of one that is just being made, or was just removed.
            Err(_) => false,
        }
    }
}

impl Claim {
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// The directory of the process, which goes with it.
    pub(crate) fn place(&self) -> &Path {
        &self.place
    }

    /// Where it listens.
    #[cfg(target_arch = "x86_64")]
    pub(crate) fn socket(&self) -> PathBuf {
        self.place.join(SOCKET)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What cannot be removed is like what a killed process leaves.
        let _ = clear(&self.place);
    }
}

/// Locks the directory of a process; `None` if another process has it.
fn lock(place: &Path, make: bool) -> io::Result<Option<File>> {
    loop {
        if make {
            match fs::DirBuilder::new().mode(0o700).create(place) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
        }
        let path = place.join(LOCK);
        let file = match File::options()
            .read(true)
            .write(true)
            .create(make)
            .truncate(false)
            .open(&path)
        {
            // It was removed meanwhile.
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            locked => locked?,
        }
        let (ours, now) = (file.metadata()?, fs::metadata(&path));
        match now {
            Ok(now) if (now.dev(), now.ino()) == (ours.dev(), ours.ino()) => return Ok(Some(file)),
            // Whoever had it removed it before this lock.
            Ok(_) => {}
            Err(error) if make && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes the directory of a process, whose lock the caller holds; the lock last.
fn clear(place: &Path) -> io::Result<()> {
    empty(place)?;
    remove(&place.join(LOCK))?;
    fs::remove_dir(place)
}

/// Removes what a process left but for the lock, which the caller holds.
fn empty(place: &Path) -> io::Result<()> {
    for entry in fs::read_dir(place)? {
        let entry = entry?;
        if entry.file_name() != LOCK {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
