//! What is behind the gate of a disk in use: how it is opened, and how it gets another size.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::family::Family;
use super::raw::RawResize;
use super::{Request, Resize, ResizeError, journal, plan};
use crate::chain::{ImageFormat, OpenOptions, OpenedDisk};
use crate::storage::{FileIdentity, HostFile, StorageFile, WatchedFile};

/// A disk that is opened and resized, never both at once.
pub(super) trait Subject: Send + Sync {
    /// Opens the disk as it is now.
    fn open(&self, write: bool) -> Result<OpenedDisk, ResizeError>;

    /// Checks that the disk can have the size, and answers how it gets it. Nothing is changed, and all that was written
    /// is flushed.
    fn prepare(&self, size: u64) -> Result<Job<'_>, ResizeError>;
}

/// Gives a disk its new size; it is closed meanwhile.
pub(super) type Job<'a> = Box<dyn FnOnce() -> Result<(), Failed> + 'a>;

/// A disk did not get its new size.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: ResizeError,
    /// A sync failed: what of it is durable nobody can tell.
    pub(super) sync_failed: bool,
}

/// A file that is open for writing, and locked, for as long as its disk is in use. While the disk is closed the file is
/// not: nobody else gets it in between.
pub(super) struct HeldFile {
    path: PathBuf,
    file: Arc<HostFile>,
    options: OpenOptions,
    format: ImageFormat,
}

impl HeldFile {
    /// The file of a disk that was opened with these options. It keeps its format, whatever is written to it.
    pub(super) fn new(path: &Path, file: Arc<HostFile>, options: &OpenOptions, opened: &OpenedDisk) -> Self {
        let format = opened.format();
        Self {
            path: path.to_owned(),
            file,
            options: options.clone().format(Some(format)),
            format,
        }
    }

    /// Checks that the disk is one that can be resized by itself; `opened` is what its options open.
    pub(super) fn check(&self, opened: &OpenedDisk) -> Result<(), ResizeError> {
        if self.file.is_block_device() {
            return Err(ResizeError::BlockDevice {
                path: self.path.clone(),
            });
        }
        if let Some(parent) = opened.paths().get(1) {
            return Err(ResizeError::NeedsTree {
                path: self.path.clone(),
                reason: format!("it is based on {}", parent.display()),
            });
        }
        if self.format == ImageFormat::Raw {
            return Ok(());
        }
        journal::place_for(&self.path)?;
        let size = opened.device().size_bytes();
        let family = Family::of_one(&self.path, &self.file, Arc::clone(&self.file) as _, size)?;
        plan::check_alone(&family)
    }

    /// Checks that children and a record beside the name are beside the file.
    fn check_name(&self) -> Result<(), ResizeError> {
        let (named, held) = (FileIdentity::of_path(&self.path), self.file.identity());
        match (named, held) {
            (Ok(named), Ok(held)) if named == held => Ok(()),
            _ => Err(ResizeError::Renamed {
                path: self.path.clone(),
            }),
        }
    }
}

impl Subject for HeldFile {
    fn open(&self, write: bool) -> Result<OpenedDisk, ResizeError> {
        // Who relies on it was asked when it was opened first, and is asked before each resize.
        let options = self.options.clone().write(write).ignore_children(true);
        Ok(options.open_held(&self.path, Arc::clone(&self.file))?)
    }

    fn prepare(&self, size: u64) -> Result<Job<'_>, ResizeError> {
        let watched = Arc::new(WatchedFile::new(Arc::clone(&self.file) as _));
        let storage = Arc::clone(&watched) as Arc<dyn StorageFile>;
        let run: Box<dyn FnOnce() -> Result<(), ResizeError>> = match self.format {
            ImageFormat::Raw => {
                let resize = RawResize::prepare(storage, &self.path, size)?;
                Box::new(|| resize.run())
            }
            // What is open for writing is no image of another program.
            ImageFormat::Vhd | ImageFormat::Vhdx | ImageFormat::Qcow2 | ImageFormat::Vmdk => {
                self.check_name()?;
                let request = Request {
                    image: &self.path,
                    size,
                    // What is cut off must read zero all the same.
                    shrink: true,
                    tree: false,
                    fix_gpt: false,
                    options: &self.options,
                    cancel: &AtomicBool::new(false),
                };
                let resize = Resize::prepare_held(&request, &self.file, storage)?;
                Box::new(|| resize.run(&()).map(drop))
            }
        };
        Ok(Box::new(move || {
            run().map_err(|error| Failed {
                error,
                sync_failed: watched.sync_failed(),
            })
        }))
    }
}
