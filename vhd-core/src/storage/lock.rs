//! Image locks, in the protocol of QEMU, so that each respects the other.
//!
//! A handle states which permissions it uses and which of them it does not share with others. It holds
//! a shared lock on byte 100 + n of the image for each permission n that it uses, and on byte 200 + n
//! for each one that it does not share. Having taken them, it asks whether anybody else holds 200 + n of
//! a permission that it uses, or 100 + n of one that it does not share: that is a conflict.
//! As the bytes are taken before the question is asked, of two handles that open at the same time both
//! may fail, but never do both succeed.
//!
//! | | uses | does not share |
//! |---|---|---|
//! | reader | consistent read | write, resize |
//! | writer | consistent read, write, unchanged write, resize | write, resize |
//!
//! The locks belong to the open file (`F_OFD_SETLK`) and not to the process, so two handles of one
//! process exclude each other as well, and closing an unrelated handle releases nothing. The locked
//! bytes are names only: their content, and whether the file has them at all, plays no role.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;

use super::{Access, LockHolder, StorageError};

const CONSISTENT_READ: u16 = 0;
const WRITE: u16 = 1;
const WRITE_UNCHANGED: u16 = 2;
const RESIZE: u16 = 3;

/// Permission n is used: byte `USED` + n.
const USED: u16 = 100;
/// Permission n is not shared: byte `UNSHARED` + n.
const UNSHARED: u16 = 200;
/// All bytes of the protocol, from `USED`.
const PROTOCOL_BYTES: u16 = 200;

/// The lock on an image, held until dropped.
#[derive(Debug)]
pub struct ImageLock {
    bytes: ByteLock,
}

/// Shared locks on bytes of a file from `first`, `count` of them at most, released when dropped.
#[derive(Debug)]
pub(super) struct ByteLock {
    // Dropping the lock releases it by name. To leave that to the last close would not do: between fork
    // and exec a child has the open file too, and the image would stay locked for that moment.
    file: Arc<File>,
    first: u16,
    count: u16,
    /// The last close releases it.
    kept: AtomicBool,
}

impl ImageLock {
    /// The lock stays with the open file when this is dropped.
    pub(super) fn keep(&self) {
        self.bytes.kept.store(true, Ordering::Relaxed);
    }

    /// Takes the lock that `access` needs; `path` is for messages. It never waits.
    ///
    /// On a file system without locks a reader goes on without one (it harms nobody, and read-only
    /// media are often of that sort), while a writer is refused.
    ///
    /// # Errors
    ///
    /// `Locked` when another handle excludes this one, `LocksUnsupported` and `Io` when the system can't lock.
    pub fn acquire(file: Arc<File>, path: &Path, access: Access) -> Result<Self, StorageError> {
        let claim = Claim::of(access);
        let lock = Self {
            bytes: ByteLock::new(file, USED, PROTOCOL_BYTES),
        };
        if let Err((byte, errno)) = lock.take(&claim) {
            return lock.refused(path, access, byte, errno);
        }
        for byte in claim.excluding_bytes() {
            match lock.bytes.is_held_by_another(byte) {
                Ok(false) => {}
                Ok(true) => return Err(lock.conflict(path, access, byte)),
                Err(errno) => return lock.without_locks(path, access, errno),
            }
        }
        Ok(lock)
    }

    /// Takes a writer's lock beside a reader's that this process has on another open file. Others are kept away at every
    /// moment. Whoever comes later sees both locks; the reader's ends when its file is closed.
    ///
    /// # Errors
    /// Those of [`acquire`](Self::acquire): then the reader's lock is as it was.
    pub(super) fn acquire_beside(file: Arc<File>, path: &Path, reader: &File) -> Result<Self, StorageError> {
        let access = Access::ReadWrite;
        let claim = Claim::of(access);
        let lock = Self {
            bytes: ByteLock::new(file, USED, PROTOCOL_BYTES),
        };
        if let Err((byte, errno)) = lock.take(&claim) {
            return lock.refused(path, access, byte, errno);
        }
        // Those who are asked for are others. The bytes that were taken keep them away meanwhile.
        let unlock = record(libc::F_UNLCK, USED, PROTOCOL_BYTES);
        let asked = fcntl(reader, FcntlArg::F_OFD_SETLK(&unlock)).and_then(|_| {
            for byte in claim.excluding_bytes() {
                if lock.bytes.is_held_by_another(byte)? {
                    return Ok(Some(byte));
                }
            }
            Ok(None)
        });
        for byte in Claim::of(Access::ReadOnly).bytes() {
            if let Err(errno) = fcntl(reader, FcntlArg::F_OFD_SETLK(&record(libc::F_RDLCK, byte, 1))) {
                return lock.without_locks(path, access, errno);
            }
        }
        match asked {
            Ok(None) => Ok(lock),
            Ok(Some(byte)) => Err(lock.conflict(path, access, byte)),
            Err(errno) => lock.without_locks(path, access, errno),
        }
    }

    /// Takes the bytes of a claim; the first that can't be taken, and why.
    fn take(&self, claim: &Claim) -> Result<(), (u16, Errno)> {
        let mut bytes = claim.bytes();
        bytes.try_for_each(|byte| self.bytes.take(byte).map_err(|errno| (byte, errno)))
    }

    /// What becomes of a claim when `byte` can't be taken.
    fn refused(self, path: &Path, access: Access, byte: u16, errno: Errno) -> Result<Self, StorageError> {
        match errno {
            Errno::EAGAIN | Errno::EACCES => Err(self.conflict(path, access, byte)),
            errno => self.without_locks(path, access, errno),
        }
    }

    /// The error of a conflict at `byte`. Gives the lock up first: neither should it keep others away
    /// during the search for the holder, nor be found by it.
    fn conflict(self, path: &Path, access: Access, byte: u16) -> StorageError {
        let file = Arc::clone(&self.bytes.file);
        drop(self);
        let holder = LockHolder::find(&file, byte.into());
        StorageError::Locked {
            path: path.to_path_buf(),
            wanted: access,
            holder,
        }
    }

    /// What becomes of a claim when the system can't lock.
    fn without_locks(self, path: &Path, access: Access, errno: Errno) -> Result<Self, StorageError> {
        let source = io::Error::from(errno);
        let unsupported = ByteLock::is_unsupported(errno);
        match access {
            Access::ReadOnly if unsupported => {
                tracing::warn!(path = %path.display(), %source, "reading without a lock: the file system has none");
                Ok(self)
            }
            Access::ReadWrite if unsupported => Err(StorageError::LocksUnsupported {
                path: path.to_path_buf(),
                source,
            }),
            _ => Err(StorageError::at(path, "lock", source)),
        }
    }
}

impl ByteLock {
    /// No byte is taken yet.
    pub(super) fn new(file: Arc<File>, first: u16, count: u16) -> Self {
        Self {
            file,
            first,
            count,
            kept: AtomicBool::new(false),
        }
    }

    /// Takes the byte, shared.
    pub(super) fn take(&self, byte: u16) -> nix::Result<()> {
        fcntl(&*self.file, FcntlArg::F_OFD_SETLK(&record(libc::F_RDLCK, byte, 1))).map(drop)
    }

    /// Whether another open file holds the byte.
    pub(super) fn is_held_by_another(&self, byte: u16) -> nix::Result<bool> {
        // Asked for exclusively, the byte conflicts with everybody's lock but this open file's own.
        let mut answer = record(libc::F_WRLCK, byte, 1);
        fcntl(&*self.file, FcntlArg::F_OFD_GETLK(&mut answer))?;
        Ok(i32::from(answer.l_type) != libc::F_UNLCK)
    }

    /// Whether an error means that the file system has no locks of this kind.
    pub(super) fn is_unsupported(errno: Errno) -> bool {
        matches!(
            errno,
            Errno::ENOLCK | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EINVAL | Errno::ENOTTY
        )
    }
}

impl Drop for ByteLock {
    fn drop(&mut self) {
        if *self.kept.get_mut() {
            return;
        }
        // This can't fail for a reason that matters: what is left falls with the last close.
        let unlock = record(libc::F_UNLCK, self.first, self.count);
        let _ = fcntl(&*self.file, FcntlArg::F_OFD_SETLK(&unlock));
    }
}

/// Turns a writer's lock on an open file into a reader's: other readers may come, and writers are kept away as before.
/// A file without a lock stays without.
pub(crate) fn share_with_readers(file: &File) {
    let writers = record(libc::F_UNLCK, USED + WRITE, RESIZE - WRITE + 1);
    if let Err(error) = fcntl(file, FcntlArg::F_OFD_SETLK(&writers)) {
        // Nobody is let in who should not be.
        tracing::warn!(%error, "a file that is only read from now on stays locked as if it was written to");
    }
}

/// What a handle does with an image, and what it forbids others.
struct Claim {
    uses: &'static [u16],
    does_not_share: &'static [u16],
}

impl Claim {
    fn of(access: Access) -> Self {
        let uses: &[u16] = match access {
            Access::ReadOnly => &[CONSISTENT_READ],
            Access::ReadWrite => &[CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE],
        };
        Self {
            uses,
            does_not_share: &[WRITE, RESIZE],
        }
    }

    /// The bytes that state this claim.
    fn bytes(&self) -> impl Iterator<Item = u16> {
        self.uses
            .iter()
            .map(|n| USED + n)
            .chain(self.does_not_share.iter().map(|n| UNSHARED + n))
    }

    /// The bytes by which another handle excludes this claim.
    fn excluding_bytes(&self) -> impl Iterator<Item = u16> {
        self.uses
            .iter()
            .map(|n| UNSHARED + n)
            .chain(self.does_not_share.iter().map(|n| USED + n))
    }
}

/// The system's description of `len` bytes from `first`.
fn record(kind: libc::c_int, first: u16, len: u16) -> libc::flock {
    let short = |n: libc::c_int| libc::c_short::try_from(n).expect("the constants of fcntl are small");
    libc::flock {
        l_type: short(kind),
        l_whence: short(libc::SEEK_SET),
        l_start: first.into(),
        l_len: len.into(),
        l_pid: 0, // required by the OFD calls
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorKind;

    fn lock(file: &tempfile::NamedTempFile, access: Access) -> Result<ImageLock, StorageError> {
        let handle = File::options()
            .read(true)
            .write(access == Access::ReadWrite)
            .open(file.path())
            .unwrap();
        ImageLock::acquire(Arc::new(handle), file.path(), access)
    }

    #[test]
    fn readers_share_and_a_writer_is_alone() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let readers = [
            lock(&file, Access::ReadOnly).unwrap(),
            lock(&file, Access::ReadOnly).unwrap(),
        ];
        assert_eq!(lock(&file, Access::ReadWrite).unwrap_err().kind(), ErrorKind::Locked);
        drop(readers);
        let writer = lock(&file, Access::ReadWrite).unwrap();
        assert_eq!(lock(&file, Access::ReadWrite).unwrap_err().kind(), ErrorKind::Locked);
        assert_eq!(lock(&file, Access::ReadOnly).unwrap_err().kind(), ErrorKind::Locked);
        drop(writer);
        lock(&file, Access::ReadOnly).unwrap();
    }

    #[test]
    fn a_writer_beside_its_own_reader_is_alone_but_for_that() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let own = Arc::new(file.reopen().unwrap());
        let _own_lock = ImageLock::acquire(Arc::clone(&own), file.path(), Access::ReadOnly).unwrap();
        let beside = || {
            let handle = File::options().read(true).write(true).open(file.path()).unwrap();
            ImageLock::acquire_beside(Arc::new(handle), file.path(), &own)
        };
        let other = lock(&file, Access::ReadOnly).unwrap();
        assert_eq!(beside().unwrap_err().kind(), ErrorKind::Locked);
        drop(other);
        // The reader's lock is as it was.
        assert_eq!(lock(&file, Access::ReadWrite).unwrap_err().kind(), ErrorKind::Locked);
        lock(&file, Access::ReadOnly).unwrap();
        let writer = beside().unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            assert_eq!(lock(&file, access).unwrap_err().kind(), ErrorKind::Locked);
        }
        drop(writer);
        lock(&file, Access::ReadOnly).unwrap();
        assert_eq!(lock(&file, Access::ReadWrite).unwrap_err().kind(), ErrorKind::Locked);
    }

    #[test]
    fn a_refused_claim_leaves_no_lock_behind() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = lock(&file, Access::ReadOnly).unwrap();
        lock(&file, Access::ReadWrite).unwrap_err();
        lock(&file, Access::ReadOnly).unwrap();
        drop(reader);
        lock(&file, Access::ReadWrite).unwrap();
    }

    #[test]
    fn a_lock_ends_when_dropped_although_the_file_stays_open() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let handle = Arc::new(file.reopen().unwrap());
        drop(ImageLock::acquire(Arc::clone(&handle), file.path(), Access::ReadWrite).unwrap());
        lock(&file, Access::ReadWrite).unwrap();
        drop(handle);
    }

    #[test]
    fn an_exclusive_lock_of_another_program_is_respected() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let stranger = file.reopen().unwrap();
        fcntl(&stranger, FcntlArg::F_OFD_SETLK(&record(libc::F_WRLCK, 0, 300))).unwrap();
        assert_eq!(lock(&file, Access::ReadOnly).unwrap_err().kind(), ErrorKind::Locked);
    }

    #[test]
    fn the_holder_is_found() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let _writer = lock(&file, Access::ReadWrite).unwrap();
        match lock(&file, Access::ReadOnly) {
            Err(StorageError::Locked {
                holder: Some(holder),
                wanted: Access::ReadOnly,
                path,
            }) => {
                assert_eq!((holder.pid, path.as_path()), (std::process::id(), file.path()));
                assert!(holder.program.is_some());
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_locks_one_may_read_and_not_write() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let pretend = |access, errno| {
            ImageLock {
                bytes: ByteLock::new(Arc::new(file.reopen().unwrap()), USED, PROTOCOL_BYTES),
            }
            .without_locks(file.path(), access, errno)
        };
        pretend(Access::ReadOnly, Errno::ENOLCK).unwrap();
        assert_eq!(
            pretend(Access::ReadWrite, Errno::ENOLCK).unwrap_err().kind(),
            ErrorKind::Unsupported
        );
        assert_eq!(pretend(Access::ReadOnly, Errno::EIO).unwrap_err().kind(), ErrorKind::Io);
    }

    #[test]
    fn of_two_that_open_at_once_never_both_get_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for _ in 0..200 {
            let start = std::sync::Barrier::new(2);
            let done = std::sync::Barrier::new(2);
            let open = || {
                start.wait();
                let result = lock(&file, Access::ReadWrite);
                done.wait();
                result.is_ok()
            };
            let both = std::thread::scope(|scope| {
                let other = scope.spawn(open);
                open() & other.join().unwrap()
            });
            assert!(!both);
        }
    }
}
