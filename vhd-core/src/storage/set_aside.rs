//! Space of a copy-on-write file system that is kept for overwrites.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FallocateFlags, OFlags, fallocate, fstatvfs};
use rustix::io::Errno;

use super::io_kind;
use crate::ErrorKind;

/// Bytes that are given back at once. Each part is allocated by a call of its own: btrfs frees an extent only when no
/// part of it is in use.
const PART: u64 = 1 << 20;

/// The part of the free space that is taken at most.
const SHARE: u64 = 8;

/// Space that nobody else can take until it is [given back](SetAside::give_back), in a file without a name: it goes with
/// the process, however that ends.
#[derive(Debug)]
pub struct SetAside {
    file: File,
    wanted: u64,
    len: u64,
}

impl SetAside {
    /// Takes `bytes`, or less where there is little, on the file system of the directory. `None` where it has no nameless
    /// files, can't reserve, or lets this user create none.
    ///
    /// # Errors
    /// The system's error when there is no space at all, or when it fails.
    pub(super) fn in_directory(directory: &Path, bytes: u64) -> io::Result<Option<Self>> {
        let flags = i32::try_from(OFlags::TMPFILE.bits()).expect("a flag of open");
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(flags).mode(0o600);
        let file = match options.open(directory) {
            Ok(file) => file,
            Err(error) if io_kind(&error) == ErrorKind::NoSpace => return Err(error),
            Err(error) => {
                tracing::debug!(directory = %directory.display(), %error, "no space can be set aside for overwrites");
                return Ok(None);
            }
        };
        let mut space = Self {
            file,
            wanted: bytes,
            len: 0,
        };
        match space.fill_up() {
            Ok(()) => Ok(Some(space)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes again what was given back, as far as there is space.
    ///
    /// # Errors
    /// The system's error when there is no space at all, or when it fails.
    pub fn fill_up(&mut self) -> io::Result<()> {
        let system = fstatvfs(&self.file)?;
        let free = system.f_bavail.saturating_mul(system.f_frsize) + self.len;
        let wanted = self.wanted.min(free / SHARE).max(PART);
        while self.len < wanted {
            match fallocate(&self.file, FallocateFlags::empty(), self.len, PART) {
                Ok(()) => self.len += PART,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Err(io::ErrorKind::Unsupported.into()),
                Err(Errno::NOSPC | Errno::DQUOT) if self.len > 0 => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Bytes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.len
    }

    /// Gives a part of the space back to the file system; `false` when there is none left.
    pub fn give_back(&mut self) -> bool {
        let Some(len) = self.len.checked_sub(PART) else {
            return false;
        };
        self.len = len;
        self.file.set_len(len).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn space_is_taken_and_given_back_in_parts() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let Some(mut space) = SetAside::in_directory(dir.path(), 3 * PART).unwrap() else {
            return eprintln!("NOT TESTED: space set aside: the file system has no nameless files");
        };
        let taken = |space: &SetAside| space.file.metadata().unwrap().blocks() * 512;
        let all = space.held();
        assert!((PART..=3 * PART).contains(&all) && taken(&space) >= all);
        while space.give_back() {
            assert!(taken(&space) < all);
        }
        assert_eq!((space.held(), taken(&space)), (0, 0));
        space.fill_up().unwrap();
        assert!(space.held() >= PART && taken(&space) >= PART);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
    }
}
