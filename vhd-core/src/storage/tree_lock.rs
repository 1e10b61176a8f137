//! The lock on a whole tree of images: one command at a time.
//!
//! Held on the file of the tree's base, beside the [image locks](super::ImageLock) and without conflict with them: it is
//! a byte that qemu's protocol does not use. The byte is locked shared, and then the question is whether somebody else
//! has it too: that needs a descriptor for reading only, on NFS as well, where an exclusive lock needs one for writing
//! and `flock` locks the bytes of the other protocol with the rest of the file (ADR 0034).

use std::path::Path;
use std::sync::Arc;

use nix::errno::Errno;

use super::lock::ByteLock;
use super::on_volume::refuse_on_volume;
use super::{Access, LockHolder, StorageError, open_existing};

/// Above those of qemu's protocol.
const TREE_BYTE: u16 = 400;

/// The lock on a tree, held until dropped.
#[derive(Debug)]
pub(crate) struct TreeLock {
    _lock: ByteLock,
}

impl TreeLock {
    /// Takes the lock of the tree whose base is at `path`. It never waits.
    ///
    /// # Errors
    /// `OnVolume`; `Locked` when another handle has it; `LocksUnsupported`; those of [`open_existing`].
    pub(crate) fn acquire(path: &Path) -> Result<Self, StorageError> {
        // Before anything is begun: a command that changes a tree writes its files by their paths (INV-102).
        refuse_on_volume(path)?;
        let file = Arc::new(open_existing(path, Access::ReadOnly)?);
        let lock = ByteLock::new(Arc::clone(&file), TREE_BYTE, 1);
        let locked = |holder| StorageError::Locked {
            path: path.to_path_buf(),
            wanted: Access::ReadWrite,
            holder,
        };
        let failed = |errno: Errno| match ByteLock::is_unsupported(errno) {
            true => StorageError::LocksUnsupported {
                path: path.to_path_buf(),
                source: errno.into(),
            },
            false => StorageError::at(path, "lock", errno),
        };
        match lock.take(TREE_BYTE) {
            Ok(()) => {}
            Err(Errno::EAGAIN | Errno::EACCES) => return Err(locked(LockHolder::find(&file, TREE_BYTE.into()))),
            Err(errno) => return Err(failed(errno)),
        }
        match lock.is_held_by_another(TREE_BYTE) {
            Ok(false) => Ok(Self { _lock: lock }),
            Ok(true) => {
                drop(lock); // neither to be found as the holder, nor to keep others away meanwhile
                Err(locked(LockHolder::find(&file, TREE_BYTE.into())))
            }
            Err(errno) => Err(failed(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;
    use crate::storage::ImageLock;

    #[test]
    fn one_at_a_time_beside_the_locks_of_images() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let handle = Arc::new(file.reopen().unwrap());
            let image = ImageLock::acquire(handle, file.path(), access).unwrap();
            let tree = TreeLock::acquire(file.path()).unwrap();
            let second = TreeLock::acquire(file.path()).unwrap_err();
            assert_eq!(second.kind(), ErrorKind::Locked);
            assert!(second.to_string().contains(&std::process::id().to_string()), "{second}");
            drop(image);
            drop(ImageLock::acquire(Arc::new(file.reopen().unwrap()), file.path(), Access::ReadWrite).unwrap());
            drop(tree);
            drop(TreeLock::acquire(file.path()).unwrap());
        }
    }

    #[test]
    fn a_descriptor_for_reading_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.vhd");
        std::fs::write(&path, [0; 512]).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
        drop(TreeLock::acquire(&path).unwrap());
    }
}
