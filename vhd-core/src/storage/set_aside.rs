//! Space of a copy-on-write file system that is kept for overwrites.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags, fallocate, fstatvfs, open, openat, syncfs};
use rustix::io::Errno;

use super::io_kind;
use crate::ErrorKind;

/// Space that nobody else can take until it is [given back](SetAside::give_back), in files without names: it goes with
/// the process, however that ends.
#[derive(Debug)]
pub struct SetAside {
    directory: File,
    /// A file for each part: on a full btrfs, or one whose quota is used up, a file can be removed but not cut.
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    #[allow(dead_code, reason = "holds the space while it is open")]
    file: File,
    len: u64,
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
            match self.take(Self::PART) {
                Err(error) if io_kind(&error) == ErrorKind::NoSpace && !self.parts.is_empty() => break,
                taken => taken?,
            }
        }
        Ok(())
    }

    /// Takes so many of the file system's blocks in one part, and at least 64 KiB.
    ///
    /// # Errors
    /// Those of [`fill_up`](Self::fill_up).
    pub fn take_blocks(&mut self, count: u64) -> io::Result<()> {
        const LEAST: u64 = 64 << 10;
        let system = fstatvfs(&self.directory)?;
        self.take(count.saturating_mul(system.f_frsize).max(LEAST))
    }

    fn take(&mut self, len: u64) -> io::Result<()> {
        let taken = self.new_file(len).map_err(|error| match io_kind(&error) {
            ErrorKind::NoSpace => error,
            _ => io::ErrorKind::Unsupported.into(),
        });
        self.parts.push(Part { file: taken?, len });
        Ok(())
    }

    fn new_file(&self, len: u64) -> io::Result<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = openat(&self.directory, ".", flags, Mode::RUSR | Mode::WUSR)?;
        loop {
            match fallocate(&file, FallocateFlags::empty(), 0, len) {
                Err(Errno::INTR) => {}
                result => return Ok(result.map(|()| file.into())?),
            }
        }
    }

    /// Bytes that are held.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.parts.iter().map(|part| part.len).sum()
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
                .map(|part| part.file.metadata().unwrap().blocks() * 512)
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
