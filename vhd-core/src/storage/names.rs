//! Names in a directory: those beside a file, and changes that are durable when the call returns.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
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

/// The way from `base` to `dir`, both absolute and without symbolic links: `.` or `..` first.
pub(crate) fn relative_to(dir: &Path, base: &Path) -> PathBuf {
    let common = dir
        .components()
        .zip(base.components())
        .take_while(|(a, b)| a == b)
        .count();
    let ups = base.components().skip(common).map(|_| Component::ParentDir);
    let start = (base.components().count() == common).then_some(Component::CurDir);
    start
        .into_iter()
        .chain(ups)
        .chain(dir.components().skip(common))
        .collect()
}

/// The file that [`relative_to`] calls `path` in the directory `dir`, which is named from the root and without links. So
/// `..` is the directory above and can be resolved by name.
pub(crate) fn resolved(path: &Path, dir: &Path) -> PathBuf {
    let mut full = dir.to_owned();
    for component in path.components() {
        match component {
            Component::ParentDir => drop(full.pop()),
            Component::CurDir => {}
            other => full.push(other),
        }
    }
    full
}

/// The name of a file that may be gone, from the root and with its directory's symbolic links resolved; its own too, if
/// it is there.
pub(crate) fn full_name(path: &Path) -> io::Result<PathBuf> {
    if let Ok(full) = path.canonicalize() {
        return Ok(full);
    }
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    let dir = dir.unwrap_or(Path::new(".")).canonicalize()?;
    Ok(dir.join(path.file_name().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_between_directories_lead_back() {
        let way = |dir, base| {
            relative_to(Path::new(dir), Path::new(base))
                .to_str()
                .unwrap()
                .to_owned()
        };
        assert_eq!(way("/vm", "/vm"), ".");
        assert_eq!(way("/vm/base", "/vm"), "./base");
        assert_eq!(way("/vm/base", "/vm/snap/deep"), "../../base");
    }

    #[test]
    fn a_copied_directory_has_its_own_neighbours() {
        for (path, dir) in [("/vm/a.vhd", "/vm"), ("/vm/below/a.vhd", "/vm"), ("/a.vhd", "/vm/x")] {
            let (path, dir) = (Path::new(path), Path::new(dir));
            assert_eq!(resolved(&relative_to(path, dir), dir), path);
        }
        assert_eq!(
            resolved(Path::new("../a.vhd"), Path::new("/copy/x")),
            Path::new("/copy/a.vhd")
        );
    }
}
