//! Space of a copy-on-write file system that is kept for overwrites.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstatvfs, open, openat};
use rustix::io::Errno;

use super::io_kind;
use crate::ErrorKind;
use crate::units::u64_from;

/// Bytes that are given back at once.
const PART: u64 = 2 << 20;

/// The part of the free space that is taken at most: one in so many.
const SHARE: u64 = 8;

/// Space that nobody else can take until it is [given back](SetAside::give_back), in files without names: it goes with
/// the process, however that ends.
#[derive(Debug)]
pub struct SetAside {
    directory: File,
    wanted: u64,
    /// A file for each part: on a full btrfs, or one whose quota is used up, a file can be removed but not cut.
    parts: Vec<File>,
}

impl SetAside {
    /// Takes `bytes`, or less where there is little, on the file system of the directory. `None` where it has no nameless
    /// files, can't reserve, or lets this user create none.
    ///
    /// # Errors
    /// The system's error when there is no space at all, or when it fails.
    pub(super) fn in_directory(directory: &Path, bytes: u64) -> io::Result<Option<Self>> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let mut space = match open(directory, flags, Mode::empty()) {
            Ok(opened) => Self {
                directory: opened.into(),
                wanted: bytes,
                parts: Vec::new(),
            },
            Err(errno) => return none_without_space(directory, errno.into()),
        };
        match space.fill_up() {
            Ok(()) => Ok(Some(space)),
            Err(error) => none_without_space(directory, error),
        }
    }

    /// Takes again what was given back, as far as there is space.
    ///
    /// # Errors
    /// The system's error when there is no space at all, or when it fails.
    pub fn fill_up(&mut self) -> io::Result<()> {
        let system = fstatvfs(&self.directory)?;
        let free = system.f_bavail.saturating_mul(system.f_frsize) + self.held();
        let wanted = self.wanted.min(free / SHARE).max(PART);
        while self.held() < wanted {
            match self.take_part() {
                Ok(part) => self.parts.push(part),
                Err(error) if io_kind(&error) == ErrorKind::NoSpace && !self.parts.is_empty() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn take_part(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let part = openat(&self.directory, ".", flags, Mode::RUSR | Mode::WUSR)?;
        loop {
            match fallocate(&part, FallocateFlags::empty(), 0, PART) {
                Err(Errno::INTR) => {}
                result => return Ok(result.map(|()| part.into())?),
            }
        }
    }

    /// Bytes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        u64_from(self.parts.len()) * PART
    }

    /// Gives a part of the space back to the file system; `false` when there is none left.
    pub fn give_back(&mut self) -> bool {
        self.parts.pop().is_some()
    }
}

/// What it means that nothing could be set aside: a full file system is an error, any other reason is none.
fn none_without_space(directory: &Path, error: io::Error) -> io::Result<Option<SetAside>> {
    if io_kind(&error) == ErrorKind::NoSpace {
        return Err(error);
    }
    tracing::debug!(directory = %directory.display(), %error, "no space can be set aside for overwrites");
    Ok(None)
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
        let taken = |space: &SetAside| -> u64 {
            space
                .parts
                .iter()
                .map(|part| part.metadata().unwrap().blocks() * 512)
                .sum()
        };
        let all = space.held();
        assert!((PART..=4 * PART).contains(&all) && taken(&space) >= all);
        while space.give_back() {
            assert!(taken(&space) < all);
        }
        assert_eq!((space.held(), taken(&space)), (0, 0));
        space.fill_up().unwrap();
        assert!(space.held() >= PART && taken(&space) >= PART);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
    }
}
