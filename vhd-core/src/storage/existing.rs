//! Existing files, opened so that nothing of another kind in their place can make the caller wait.
//!
//! Every file that a path leads to is opened here: an image, a parent, a record, a digest. Opening a pipe waits for its
//! other end, and opening a device may act on it. So the kind is asked for first, the file is opened without waiting, and
//! the kind is checked once more on the descriptor itself: what was swapped in between is refused too.

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;

use super::{Access, StorageError};

/// Opens the existing regular file or block device at `path`. It never waits.
///
/// # Errors
/// `NotFound`; `NotAFile` for a directory, pipe, socket or character device; `ReadOnly` when it can't be written; `Io`.
pub fn open_existing(path: &Path, access: Access) -> Result<File, StorageError> {
    let metadata = fs::metadata(path).map_err(|source| StorageError::at(path, "open", source))?;
    require_file(path, metadata.file_type())?;
    open_without_waiting(path, access)
}

/// The content of a small existing regular file; `None` if there is no such file. Of a longer one, `limit` + 1 bytes.
///
/// # Errors
/// Those of [`open_existing`] but for `NotFound`; `NotAFile` for a block device too.
pub fn read_existing(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StorageError> {
    let file = match open_existing(path, Access::ReadOnly) {
        Ok(file) => file,
        Err(StorageError::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file
        .metadata()
        .map_err(|source| StorageError::at(path, "query", source))?;
    if !metadata.is_file() {
        return Err(not_a_file(path));
    }
    let mut bytes = Vec::new();
    let read = file.take(limit.saturating_add(1)).read_to_end(&mut bytes);
    read.map_err(|source| StorageError::at(path, "read", source))?;
    Ok(Some(bytes))
}

/// Whether images may be in a file of this kind.
pub(super) fn is_file(kind: FileType) -> bool {
    kind.is_file() || kind.is_block_device()
}

fn open_without_waiting(path: &Path, access: Access) -> Result<File, StorageError> {
    let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).expect("flags of open");
    let opened = OpenOptions::new()
        .read(true)
        .write(access == Access::ReadWrite)
        .custom_flags(flags)
        .open(path);
    let file = opened.map_err(|source| open_error(path, access, source))?;
    let metadata = file
        .metadata()
        .map_err(|source| StorageError::at(path, "query", source))?;
    require_file(path, metadata.file_type())?;
    Ok(file)
}

/// The error of an open that failed although the file could be found.
pub(super) fn open_error(path: &Path, access: Access, source: io::Error) -> StorageError {
    use io::ErrorKind::{IsADirectory, PermissionDenied, ReadOnlyFilesystem};
    match (access, source.kind()) {
        (Access::ReadWrite, PermissionDenied | ReadOnlyFilesystem) => StorageError::ReadOnly {
            path: path.to_path_buf(),
            source,
        },
        (_, IsADirectory) => not_a_file(path),
        _ if source.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => not_a_file(path), // a socket
        _ => StorageError::at(path, "open", source),
    }
}

fn require_file(path: &Path, kind: FileType) -> Result<(), StorageError> {
    if is_file(kind) { Ok(()) } else { Err(not_a_file(path)) }
}

fn not_a_file(path: &Path) -> StorageError {
    StorageError::NotAFile {
        path: path.to_path_buf(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    /// One path of each kind that is no file.
    fn strangers(dir: &Path) -> Vec<std::path::PathBuf> {
        let (pipe, socket, folder) = (dir.join("pipe"), dir.join("socket"), dir.join("folder"));
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        drop(UnixListener::bind(&socket).unwrap());
        fs::create_dir(&folder).unwrap();
        vec![pipe, socket, folder, "/dev/zero".into(), "/dev/tty".into()]
    }

    #[test]
    fn no_stranger_is_opened_and_none_makes_the_caller_wait() {
        let dir = tempfile::tempdir().unwrap();
        for path in strangers(dir.path()) {
            for access in [Access::ReadOnly, Access::ReadWrite] {
                let is_refused = |result: Result<File, StorageError>| {
                    let error = result.expect_err("refused");
                    matches!(error, StorageError::NotAFile { .. } | StorageError::NotFound { .. })
                };
                assert!(is_refused(open_existing(&path, access)), "{}", path.display());
                // What was swapped in after the first look.
                let swapped = open_without_waiting(&path, access);
                let no_terminal = path.ends_with("tty") && swapped.is_err();
                assert!(no_terminal || is_refused(swapped), "{}", path.display());
            }
            assert!(!matches!(read_existing(&path, 10), Ok(Some(_))), "{}", path.display());
        }
    }

    #[test]
    fn a_small_file_is_read_up_to_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        assert!(read_existing(&path, 10).unwrap().is_none());
        fs::write(&path, [7; 100]).unwrap();
        assert_eq!(read_existing(&path, 200).unwrap().unwrap().len(), 100);
        assert_eq!(read_existing(&path, 10).unwrap().unwrap().len(), 11);
    }
}
