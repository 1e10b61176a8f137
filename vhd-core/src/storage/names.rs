//! Names in a directory: those beside a file, and changes that are durable when the call returns.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::StorageError;

/// The path of a document beside the file at `path`: the same name with `suffix`, in the same directory.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(suffix);
    path.with_file_name(name)
}

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

/// Gives the file back the modification time that it had before a change which left its content alone. Images that are
/// based on it remember that time. A failure costs them a warning, and is only logged.
pub(crate) fn put_back_modified(path: &Path, modified: SystemTime) {
    let file = File::options().write(true).open(path);
    if let Err(error) = file.and_then(|file| file.set_modified(modified)) {
        tracing::warn!(path = %path.display(), %error, "its children will find another modification time");
    }
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
