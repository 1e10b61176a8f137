//! Going through directories, within limits.

use std::collections::{HashSet, VecDeque};
use std::fs::{self, DirEntry, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::Limits;
use super::answer::Doubt;
use super::scope::{Root, Scope};
use crate::storage::FileIdentity;

/// A regular file that was come across.
pub(super) struct Seen<'a> {
    pub(super) path: &'a Path,
    /// Of the file itself where the name is a link to it.
    pub(super) metadata: &'a Metadata,
    pub(super) is_link: bool,
    /// It is where everything must be known.
    pub(super) must_be_known: bool,
}

/// A directory that waits to be read.
struct Waiting {
    dir: PathBuf,
    /// Levels below it that are gone into.
    depth: usize,
    /// Reaching `depth` is reaching the limit, and not where the search was to end.
    is_limited: bool,
    /// The file system that is not left.
    device: Option<u64>,
    /// The file system of the directory that it is in, of those that were come across.
    above: Option<u64>,
}

/// What is left of the limits.
struct Budget {
    files: usize,
    until: Option<Instant>,
}

impl Budget {
    fn new(files: usize, time: Duration) -> Self {
        Self {
            files,
            // A time that no clock has is none.
            until: Instant::now().checked_add(time),
        }
    }

    fn is_late(&self) -> bool {
        self.until.is_some_and(|until| Instant::now() >= until)
    }
}

/// What statfs(2) calls file systems in user space.
const FUSE: rustix::fs::FsWord = 0x6573_5546;
/// Files between two looks at the clock.
const CLOCK: usize = 64;

/// A walk through the directories of a scope.
pub(super) struct Walk<'a> {
    limits: &'a Limits,
    visit: &'a mut dyn FnMut(&Seen<'_>),
    /// No directory is read twice, whatever is mounted or linked where.
    read: HashSet<FileIdentity>,
    waiting: VecDeque<Waiting>,
    /// Directories behind links, and those below one that everybody shares.
    aside: Vec<Root>,
    /// Directories whose names begin with a dot.
    hidden: Vec<Root>,
    walked: Walked,
    budget: Budget,
    must_be_known: bool,
}

/// What a walk did not see.
#[derive(Debug, Default)]
pub(super) struct Walked {
    /// Where everything must be known.
    pub(super) doubts: Vec<Doubt>,
    /// The limit that was reached around that.
    pub(super) cut_short: Option<Doubt>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(limits: &'a Limits, visit: &'a mut dyn FnMut(&Seen<'_>)) -> Self {
        Self {
            limits,
            visit,
            read: HashSet::new(),
            waiting: VecDeque::new(),
            aside: Vec::new(),
            hidden: Vec::new(),
            walked: Walked::default(),
            budget: Budget::new(limits.files, limits.time),
            must_be_known: true,
        }
    }

    /// Shows every regular file, and answers why there may be others where everything must be known.
    pub(super) fn run(mut self, scope: Scope) -> Walked {
        for Root { dir, depth } in scope.complete {
            self.waiting.push_back(Waiting {
                dir,
                depth: depth.unwrap_or(self.limits.depth),
                is_limited: depth.is_none(),
                device: None,
                above: None,
            });
        }
        self.drain();
        self.must_be_known = false;
        self.budget = Budget::new(self.limits.files_around, self.limits.time_around);
        let aside = std::mem::take(&mut self.aside);
        self.around(aside.into_iter().chain(scope.around));
        // Last: caches of programs are here, and seldom images.
        let hidden = std::mem::take(&mut self.hidden);
        self.around(hidden.into_iter());
        self.walked
    }

    fn around(&mut self, roots: impl Iterator<Item = Root>) {
        for Root { dir, depth } in roots {
            self.waiting.push_back(Waiting {
                device: dir.metadata().ok().map(|metadata| metadata.dev()),
                depth: depth.unwrap_or(0),
                is_limited: false,
                above: None,
                dir,
            });
        }
        self.drain();
    }

    /// Reads what waits, the nearest first, until a limit is reached.
    fn drain(&mut self) {
        while let Some(next) = self.waiting.pop_front() {
            match self.enter(&next) {
                Ok(true) => {}
                Ok(false) => {
                    self.waiting.clear();
                    return;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => self.doubt(Doubt::unreadable(&next.dir, &error)),
            }
        }
    }

    fn doubt(&mut self, doubt: Doubt) {
        if self.must_be_known {
            self.walked.doubts.push(doubt);
        }
    }

    /// A limit is reached.
    fn stop(&mut self, doubt: Doubt) {
        if self.must_be_known {
            self.walked.doubts.push(doubt);
        } else {
            self.walked.cut_short.get_or_insert(doubt);
        }
    }

    /// Goes through a directory. `false` when a limit is reached.
    fn enter(&mut self, waiting: &Waiting) -> io::Result<bool> {
        let metadata = waiting.dir.metadata()?;
        if waiting.device.is_some_and(|device| device != metadata.dev()) {
            return Ok(true);
        }
        if waiting.above.is_some_and(|device| device != metadata.dev()) && shows_a_disk(&waiting.dir) {
            return Ok(true);
        }
        if self.budget.is_late() {
            return Ok(self.late(&waiting.dir));
        }
        if !self.read.insert(FileIdentity::of(&metadata)) {
            return Ok(true);
        }
        for entry in fs::read_dir(&waiting.dir)? {
            if !self.note(&entry?, waiting, metadata.dev())? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn late(&mut self, dir: &Path) -> bool {
        let limit = if self.must_be_known {
            self.limits.time
        } else {
            self.limits.time_around
        };
        self.stop(Doubt::time(dir, limit));
        false
    }

    fn note(&mut self, entry: &DirEntry, waiting: &Waiting, device: u64) -> io::Result<bool> {
        let kind = entry.file_type()?;
        if kind.is_dir() {
            self.note_directory(entry.path(), waiting, device, is_hidden(entry));
        } else if kind.is_file() || kind.is_symlink() {
            let path = entry.path();
            // A name that is gone by now, or a link to nowhere, leads to no image.
            let metadata = if kind.is_symlink() {
                fs::metadata(&path)
            } else {
                entry.metadata()
            };
            let Ok(metadata) = metadata else { return Ok(true) };
            if metadata.is_dir() {
                // A link to a directory may lead anywhere.
                if self.must_be_known {
                    self.aside.push(aside(path));
                }
            } else if metadata.is_file() {
                return Ok(self.show(&path, &metadata, kind.is_symlink(), waiting));
            }
        }
        Ok(true)
    }

    fn note_directory(&mut self, dir: PathBuf, waiting: &Waiting, device: u64, hidden: bool) {
        match (hidden, self.must_be_known) {
            (true, true) => self.hidden.push(aside(dir)),
            (true, false) => {}
            (false, _) if waiting.depth > 0 => self.waiting.push_back(Waiting {
                dir,
                depth: waiting.depth - 1,
                above: Some(device),
                ..*waiting
            }),
            (false, _) if waiting.is_limited => self.doubt(Doubt::depth(&dir, self.limits.depth)),
            (false, true) => self.aside.push(aside(dir)),
            (false, false) => {}
        }
    }

    fn show(&mut self, path: &Path, metadata: &Metadata, is_link: bool, waiting: &Waiting) -> bool {
        if self.budget.files == 0 {
            let limit = if self.must_be_known {
                self.limits.files
            } else {
                self.limits.files_around
            };
            self.stop(Doubt::files(&waiting.dir, limit));
            return false;
        }
        self.budget.files -= 1;
        if self.budget.files.is_multiple_of(CLOCK) && self.budget.is_late() {
            return self.late(&waiting.dir);
        }
        (self.visit)(&Seen {
            path,
            metadata,
            is_link,
            must_be_known: self.must_be_known,
        });
        true
    }
}

/// A directory that is looked at as far as it goes, with those in it.
fn aside(dir: PathBuf) -> Root {
    Root { dir, depth: Some(1) }
}

/// Whether a disk is mounted here by `vhd mount`: what is in it belongs to a guest, whose images name no file of this host.
/// Only asked where a file system begins.
fn shows_a_disk(dir: &Path) -> bool {
    let is_fuse = rustix::fs::statfs(dir).is_ok_and(|status| status.f_type == FUSE);
    is_fuse && ["disk.raw", "info.json"].iter().all(|name| dir.join(name).is_file())
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_bytes().starts_with(b".")
}
