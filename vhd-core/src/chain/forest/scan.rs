//! The files below a directory that have an image's name, or that are images under any name.

use std::collections::HashSet;
use std::fs::FileType;
use std::io;
use std::path::{Path, PathBuf};

use super::Limits;
use crate::chain::detect::{foreign_format, is_image_by_content};
use crate::chain::locate::is_image;
use crate::chain::{ChainError, ForeignFormat};
use crate::image::Footers;
use crate::storage::{Access, FileIdentity, HostFile, Sharing};

/// What was not looked at.
#[derive(Debug, Default)]
pub struct Skipped {
    /// Directories that can't be read, and where every file counts, files.
    pub unreadable: Vec<UnreadablePath>,
    /// A limit was reached: there is more than was looked at.
    pub truncated: bool,
    /// Disk images in other formats.
    pub foreign: Vec<ForeignImage>,
}

/// A disk image in a format that is not read here, and not named like a VHD.
#[derive(Debug)]
pub struct ForeignImage {
    /// The file.
    pub path: PathBuf,
    /// Its format, by its content, or else by its name.
    pub format: ForeignFormat,
}

/// A directory that can't be read, or where every file counts a file, and why.
#[derive(Debug)]
pub struct UnreadablePath {
    /// The directory or file.
    pub path: PathBuf,
    /// The cause.
    pub source: io::Error,
}

/// Which files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Those that are called like a disk image.
    OfImages,
    /// All: their content tells.
    Any,
}

/// The files that were found, each directory's in the order of their names, links last.
pub(super) struct Found {
    pub(super) paths: Vec<PathBuf>,
    pub(super) skipped: Skipped,
}

/// Finds the images below `dir` among the files with these names. Links to directories are not followed, and no directory is
/// gone into twice, whatever is mounted where.
pub(super) fn image_files(dir: &Path, limits: Limits, names: Names) -> Result<Found, ChainError> {
    let mut walk = Walk {
        limits,
        names,
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
    walk.skipped.foreign.sort_unstable_by(|a, b| a.path.cmp(&b.path));
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
    names: Names,
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
            } else if let Some(format) = format_by_name(&path) {
                self.note_other(path, kind, format);
            } else if self.names == Names::Any && kind.is_file() {
                self.note_by_content(path, kind);
            }
        }
        Ok(below)
    }

    /// Notes a file that has the name of another format: it may be a VHD all the same.
    fn note_other(&mut self, path: PathBuf, kind: FileType, by_name: ForeignFormat) {
        if !kind.is_file() {
            return;
        }
        let file = HostFile::open(&path, Access::ReadOnly, Sharing::Unlocked);
        if let Ok(Ok(_)) = file.as_ref().map(|file| Footers::read(file)) {
            return self.note(path, kind);
        }
        let by_content = file.ok().and_then(|file| foreign_format(&file).ok().flatten());
        let format = by_content.unwrap_or(by_name);
        if format.readable().is_some() {
            self.note(path, kind);
        } else if self.skipped.foreign.len() >= self.limits.files {
            self.skipped.truncated = true;
        } else {
            self.skipped.foreign.push(ForeignImage { path, format });
        }
    }

    /// Notes a file whose name says nothing, if its content is that of a VHD, or of another image that is read here.
    fn note_by_content(&mut self, path: PathBuf, kind: FileType) {
        let found = HostFile::open(&path, Access::ReadOnly, Sharing::Unlocked)
            .map_err(io::Error::other)
            .and_then(|file| is_image_by_content(&file));
        match found {
            Ok(true) => self.note(path, kind),
            Ok(false) => {}
            Err(source) => self.skipped.unreadable.push(UnreadablePath { path, source }),
        }
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

fn format_by_name(path: &Path) -> Option<ForeignFormat> {
    ForeignFormat::of_disk_extension(path.extension()?.to_str()?)
}
