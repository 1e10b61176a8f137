//! An open disk, and what is known of its files.

use std::fmt;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ImageFormat;
use super::error::{ChainError, ChainWarning};
use super::foreign::{ForeignDisk, ForeignLayer};
use crate::device::{BlockDevice, DeviceError, Disk, Layer, LayeredDevice, LiveDevice, RawDevice};
use crate::image::IoContext;
use crate::storage::{FileIdentity, StorageFile};

/// An open disk and what is known of the files below it.
pub struct OpenedDisk {
    device: Device,
    /// One handle for all: what clones of it do to parts of sectors is in order.
    disk: Disk,
    paths: Vec<PathBuf>,
    warnings: Vec<ChainWarning>,
}

enum Device {
    Raw(Arc<RawDevice>),
    Chain(Arc<LayeredDevice>),
    /// A disk that is in no file here.
    Remote(Arc<dyn BlockDevice>),
    /// Images of another program.
    Foreign(ForeignDisk),
}

/// Whether a disk is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its files are closed, and its locks given up.
    Now,
    /// Somebody still has a clone of its [`Disk`], its device, or a part of it: the disk was flushed, and the last one that
    /// drops what he has closes it. Whether that works is only logged then.
    StillInUse,
}

/// A layer of an open disk with the path of its file.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct ChainLayer<'a> {
    /// The file.
    pub path: &'a Path,
    /// The layer.
    pub layer: &'a Layer,
}

impl fmt::Debug for OpenedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedDisk")
            .field("paths", &self.paths)
            .field("warnings", &self.warnings)
            .finish_non_exhaustive()
    }
}

impl OpenedDisk {
    /// The disk of a chain.
    pub(super) fn of_chain(device: LayeredDevice, paths: Vec<PathBuf>, warnings: Vec<ChainWarning>) -> Self {
        Self::new(Device::Chain(Arc::new(device)), paths, warnings)
    }

    /// The same for one that others use, to look at.
    pub(crate) fn of_present(device: Arc<LayeredDevice>, paths: Vec<PathBuf>) -> Self {
        Self::new(Device::Chain(device), paths, Vec::new())
    }

    /// The disk in a raw file.
    pub(super) fn raw(device: RawDevice, path: &Path, warnings: Vec<ChainWarning>) -> Self {
        Self::new(Device::Raw(Arc::new(device)), vec![path.to_owned()], warnings)
    }

    fn new(device: Device, paths: Vec<PathBuf>, warnings: Vec<ChainWarning>) -> Self {
        let disk = Disk::new(match &device {
            Device::Raw(device) => Arc::clone(device) as Arc<dyn BlockDevice>,
            Device::Chain(device) => Arc::clone(device) as Arc<dyn BlockDevice>,
            Device::Remote(device) => Arc::clone(device),
            Device::Foreign(foreign) => Arc::clone(foreign.device()),
        });
        Self {
            device,
            disk,
            paths,
            warnings,
        }
    }

    /// A disk that is in no file of this host, under a name for people: it is like a raw one whose file nobody can get.
    #[must_use]
    pub fn from_device(device: Arc<dyn BlockDevice>, name: impl Into<PathBuf>) -> Self {
        Self::new(Device::Remote(device), vec![name.into()], Vec::new())
    }

    /// A disk in images of another program.
    pub(super) fn from_foreign(disk: ForeignDisk, paths: Vec<PathBuf>, warnings: Vec<ChainWarning>) -> Self {
        Self::new(Device::Foreign(disk), paths, warnings)
    }

    /// The images of another program that the disk is in, with their paths, the leaf first; none for any other disk.
    pub fn foreign_layers(&self) -> impl Iterator<Item = (&Path, &ForeignLayer)> {
        let layers = match &self.device {
            Device::Foreign(foreign) => foreign.layers(),
            _ => &[],
        };
        self.paths.iter().map(PathBuf::as_path).zip(layers)
    }

    /// A handle of the disk.
    #[must_use]
    pub fn disk(&self) -> Disk {
        self.disk.clone()
    }

    /// The device, for one who puts another before it.
    pub(crate) fn device(&self) -> &dyn BlockDevice {
        match &self.device {
            Device::Raw(device) => &**device,
            Device::Chain(device) => &**device,
            Device::Remote(device) => &**device,
            Device::Foreign(foreign) => &**foreign.device(),
        }
    }

    /// The format of the leaf.
    #[must_use]
    pub fn format(&self) -> ImageFormat {
        match &self.device {
            Device::Raw(_) | Device::Remote(_) => ImageFormat::Raw,
            Device::Chain(_) => ImageFormat::Vhd,
            Device::Foreign(foreign) => foreign.format(),
        }
    }

    /// The device over the images of a VHD; `None` for any other disk.
    #[must_use]
    pub fn chain(&self) -> Option<&Arc<LayeredDevice>> {
        match &self.device {
            Device::Raw(_) | Device::Remote(_) | Device::Foreign(_) => None,
            Device::Chain(device) => Some(device),
        }
    }

    /// The layers of a VHD with their paths, the leaf first; empty for any other disk.
    pub fn layers(&self) -> impl Iterator<Item = ChainLayer<'_>> {
        let layers = self.chain().map_or(&[][..], |device| device.layers());
        self.paths
            .iter()
            .zip(layers)
            .map(|(path, layer)| ChainLayer { path, layer })
    }

    /// The paths of all files, the leaf's first; for a remote disk, its name.
    #[must_use]
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// What is odd about the files.
    #[must_use]
    pub fn warnings(&self) -> &[ChainWarning] {
        &self.warnings
    }

    /// Adds what was found beside the files.
    pub(super) fn warn(&mut self, warnings: impl IntoIterator<Item = ChainWarning>) {
        self.warnings.extend(warnings);
    }

    /// The file that holds byte ranges of depth `depth` in the disk's extents; `None` for a remote disk.
    #[must_use]
    pub fn file_at_depth(&self, depth: u32) -> Option<&dyn StorageFile> {
        match &self.device {
            Device::Raw(device) => (depth == 0).then(|| device.file()),
            Device::Remote(_) => None,
            Device::Foreign(foreign) => foreign
                .layers()
                .get(usize::try_from(depth).ok()?)
                .map(ForeignLayer::file),
            Device::Chain(device) => device.layers().get(usize::try_from(depth).ok()?).map(Layer::file),
        }
    }

    /// Which file is at a depth, by the descriptor that it is read through; `None` for a file that is not on this host.
    pub(crate) fn identity_at_depth(&self, depth: u32) -> Option<FileIdentity> {
        FileIdentity::of_open(self.file_at_depth(depth)?)
    }

    /// Refuses if the leaf is another file than the one that was looked at before under its name (INV-34).
    pub(crate) fn require_leaf(&self, expected: Option<FileIdentity>) -> Result<(), ChainError> {
        if expected.is_none() || self.identity_at_depth(0) == expected {
            return Ok(());
        }
        Err(ChainError::Replaced {
            path: self.paths[0].clone(),
        })
    }

    /// The disk of a VHD for a holder who has it to himself; `None` for a raw disk, or while other handles use it.
    #[must_use]
    pub fn into_device(self) -> Option<LayeredDevice> {
        drop(self.disk);
        match self.device {
            Device::Raw(_) | Device::Remote(_) | Device::Foreign(_) => None,
            Device::Chain(device) => Arc::try_unwrap(device).ok(),
        }
    }

    /// The disk as one that snapshots can be taken of while it is in use; `None` for a disk that is not a VHD open for
    /// writing, or while other handles use it.
    #[must_use]
    pub fn into_live(self) -> Option<LiveDevice> {
        let device = self.into_device()?;
        device
            .info()
            .capabilities
            .write
            .then(|| LiveDevice::new(Arc::new(device)))
    }

    /// Flushes and closes the disk, and says whether that worked. A disk that somebody else still uses is only flushed, which
    /// is said too.
    ///
    /// # Errors
    /// What could not be written. The disk is closed nevertheless.
    pub fn close(self) -> Result<Closed, DeviceError> {
        drop(self.disk);
        let in_use = match self.device {
            Device::Raw(device) => {
                device.flush()?;
                Arc::try_unwrap(device).map_or(true, |device| device.has_spans())
            }
            Device::Remote(device) => {
                device.flush()?;
                Arc::strong_count(&device) > 1
            }
            Device::Foreign(foreign) => Arc::strong_count(foreign.device()) > 1,
            Device::Chain(device) => match Arc::try_unwrap(device) {
                Ok(device) => !device.close_all()?,
                Err(shared) => {
                    shared.flush()?;
                    true
                }
            },
        };
        if !in_use {
            return Ok(Closed::Now);
        }
        tracing::debug!(paths = ?self.paths, "a disk was flushed and not closed: it is still in use");
        Ok(Closed::StillInUse)
    }

    /// Closes the disk, and hands over its open files, the leaf's first, for
    /// [`OpenOptions::open_descriptors`](super::OpenOptions::open_descriptors) in a process that may open none. The locks
    /// stay with them, so nobody else can use the files in between.
    ///
    /// # Errors
    /// What could not be written; `Unsupported` for a disk that is in no file of this host, and while somebody else uses the
    /// disk.
    pub fn into_descriptors(self) -> Result<Vec<OwnedFd>, DeviceError> {
        const CANNOT: DeviceError = DeviceError::Unsupported("hand over its files while something else uses it");
        let mut files = Vec::with_capacity(self.paths.len());
        for depth in 0..u32::try_from(self.paths.len()).unwrap_or(u32::MAX) {
            let file = self.file_at_depth(depth).and_then(StorageFile::host_file);
            let file = file.ok_or(DeviceError::Unsupported("hand over files: it is in none of this host"))?;
            files.push(
                file.try_clone()
                    .map(OwnedFd::from)
                    .io_context("duplicate the descriptor", 0)?,
            );
        }
        // What is kept locked by a duplicate is given up with that one.
        for depth in 0..self.paths.len() {
            if let Some(file) = self.file_at_depth(u32::try_from(depth).unwrap_or(u32::MAX)) {
                file.keep_locked();
            }
        }
        match self.close()? {
            Closed::Now => Ok(files),
            Closed::StillInUse => Err(CANNOT),
        }
    }
}
