//! Opening a disk with all its ancestors.

use std::collections::HashSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::dependants::{Limits, Search};
use super::detect::image_error;
use super::device_file::DeviceFile;
use super::disagree::{Actual, Recorded, disagreements};
use super::error::{ChainError, ChainWarning, ParentOutcome, TriedParent};
use super::examine::{Examined, examine, identify};
use super::foreign::{self, ForeignDisk, ForeignLayer};
use super::locate::{AllowAll, Candidate, ExplicitOnly, ParentGate, candidates};
use super::shared::SharedImages;
use super::unfinished::unfinished_resize;
use super::{ForeignFormat, ImageFormat};
use crate::device::{BlockDevice, DeviceError, Disk, Layer, LayeredDevice, LiveDevice, RawDevice};
use crate::format::{Timestamp, UniqueId};
use crate::image::{FooterSource, Footers, Image, OpenMode, PublishFence};
use crate::job::{open_job, require_steady};
use crate::storage::{Access, FileIdentity, HostFile, Sharing, StorageError, StorageFile};
use crate::units::SECTOR_SIZE;

/// The most layers a chain may have. Hyper-V stops at 50 snapshots; the limit is there so that a directory
/// of hostile images ends in an error and not in all file descriptors taken.
pub const MAX_DEPTH: usize = 4096;

/// How a disk is opened.
#[derive(Clone)]
pub struct OpenOptions {
    access: Access,
    sharing: Sharing,
    format: Option<ImageFormat>,
    parents: Vec<PathBuf>,
    /// Those of them that are raw disks whatever they look like.
    raw_parents: Vec<PathBuf>,
    parent_dirs: Vec<PathBuf>,
    gate: Arc<dyn ParentGate>,
    fence: Option<Arc<dyn PublishFence>>,
    max_table_bytes: u64,
    /// The caller is a job, and has seen that no other is open on the image.
    for_job: bool,
    ignore_children: bool,
    shared: Option<Arc<SharedImages>>,
    foreign: bool,
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            access: Access::ReadOnly,
            sharing: Sharing::Exclusive,
            format: None,
            parents: Vec::new(),
            raw_parents: Vec::new(),
            parent_dirs: Vec::new(),
            gate: Arc::new(AllowAll),
            fence: None,
            max_table_bytes: MAX_TABLE_BYTES,
            for_job: false,
            ignore_children: false,
            shared: None,
            foreign: false,
        }
    }
}

impl OpenOptions {
    /// For reading, with the image locks, the format detected, parents wherever the images say.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens the leaf for writing too. Ancestors are never written. It is refused if other images rely on the leaf, if a
    /// snapshot froze it, or if that can't be known: see [`dependants`](super::dependants) and
    /// [`ignore_children`](Self::ignore_children). A leaf that is not a VHD is written only if its
    /// [`format`](Self::format) is given: one write destroys what only looks like a raw disk.
    #[must_use]
    pub fn write(mut self, write: bool) -> Self {
        self.access = if write { Access::ReadWrite } else { Access::ReadOnly };
        self
    }

    /// Opens for writing whoever relies on the leaf, and does not look for them. What they read changes with it: for
    /// callers that change nothing that can be read, or that have looked themselves.
    #[must_use]
    pub fn ignore_children(mut self, ignore: bool) -> Self {
        self.ignore_children = ignore;
        self
    }

    /// Who relies on an image is not asked for.
    pub(crate) fn ignores_children(&self) -> bool {
        self.ignore_children
    }

    /// Takes no image locks and respects none.
    #[must_use]
    pub fn force_share(mut self, force: bool) -> Self {
        self.sharing = if force { Sharing::Unlocked } else { Sharing::Exclusive };
        self
    }

    /// The format of the leaf, instead of the [detected](ImageFormat::detect) one.
    #[must_use]
    pub fn format(mut self, format: Option<ImageFormat>) -> Self {
        self.format = format;
        self
    }

    /// Files to try as parents before anything the images name, for every layer; the only way to a raw parent.
    #[must_use]
    pub fn parents(mut self, parents: impl IntoIterator<Item = PathBuf>) -> Self {
        self.parents.extend(parents);
        self
    }

    /// Like [`parents`](Self::parents), and they are raw disks whatever they look like.
    #[must_use]
    pub fn raw_parents(mut self, parents: impl IntoIterator<Item = PathBuf>) -> Self {
        let parents: Vec<PathBuf> = parents.into_iter().collect();
        self.raw_parents.extend(parents.iter().cloned());
        self.parents(parents)
    }

    /// Directories to look for parents in, by name and then by identity.
    #[must_use]
    pub fn parent_dirs(mut self, dirs: impl IntoIterator<Item = PathBuf>) -> Self {
        self.parent_dirs.extend(dirs);
        self
    }

    /// Who decides which parents named by an image may be looked at.
    #[must_use]
    pub fn gate(mut self, gate: Arc<dyn ParentGate>) -> Self {
        self.gate = gate;
        self
    }

    /// The most memory that the block tables of the chain may take, in bytes; [`MAX_TABLE_BYTES`] unless it is said.
    #[must_use]
    pub fn max_table_bytes(mut self, bytes: u64) -> Self {
        self.max_table_bytes = bytes;
        self
    }

    /// Asked before each change of the leaf's metadata (INV-06).
    #[must_use]
    pub fn fence(mut self, fence: Arc<dyn PublishFence>) -> Self {
        self.fence = Some(fence);
        self
    }

    /// Uses images that other disks have open for reading, and lets others use those of this disk. A leaf that is written to
    /// is not among them.
    #[must_use]
    pub fn share(mut self, images: Arc<SharedImages>) -> Self {
        self.shared = Some(images);
        self
    }

    /// Takes images of other programs too, for reading, as far as they are read here. Whoever needs a VHD, or a disk that
    /// can be written, does not ask for it.
    #[must_use]
    pub fn foreign(mut self, foreign: bool) -> Self {
        self.foreign = foreign;
        self
    }

    /// Refuses an image of another program where it was not asked for.
    pub(super) fn require_reading(&self, format: ImageFormat, path: &Path) -> Result<(), ChainError> {
        let path = path.to_owned();
        match ForeignFormat::of(format) {
            Some(format) if !self.foreign || self.is_writing() => Err(ChainError::ReadOnlyFormat { path, format }),
            _ => Ok(()),
        }
    }

    /// Files and directories that the user named for parents.
    pub(super) fn parent_places(&self) -> (&[PathBuf], &[PathBuf]) {
        (&self.parents, &self.parent_dirs)
    }

    pub(super) fn parent_gate(&self) -> &dyn ParentGate {
        &*self.gate
    }

    pub(super) fn file_sharing(&self) -> Sharing {
        self.sharing
    }

    pub(super) fn table_limit(&self) -> u64 {
        self.max_table_bytes
    }

    /// For a job, which looks itself whether another one is open on the image.
    pub(crate) fn for_job(mut self) -> Self {
        self.for_job = true;
        self
    }

    /// Opens the disk at `path`.
    ///
    /// # Errors
    /// A differencing image without its parent is an error that lists every path tried, never a disk of zeroes.
    pub fn open(&self, path: &Path) -> Result<OpenedDisk, ChainError> {
        self.open_noting(path, &mut Vec::new())
    }

    /// The same, and `found` has the files of the chain, the leaf's first, as far as they are in order: after a
    /// failure too.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub fn open_noting(&self, path: &Path, found: &mut Vec<PathBuf>) -> Result<OpenedDisk, ChainError> {
        found.clear();
        let file = Arc::new(HostFile::open(path, self.access, self.sharing)?);
        self.open_file(path, file, found)
    }

    /// Opens the disk whose leaf is in a file that is open already, as these options want it, and locked.
    pub(crate) fn open_held(&self, path: &Path, file: Arc<HostFile>) -> Result<OpenedDisk, ChainError> {
        self.open_file(path, file, &mut Vec::new())
    }

    /// Opens a disk of a server, under a name for people: as a raw one, or the image that its bytes are, for reading.
    ///
    /// An image there has no directory, so its ancestors are those that are named and those in
    /// [`parent_dirs`](Self::parent_dirs).
    ///
    /// # Errors
    /// Those of [`open`](Self::open), and [`ChainError::ExportHoldsImage`] if it holds an image and no format is given.
    pub fn open_device(&self, device: Arc<dyn BlockDevice>, name: &Path) -> Result<OpenedDisk, ChainError> {
        let file: Arc<dyn StorageFile> = Arc::new(DeviceFile::new(Disk::new(Arc::clone(&device))));
        match self.format {
            Some(ImageFormat::Raw) => Ok(OpenedDisk::from_device(device, name)),
            Some(ImageFormat::Vhd) => {
                let explicit = self.clone().write(false).gate(Arc::new(ExplicitOnly));
                ChainBuilder::new(&explicit, &mut Vec::new()).build(name, file, None)
            }
            Some(format @ ImageFormat::Vhdx) => {
                let explicit = self.clone().gate(Arc::new(ExplicitOnly));
                foreign::open(&explicit, format, name, file, None, &mut Vec::new())
            }
            None => match ImageFormat::detect_remote(&*file, name)? {
                ImageFormat::Raw => Ok(OpenedDisk::from_device(device, name)),
                format => Err(ChainError::ExportHoldsImage {
                    name: name.to_owned(),
                    format,
                }),
            },
        }
    }

    fn open_file(&self, path: &Path, file: Arc<HostFile>, found: &mut Vec<PathBuf>) -> Result<OpenedDisk, ChainError> {
        let job_open = self.look_for_jobs(path)?;
        let mut opened = self.open_format(path, file, found)?;
        opened.warnings.extend(job_open);
        Ok(opened)
    }

    /// INV-37: nobody writes to an image that an open job changes. For readers it is worth a warning.
    fn look_for_jobs(&self, path: &Path) -> Result<Option<ChainWarning>, ChainError> {
        match (self.access, self.for_job) {
            (_, true) => Ok(None),
            (Access::ReadWrite, false) => {
                require_steady(path)?;
                Ok(None)
            }
            (Access::ReadOnly, false) => {
                let open = open_job(path).ok().flatten().filter(|job| !job.image.guest);
                Ok(open.map(|job| ChainWarning::JobOpen {
                    path: path.to_owned(),
                    kind: job.kind,
                    record: job.record,
                }))
            }
        }
    }

    fn open_format(
        &self,
        path: &Path,
        file: Arc<HostFile>,
        found: &mut Vec<PathBuf>,
    ) -> Result<OpenedDisk, ChainError> {
        if self.format != Some(ImageFormat::Raw)
            && let Some(error) = unfinished_resize(path, &*file)
        {
            return Err(error);
        }
        let format = match self.format {
            Some(format) => format,
            None => ImageFormat::detect(&*file, path)?,
        };
        match format {
            ImageFormat::Raw => {
                let opened = self.open_raw(path, file)?;
                found.push(path.to_owned());
                Ok(opened)
            }
            ImageFormat::Vhd => ChainBuilder::new(self, found).build(path, Arc::clone(&file) as _, Some(&file)),
            ImageFormat::Vhdx => foreign::open(self, format, path, Arc::clone(&file) as _, Some(&file), found),
        }
    }

    fn open_raw(&self, path: &Path, file: Arc<HostFile>) -> Result<OpenedDisk, ChainError> {
        let writable = self.is_writing();
        if writable && self.format.is_none() {
            return Err(ChainError::RawWrite { path: path.to_owned() });
        }
        let mut warnings = Vec::new();
        if writable {
            warnings.extend(self.refuse_dependants(path, UniqueId::NIL, &[])?);
        }
        let read = |source| ChainError::Read {
            path: path.to_owned(),
            source,
        };
        let file_len = file.len().map_err(read)?;
        let device = RawDevice::new(file, writable).map_err(read)?;
        if !file_len.is_multiple_of(SECTOR_SIZE) {
            let path = path.to_owned();
            warnings.push(ChainWarning::OddLength { path, file_len });
        }
        let device = Device::Raw(Arc::new(device));
        Ok(OpenedDisk::new(device, vec![path.to_owned()], warnings))
    }

    fn is_writing(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// Refuses to write to a leaf that others rely on. It is locked: nobody makes a child of it meanwhile.
    fn refuse_dependants(
        &self,
        leaf: &Path,
        id: UniqueId,
        parents: &[PathBuf],
    ) -> Result<Option<ChainWarning>, ChainError> {
        if self.ignore_children {
            return Ok(None);
        }
        let search = Search::new().image(leaf, id).beside(parents.iter().cloned());
        let found = search.limits(Limits::for_opening()).run();
        found.refuse()?;
        Ok(found.cut_short().map(|limit| ChainWarning::SearchCutShort {
            path: leaf.to_owned(),
            limit: limit.clone(),
        }))
    }

    fn leaf_mode(&self) -> OpenMode {
        let mode = match self.access {
            Access::ReadOnly => OpenMode::read_only(),
            Access::ReadWrite => OpenMode::read_write(),
        };
        match &self.fence {
            Some(fence) => mode.with_fence(Arc::clone(fence)),
            None => mode,
        }
    }
}

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

/// A layer of an open disk with the path of its file.
#[derive(Clone, Copy, Debug)]
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
        let file = self.file_at_depth(depth)?.host_file()?;
        Some(FileIdentity::of(&file.metadata().ok()?))
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

    /// Flushes and closes the disk and says whether that worked. A disk that other handles still use is only
    /// flushed; the last handle closes it.
    pub fn close(self) -> Result<(), DeviceError> {
        drop(self.disk);
        match self.device {
            Device::Raw(device) => device.flush(),
            Device::Remote(device) => device.flush(),
            Device::Foreign(_) => Ok(()),
            Device::Chain(device) => match Arc::try_unwrap(device) {
                Ok(device) => device.close(),
                Err(shared) => shared.flush(),
            },
        }
    }
}

/// Bytes that the block tables of a chain may take in memory, all together: enough for 512 layers of 2 TiB in blocks of
/// 2 MiB. A chain of 4,096 files with a few KiB each could claim 512 GiB otherwise.
pub const MAX_TABLE_BYTES: u64 = 4 << 30;

/// Follows parents from a leaf down.
struct ChainBuilder<'a> {
    options: &'a OpenOptions,
    paths: &'a mut Vec<PathBuf>,
    identities: HashSet<FileIdentity>,
    warnings: Vec<ChainWarning>,
    /// What the block tables of the images opened so far take in memory.
    table_bytes: u64,
}

/// An ancestor that was found.
struct Found {
    path: PathBuf,
    file: Arc<HostFile>,
    layer: Layer,
}

impl<'a> ChainBuilder<'a> {
    fn new(options: &'a OpenOptions, paths: &'a mut Vec<PathBuf>) -> Self {
        Self {
            options,
            paths,
            identities: HashSet::new(),
            warnings: Vec::new(),
            table_bytes: 0,
        }
    }

    /// Opens the leaf in `file` and its ancestors. `host` is the same file, if it is one of this host.
    fn build(
        mut self,
        path: &Path,
        file: Arc<dyn StorageFile>,
        host: Option<&HostFile>,
    ) -> Result<OpenedDisk, ChainError> {
        if let Some(host) = host {
            self.enter(path, path, host)?;
        }
        // For a look first: to open it for writing may change it.
        let leaf = if self.options.is_writing() {
            Arc::new(self.open_image(path, Arc::clone(&file), &OpenMode::read_only())?)
        } else {
            self.open_shared(path, Arc::clone(&file), &OpenMode::read_only())?
        };
        self.paths.push(path.to_owned());
        let ancestors = self.ancestors(path, &leaf)?;
        let leaf = if self.options.is_writing() {
            // INV-35: under the lock, and before anything in the file changes.
            let warning = self
                .options
                .refuse_dependants(path, leaf.unique_id(), &self.paths[1..])?;
            self.warnings.extend(warning);
            drop(leaf);
            Arc::new(image_at(path, file, &self.options.leaf_mode())?)
        } else {
            leaf
        };
        let device = Device::Chain(Arc::new(LayeredDevice::over(leaf, ancestors)));
        Ok(OpenedDisk::new(device, self.paths.clone(), self.warnings))
    }

    /// Follows the parents of a leaf.
    fn ancestors(&mut self, path: &Path, leaf: &Image) -> Result<Vec<Layer>, ChainError> {
        let mut ancestors: Vec<Layer> = Vec::new();
        loop {
            let child = ancestors.last().map_or(Some(leaf), Layer::image);
            let Some(child) = child.filter(|image| image.is_differencing()) else {
                return Ok(ancestors);
            };
            if self.paths.len() >= MAX_DEPTH {
                let path = path.to_owned();
                return Err(ChainError::TooDeep { path, limit: MAX_DEPTH });
            }
            let child_path = self.paths[self.paths.len() - 1].clone();
            let found = self.find_parent(&child_path, child)?;
            self.compare(&child_path, child, &found, ancestors.is_empty())?;
            self.paths.push(found.path);
            ancestors.push(found.layer);
        }
    }

    /// Notes that a file is part of the chain; it must not be already.
    fn enter(&mut self, child: &Path, path: &Path, file: &HostFile) -> Result<(), ChainError> {
        let identity = file.identity().map_err(|source| ChainError::Read {
            path: path.to_owned(),
            source,
        })?;
        if self.identities.insert(identity) {
            return Ok(());
        }
        Err(ChainError::Cycle {
            child: child.to_owned(),
            path: path.to_owned(),
        })
    }

    /// Opens an image for reading, or takes the one that is open in the same file.
    fn open_shared(
        &mut self,
        path: &Path,
        file: Arc<dyn StorageFile>,
        mode: &OpenMode,
    ) -> Result<Arc<Image>, ChainError> {
        let Some(shared) = self.options.shared.clone() else {
            return self.open_image(path, file, mode).map(Arc::new);
        };
        if let Some(image) = shared.get(&*file) {
            self.count(path, &image)?;
            return Ok(image);
        }
        let image = Arc::new(self.open_image(path, file, mode)?);
        shared.add(&image);
        Ok(image)
    }

    fn open_image(&mut self, path: &Path, file: Arc<dyn StorageFile>, mode: &OpenMode) -> Result<Image, ChainError> {
        let image = image_at(path, file, mode)?;
        self.count(path, &image)?;
        Ok(image)
    }

    /// Takes notice of an image of the chain.
    fn count(&mut self, path: &Path, image: &Image) -> Result<(), ChainError> {
        self.warnings.extend(footer_warnings(path, image.footers()));
        self.table_bytes += image.table_memory();
        if self.table_bytes > self.options.max_table_bytes {
            return Err(ChainError::TablesTooLarge {
                path: path.to_owned(),
                bytes: self.table_bytes,
                maximum: self.options.max_table_bytes,
            });
        }
        Ok(())
    }

    fn find_parent(&mut self, child_path: &Path, child: &Image) -> Result<Found, ChainError> {
        let named = child.parent_paths().map_err(|source| ChainError::Image {
            path: child_path.to_owned(),
            source,
        })?;
        let wanted = child.header().map_or(UniqueId::NIL, |header| header.parent_id);
        let mut tried = Vec::new();
        for candidate in candidates(child_path, &named, &self.options.parents, &self.options.parent_dirs) {
            let candidate = Candidate {
                as_raw: self.options.raw_parents.contains(&candidate.path),
                ..candidate
            };
            let outcome = match examine(child_path, &candidate, wanted, &*self.options.gate) {
                Ok(_) => match self.take(child_path, &candidate, wanted)? {
                    Ok(found) => return Ok(found),
                    Err(outcome) => outcome,
                },
                Err(outcome) => outcome,
            };
            tried.push(TriedParent {
                path: candidate.path,
                reason: candidate.reason,
                outcome,
            });
        }
        let child = child_path.to_owned();
        let others = tried
            .iter()
            .any(|tried| matches!(tried.outcome, ParentOutcome::OtherDisk(_)));
        Err(match others {
            true => ChainError::ParentMismatch { child, wanted, tried },
            false => ChainError::ParentMissing { child, wanted, tried },
        })
    }

    /// Opens the file that was looked at, under the lock, and looks again: another file may be there by now.
    fn take(
        &mut self,
        child: &Path,
        candidate: &Candidate,
        wanted: UniqueId,
    ) -> Result<Result<Found, ParentOutcome>, ChainError> {
        let path = &candidate.path;
        let file = self.open_parent(child, path)?;
        // INV-34: the identity that counts is that of the file which is read from here on.
        let layer = match identify(candidate, &file, wanted) {
            Ok(Examined::Vhd) => {
                let mode = OpenMode::ancestor().at_depth(self.paths.len());
                Layer::Vhd(self.open_shared(path, Arc::clone(&file) as _, &mode)?)
            }
            Ok(Examined::Raw) => Layer::raw(Arc::clone(&file) as _).map_err(|source| ChainError::Read {
                path: path.clone(),
                source,
            })?,
            Err(outcome) => return Ok(Err(outcome)),
        };
        self.enter(child, path, &file)?;
        let path = path.clone();
        Ok(Ok(Found { path, file, layer }))
    }

    fn open_parent(&mut self, child: &Path, path: &Path) -> Result<Arc<HostFile>, ChainError> {
        let opened = HostFile::open(path, Access::ReadOnly, self.options.sharing);
        if let Err(StorageError::Locked { .. }) = &opened {
            // A writable leaf that is its own ancestor is kept away by its own lock: that is a circle.
            self.enter(child, path, &HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?)?;
        }
        Ok(Arc::new(opened?))
    }

    /// Compares what a child recorded of its parent with the parent found.
    fn compare(&mut self, child_path: &Path, child: &Image, parent: &Found, is_leaf: bool) -> Result<(), ChainError> {
        let (child_size, parent_size) = (child.disk_size(), parent.layer.disk_size());
        // Guests and other software disagree about such a child: it is shown, but not written.
        if child_size != parent_size && is_leaf && self.options.is_writing() {
            return Err(ChainError::SizeMismatch {
                child: child_path.to_owned(),
                child_size,
                parent: parent.path.clone(),
                parent_size,
            });
        }
        let recorded = Recorded {
            path: child_path,
            disk_size: child_size,
            parent_timestamp: child.header().map(|header| header.parent_timestamp),
        };
        let actual = Actual {
            path: &parent.path,
            disk_size: parent_size,
            modified: parent.file.modified().ok().map(Timestamp::from_system_time),
            in_footer: parent.layer.image().map(|image| image.footer().timestamp),
        };
        self.warnings.extend(disagreements(&recorded, &actual));
        Ok(())
    }
}

fn image_at(path: &Path, file: Arc<dyn StorageFile>, mode: &OpenMode) -> Result<Image, ChainError> {
    Image::open(Arc::clone(&file), mode).map_err(|source| image_error(&*file, path, source))
}

fn footer_warnings(path: &Path, footers: &Footers) -> Option<ChainWarning> {
    let path = path.to_owned();
    match (footers.source, &footers.tail_error, &footers.copy) {
        (FooterSource::Copy, Some(reason), _) => Some(ChainWarning::FooterRecovered {
            path,
            reason: reason.clone(),
        }),
        (_, _, Some(Err(reason))) => Some(ChainWarning::FooterCopyDamaged {
            path,
            reason: reason.clone(),
        }),
        _ if !footers.agree() => Some(ChainWarning::FootersDiffer { path }),
        _ => None,
    }
}
