//! A tree of files, copied name by name. What fails is noted, and the rest goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhd_core::ops::Progress;
use vhd_fs::files::{Entry, FileError, FileErrorKind, FileType, Files, Metadata, Node};

use super::content::{self, CopyError};
use super::target::Directory;
use super::{CpReport, FailedLine, Wanted};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output;

/// Directories in each other. Linux allows paths of 4,096 bytes; a file system that goes deeper is damaged.
const MAX_DEPTH: usize = 2048;
/// Files that are counted for the progress bar. What is more is copied all the same.
const MEASURED: usize = 1 << 20;

/// A directory that was read, and the new one for what is in it.
struct Entered {
    entries: Vec<Entry>,
    meta: Metadata,
    below: Directory,
}

pub(super) struct Walk<'a> {
    force: bool,
    owners: bool,
    progress: &'a dyn Progress,
    interrupted: Arc<AtomicBool>,
    report: CpReport,
    exit: Exit,
    /// Directories between the start and what is copied now: one that is in itself would never end.
    above: Vec<Node>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(force: bool, owners: bool, progress: &'a dyn Progress, interrupted: Arc<AtomicBool>) -> Self {
        Self {
            force,
            owners,
            progress,
            interrupted,
            report: CpReport::default(),
            exit: Exit::Ok,
            above: Vec::new(),
        }
    }

    /// Bytes to copy, as far as that can be told without copying.
    pub(super) fn measure(&self, wanted: &Wanted<'_>) -> u64 {
        let (mut total, mut seen) = (0u64, 0);
        let mut visited = std::collections::HashSet::new();
        let mut waiting = vec![wanted.node];
        while let Some(node) = waiting.pop() {
            seen += 1;
            let Ok(meta) = wanted.files.metadata(node) else {
                continue;
            };
            if meta.kind == FileType::Regular {
                total = total.saturating_add(meta.size);
            }
            if meta.kind == FileType::Directory && visited.insert(node) && seen < MEASURED {
                let below = wanted.files.list(node).unwrap_or_default();
                waiting.extend(below.iter().map(|entry| entry.node));
            }
        }
        total
    }

    /// Copies one file or tree into a directory.
    ///
    /// # Errors
    /// When the user has interrupted it. Everything else is noted.
    pub(super) fn copy(&mut self, wanted: &Wanted<'_>, target: &Directory) -> Result<(), Failure> {
        if self.interrupted.load(Ordering::Relaxed) {
            let kind = Kind::Library(vhd_core::ErrorKind::Cancelled);
            return Err(Failure::new(kind, format!("interrupted before {}", wanted.shown)));
        }
        let copied = match wanted.kind {
            FileType::Regular => self.file(wanted, target),
            FileType::Directory => return self.directory(wanted, target),
            FileType::Symlink => self.symlink(wanted, target),
            _ => {
                self.report.special += 1;
                Ok(())
            }
        };
        if let Err(failure) = copied {
            self.note(failure, &wanted.shown);
        }
        Ok(())
    }

    /// What was copied, and the exit code of the worst failure.
    pub(super) fn finish(self) -> (CpReport, Exit) {
        (self.report, self.exit)
    }

    fn note(&mut self, failure: Failure, path: &str) {
        let Some(kind) = failure.kind() else { return };
        output::eprint(&failure.text());
        self.exit = self.exit.max(failure.exit());
        self.report.failed.push(FailedLine {
            path: path.to_owned(),
            code: kind.code().code,
            error: failure.message().to_owned(),
        });
    }

    fn file(&mut self, wanted: &Wanted<'_>, target: &Directory) -> Result<(), Failure> {
        let meta = wanted
            .files
            .metadata(wanted.node)
            .map_err(|error| read_failed(error, wanted))?;
        let file = target.file(&wanted.name, self.force)?;
        let copied = content::copy(wanted.files, wanted.node, meta.size, &file, self.progress);
        drop(file);
        let copied = copied.map_err(|error| match error {
            CopyError::Read(error) => read_failed(error, wanted),
            CopyError::Write(error) => target.write_failed(&wanted.name, error),
        });
        match copied.and_then(|bytes| target.finish(&wanted.name, &meta, self.owners).map(|()| bytes)) {
            Ok(bytes) => {
                self.report.files += 1;
                self.report.bytes += bytes;
                Ok(())
            }
            Err(failure) => {
                target.remove(&wanted.name);
                Err(failure)
            }
        }
    }

    fn symlink(&mut self, wanted: &Wanted<'_>, target: &Directory) -> Result<(), Failure> {
        let read = |files: &Files| Ok((files.read_link(wanted.node)?, files.metadata(wanted.node)?));
        let (link, meta) = read(wanted.files).map_err(|error| read_failed(error, wanted))?;
        target.symlink(&wanted.name, &link, self.force)?;
        target.finish(&wanted.name, &meta, self.owners)?;
        self.report.symlinks += 1;
        Ok(())
    }

    fn directory(&mut self, wanted: &Wanted<'_>, target: &Directory) -> Result<(), Failure> {
        let opened = self.enter(wanted, target);
        let Entered { entries, meta, below } = match opened {
            Ok(opened) => opened,
            Err(failure) => {
                self.note(failure, &wanted.shown);
                return Ok(());
            }
        };
        self.above.push(wanted.node);
        for entry in entries {
            match wanted.below(entry) {
                Ok(wanted) => self.copy(&wanted, &below)?,
                Err((shown, error)) => self.note(Failure::from(error).about(&shown), &shown),
            }
        }
        self.above.pop();
        self.report.directories += 1;
        // Last: a directory that is read-only, or whose time is set, is so when nothing is added any more.
        if let Err(failure) = target.finish(&wanted.name, &meta, self.owners) {
            self.note(failure, &wanted.shown);
        }
        Ok(())
    }

    /// Reads a directory whole before anything is made of it: one that is damaged leaves nothing behind.
    fn enter(&self, wanted: &Wanted<'_>, target: &Directory) -> Result<Entered, Failure> {
        if self.above.contains(&wanted.node) || self.above.len() >= MAX_DEPTH {
            let kind = Kind::Files(FileErrorKind::Damaged);
            return Err(Failure::new(kind, "the directory is inside itself").about(&wanted.shown));
        }
        let meta = wanted
            .files
            .metadata(wanted.node)
            .map_err(|error| read_failed(error, wanted))?;
        let entries = wanted
            .files
            .list(wanted.node)
            .map_err(|error| read_failed(error, wanted))?;
        let below = target.directory(&wanted.name)?;
        Ok(Entered { entries, meta, below })
    }
}

fn read_failed(error: FileError, wanted: &Wanted<'_>) -> Failure {
    Failure::from(error).about(&wanted.shown)
}
