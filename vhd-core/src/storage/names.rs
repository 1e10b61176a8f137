//! Changes of names in a directory that are durable when the call returns.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::StorageError;

/// Makes the names in the directory of `path` durable as they are.
///
/// # Errors
/// `NotFound`, `Io`.
pub fn sync_directory_of(path: &Path) -> Result<(), StorageError> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let dir = parent.unwrap_or(Path::new("."));
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| StorageError::at(dir, "sync", source))
}

/// Removes the file at `path`, durably. `false` if there is none: a step that is done again finds it done.
///
/// # Errors
/// `Io`.
pub fn remove_file(path: &Path) -> Result<bool, StorageError> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(StorageError::at(path, "remove", source)),
    }
    sync_directory_of(path)?;
    Ok(true)
}
