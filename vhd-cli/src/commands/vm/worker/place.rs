//! The directory of a machine: a lock, held as long as its process lives, and the socket on which it listens.
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

use super::MachineName;
use crate::codes::Kind;
use crate::control::place::{directory, prepare};
use crate::failure::Failure;

const LOCK: &str = "lock";
const SOCKET: &str = "socket";

/// How often a name is tried that is taken: one who looks for what was left has the lock for a moment.
const TRIES: u32 = 20;
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// The directory of all machines of this user.
fn machines() -> PathBuf {
    directory().join("vm")
}

/// The directory of a machine.
fn place(name: &MachineName) -> PathBuf {
    machines().join(name.as_str())
}

/// The socket in the directory of a machine.
pub(super) fn socket(name: &MachineName) -> PathBuf {
    place(name).join(SOCKET)
}

/// The right to a name, as long as this exists.
#[derive(Debug)]
pub(crate) struct Claim {
    name: MachineName,
    _lock: File,
}

impl Claim {
    /// Takes a name, with what a dead process of that name left.
    pub(crate) fn take(name: MachineName) -> Result<Self, Failure> {
        let place = place(&name);
        let failed = |error: io::Error| Failure::io("prepare", &place, &error);
        for directory in [directory(), machines()] {
            prepare(&directory).map_err(failed)?;
        }
        for _ in 0..TRIES {
            if let Some(lock) = lock(&place, true).map_err(failed)? {
                remove(&place.join(SOCKET)).map_err(failed)?;
                return Ok(Self { name, _lock: lock });
            }
            thread::sleep(TRY_AGAIN);
        }
        let message =
            format!("a machine with the name {name} is running; `vhd vm list` shows all, --name gives another one");
        Err(Failure::new(Kind::MachineNameInUse, message))
    }

    pub(crate) fn name(&self) -> &MachineName {
        &self.name
    }

    pub(super) fn socket(&self) -> PathBuf {
        socket(&self.name)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // What cannot be removed is like what a killed process leaves.
        let _ = clear(&place(&self.name));
    }
}

/// The names of the machines whose processes live. What others left is removed.
pub(super) fn names() -> io::Result<Vec<MachineName>> {
    let entries = match fs::read_dir(machines()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names = Vec::new();
    for entry in entries {
        // What is not ours has no such name.
        let name = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<MachineName>().ok());
        names.extend(name.filter(is_alive));
    }
    names.sort();
    Ok(names)
}

/// Whether the process of a machine lives; if not, what it left is removed.
pub(crate) fn is_alive(name: &MachineName) -> bool {
    let place = place(name);
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

/// Locks the directory of a machine; `None` if another process has it.
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

/// Removes the directory of a machine, whose lock the caller holds; the lock last.
fn clear(place: &Path) -> io::Result<()> {
    remove(&place.join(SOCKET))?;
    remove(&place.join(LOCK))?;
    fs::remove_dir(place)
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
