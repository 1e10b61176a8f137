//! Space of a copy-on-write file system that is kept for overwrites.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstatvfs, open, openat, syncfs};
use rustix::io::Errno;

use super::io_kind;
use crate::ErrorKind;
use crate::units::u64_from;

/// Space that nobody else can take until it is [given back](SetAside::give_back), in files without names: it goes with
/// the process, however that ends.
#[derive(Debug)]
pub struct SetAside {
    directory: File,
    /// A file for each part: on a full btrfs, or one whose quota is used up, a file can be removed but not cut.
    parts: Vec<File>,
}

impl SetAside {
    /// Bytes that are taken and given back at once.
    pub const PART: u64 = 2 << 20;

    /// Nothing yet, on the file system of the directory. `None` if that can't be opened.
    pub(super) fn in_directory(directory: &Path) -> Option<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = open(directory, flags, Mode::empty()).ok()?;
        Some(Self {
            directory: opened.into(),
            parts: Vec::new(),
        })
    }

    /// Takes space until `bytes` are held, but no more than one byte in `share` of what is free.
    ///
    /// # Errors
    /// The system's error when there is no space at all, or when it can't be set aside: `Unsupported` where the file system
    /// has no nameless files or can't reserve, or where this user may create none.
    pub fn fill_up(&mut self, bytes: u64, share: u64) -> io::Result<()> {
        let system = fstatvfs(&self.directory)?;
        let free = system.f_bavail.saturating_mul(system.f_frsize) + self.held();
        let wanted = bytes.min(free / share).max(Self::PART);
        while self.held() < wanted {
            match self.take_part() {
                Ok(part) => self.parts.push(part),
                Err(error) if io_kind(&error) == ErrorKind::NoSpace && !self.parts.is_empty() => break,
                Err(error) if io_kind(&error) == ErrorKind::NoSpace => return Err(error),
                Err(_) => return Err(io::ErrorKind::Unsupported.into()),
            }
        }
        Ok(())
    }

    fn take_part(&self) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let part = openat(&self.directory, ".", flags, Mode::RUSR | Mode::WUSR)?;
        loop {
            match fallocate(&part, FallocateFlags::empty(), 0, Self::PART) {
                Err(Errno::INTR) => {}
                result => return Ok(result.map(|()| part.into())?),
            }
        }
    }

    /// Bytes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        u64_from(self.parts.len()) * Self::PART
    }

    /// Gives a part of the space back to the file system; `false` when there is none left.
    pub fn give_back(&mut self) -> bool {
        self.parts.pop().is_some()
    }

    /// Makes what was given back count: a copy-on-write file system frees what was removed, and takes it off a quota, when it
    /// commits. That other files can't be written meanwhile is told to those who sync them.
    pub fn commit(&self) {
        if let Err(error) = syncfs(&self.directory) {
            tracing::warn!(%error, "the file system of the image can't be synced");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn space_is_taken_and_given_back_in_parts() {
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let mut space = SetAside::in_directory(dir.path()).unwrap();
        if space.fill_up(3 * SetAside::PART, 8).is_err() {
            return eprintln!("NOT TESTED: space set aside: the file system has no nameless files, or no space");
        }
        let taken = |space: &SetAside| -> u64 {
            space
                .parts
                .iter()
                .map(|part| part.metadata().unwrap().blocks() * 512)
                .sum()
        };
        let all = space.held();
        assert!((SetAside::PART..=4 * SetAside::PART).contains(&all) && taken(&space) >= all);
        while space.give_back() {
            assert!(taken(&space) < all);
        }
        assert_eq!((space.held(), taken(&space)), (0, 0));
        space.fill_up(SetAside::PART, 8).unwrap();
        assert!(space.held() >= SetAside::PART && taken(&space) >= SetAside::PART);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it has no name");
    }
}
