//! Files of cluster volumes: they change through the volume alone.
//!
//! A volume's coordinator remembers where the blocks of its disks are. Who writes such a file by its path is not known to it,
//! and what it repeats after a crash would be written over what came since (INV-102).

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use super::{StorageError, StorageFile};

/// What makes a directory a volume.
const MARK: &str = ".csv/format";
/// Where files are prepared that are no disks yet.
const PREPARED: &str = ".csv/incoming";

/// Refuses the file that `path` leads to if it lies on a cluster volume. What is not there is on none.
pub(super) fn refuse_on_volume(path: &Path) -> Result<(), StorageError> {
    match volume_of(path).filter(|volume| !is_prepared(path, volume)) {
        Some(volume) => Err(StorageError::OnVolume {
            path: path.to_owned(),
            volume,
        }),
        None => Ok(()),
    }
}

/// Whether a file is one that is prepared: whoever does so has its name to itself.
fn is_prepared(path: &Path, volume: &Path) -> bool {
    let real = path.canonicalize();
    real.is_ok_and(|real| real.parent() == Some(&volume.join(PREPARED)))
}

/// Whether an open file lies on a cluster volume, as far as the kernel can say what it is called.
pub(crate) fn is_on_volume(file: &dyn StorageFile) -> bool {
    let link = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
    file.host_file()
        .is_some_and(|file| volume_of(Path::new(&link(file))).is_some())
}

/// The directory of the volume that a file lies on.
fn volume_of(path: &Path) -> Option<PathBuf> {
    let real = path.canonicalize().ok()?;
    let volume = real.ancestors().skip(1).find(|dir| dir.join(MARK).exists());
    volume.map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::super::{Access, HostFile, Sharing, StagedFile};
    use super::*;

    #[test]
    fn files_of_a_volume_are_read_and_not_written_by_their_paths() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("v/.csv")).unwrap();
        fs::create_dir(path("v/deep")).unwrap();
        fs::write(path("v/deep/disk.vhd"), "x").unwrap();
        fs::write(path("beside.vhd"), "x").unwrap();
        symlink(path("v/deep/disk.vhd"), path("link.vhd")).unwrap();
        let open = |name: &str, access| HostFile::open(&path(name), access, Sharing::Exclusive);
        open("v/deep/disk.vhd", Access::ReadWrite).unwrap();
        fs::write(path("v/.csv/format"), "").unwrap();
        for name in ["v/deep/disk.vhd", "link.vhd"] {
            let refused = open(name, Access::ReadWrite).unwrap_err();
            assert!(matches!(refused, StorageError::OnVolume { .. }), "{refused}");
            open(name, Access::ReadOnly).unwrap();
        }
        let opened = HostFile::open_on_volume(&path("link.vhd")).unwrap();
        assert!(is_on_volume(&opened));
        assert!(!is_on_volume(&open("beside.vhd", Access::ReadOnly).unwrap()));
        open("beside.vhd", Access::ReadWrite).unwrap();
        fs::create_dir(path("v/.csv/incoming")).unwrap();
        fs::write(path("v/.csv/incoming/new.vhd"), "x").unwrap();
        let prepared = open("v/.csv/incoming/new.vhd", Access::ReadWrite).unwrap();
        assert!(is_on_volume(&prepared));
        open("v/.csv/format", Access::ReadWrite).unwrap_err();
        // A new name is nobody's; one that is there is not given to another file.
        let staged = |name: &str| StagedFile::create_beside(&path(name)).unwrap();
        staged("v/deep/new.vhd").publish(true, false).unwrap();
        staged("v/deep/disk.vhd").publish(true, false).unwrap_err();
        staged("beside.vhd").publish(true, false).unwrap();
    }
}
