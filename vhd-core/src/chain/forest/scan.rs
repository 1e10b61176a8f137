//! The files below a directory that have an image's name.

use std::collections::HashSet;
use std::fs::FileType;
use std::io;
use std::path::{Path, PathBuf};

use super::Limits;
use crate::chain::ChainError;
use crate::chain::locate::is_image;
use crate::storage::FileIdentity;

/// What was not looked at.
#[derive(Debug, Default)]
pub struct Skipped {
    /// Directories that can't be read.
    pub unreadable: Vec<UnreadablePath>,
    /// A limit was reached: there is more than was looked at.
    pub truncated: bool,
}

/// A directory that can't be read, and why.
#[derive(Debug)]
pub struct UnreadablePath {
    /// The directory.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// The files that were found, each directory's in the order of their names, links last.
pub(super) struct Found {
    pub(super) paths: Vec<PathBuf>,
    pub(super) skipped: Skipped,
}

/// Finds the files with an image's name below `dir`. Links to directories are not followed, and no directory is
/// gone into twice, whatever is mounted where.
pub(super) fn image_files(dir: &Path, limits: Limits) -> Result<Found, ChainError> {
    let mut walk = Walk {
        limits,
        seen: HashSet::new(),
        files: Vec::new(),
        links: Vec::new(),
        skipped: Skipped::default(),
    };
    let mut open = vec![(dir.to_owned(), 0)];
    while let Some((next, depth)) = open.pop() {
        match walk.enter(&next) {
            Ok(below) if depth < limits.depth => open.extend(below.into_iter().map(|dir| (dir, depth + 1))),
            Ok(below) => walk.skipped.truncated |= !below.is_empty(),
            Err(source) if depth == 0 => return Err(ChainError::Read { path: next, source }),
            Err(source) => walk.skipped.unreadable.push(UnreadablePath { path: next, source }),
        }
    }
    walk.files.sort_unstable();
    walk.links.sort_unstable();
    // A file's own name comes before those that lead to it.
    walk.files.append(&mut walk.links);
    Ok(Found {
        paths: walk.files,
        skipped: walk.skipped,
    })
}

struct Walk {
    limits: Limits,
    seen: HashSet<FileIdentity>,
    files: Vec<PathBuf>,
    links: Vec<PathBuf>,
    skipped: Skipped,
}

impl Walk {
    /// Notes the images in a directory and returns the directories in it.
    fn enter(&mut self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let mut below = Vec::new();
        if !self.seen.insert(FileIdentity::of_path(dir)?) {
            return Ok(below);
        }
        for entry in dir.read_dir()? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if kind.is_dir() {
                below.push(path);
            } else if is_image(&path) {
                self.note(path, kind);
            }
        }
        Ok(below)
    }

    fn note(&mut self, path: PathBuf, kind: FileType) {
        if self.files.len() + self.links.len() >= self.limits.files {
            self.skipped.truncated = true;
        } else if kind.is_file() {
            self.files.push(path);
        } else if kind.is_symlink() && path.metadata().map_or(true, |target| target.is_file()) {
            self.links.push(path);
        }
    }
}
