//! Temporary names that are in use, so that a process which is asked to end can take them along.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, unlinkat};

/// The names in use, each with its directory.
static NAMES: Mutex<Vec<(File, OsString)>> = Mutex::new(Vec::new());

fn names() -> MutexGuard<'static, Vec<(File, OsString)>> {
    NAMES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary name in a directory. Dropped before it is [`kept`](PartialName::keep), the file loses it.
#[derive(Debug)]
pub(super) struct PartialName {
    directory: File,
    name: OsString,
}

impl PartialName {
    /// Gives something the name by `create`, if that succeeds.
    pub(super) fn create<T, E: From<io::Error>>(
        directory: &File,
        name: OsString,
        create: impl FnOnce(&OsStr) -> Result<T, E>,
    ) -> Result<(T, Self), E> {
        let (ours, listed) = (directory.try_clone()?, directory.try_clone()?);
        // Held over both: there is no moment in which the name is there and not in the list.
        let mut names = names();
        let created = create(&name)?;
        names.push((listed, name.clone()));
        drop(names);
        let directory = ours;
        Ok((created, Self { directory, name }))
    }

    /// The name.
    pub(super) fn as_os_str(&self) -> &OsStr {
        &self.name
    }

    /// The name is gone, or is the file's for good.
    pub(super) fn keep(mut self) {
        names().retain(|(_, name)| *name != self.name);
        self.name = OsString::new();
    }
}

impl Drop for PartialName {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            // Nothing can be done about a failure here, and nothing depends on it.
            let _ = unlinkat(&self.directory, &self.name, AtFlags::empty());
            names().retain(|(_, name)| *name != self.name);
        }
    }
}

/// Removes every file that has a temporary name in this process, for one that ends at once: after this call, no
/// other thread gets a file such a name. Returns the names.
pub fn remove_partial_files() -> Vec<PathBuf> {
    let mut names = names();
    let removed = names.drain(..).filter_map(|(directory, name)| {
        unlinkat(&directory, &name, AtFlags::empty()).ok()?;
        Some(PathBuf::from(name))
    });
    let removed = removed.collect();
    std::mem::forget(names);
    removed
}
