//! How a disk is opened with all its ancestors.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::builder::ChainBuilder;
use super::dependants::{Limits, Search};
use super::descriptors;
use super::device_file::DeviceFile;
use super::error::{ChainError, ChainWarning};
use super::foreign;
use super::locate::{AllowAll, ExplicitOnly, ParentGate};
use super::opened::OpenedDisk;
use super::shared::SharedImages;
use super::unfinished::unfinished_resize;
use super::{ForeignFormat, ImageFormat};
use crate::device::{BlockDevice, Disk, RawDevice};
use crate::format::UniqueId;
use crate::image::{BlockSource, OpenMode, PublishFence};
use crate::job::{open_job, require_steady};
use crate::storage::{Access, HostFile, Sharing, StorageFile};
use crate::units::SECTOR_SIZE;

/// The most layers a chain may have. Hyper-V stops at 50 snapshots; the limit is there so that a directory
/// of hostile images ends in an error and not in all file descriptors taken.
pub const MAX_DEPTH: usize = 4096;

/// Bytes that the block tables of a chain may take in memory, all together: enough for 512 layers of 2 TiB in blocks of
/// 2 MiB. A chain of 4,096 files with a few KiB each could claim 512 GiB otherwise.
pub const MAX_TABLE_BYTES: u64 = 4 << 30;

/// How a disk is opened.
#[derive(Clone)]
pub struct OpenOptions {
    pub(super) access: Access,
    pub(super) sharing: Sharing,
    pub(super) format: Option<ImageFormat>,
    pub(super) parents: Vec<PathBuf>,
    /// Those of them that are raw disks whatever they look like.
    pub(super) raw_parents: Vec<PathBuf>,
    pub(super) parent_dirs: Vec<PathBuf>,
    pub(super) gate: Arc<dyn ParentGate>,
    fence: Option<Arc<dyn PublishFence>>,
    blocks: Option<Arc<dyn BlockSource>>,
    pub(super) max_table_bytes: u64,
    /// The caller is a job, and has seen that no other is open on the image.
    for_job: bool,
    ignore_children: bool,
    pub(super) shared: Option<Arc<SharedImages>>,
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
            blocks: None,
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

    /// Opens for writing a leaf that is on a cluster volume, by the right to write it that the volume gave: that is asked
    /// before each change of metadata (INV-06), and space for blocks comes from `blocks` (INV-100).
    #[must_use]
    pub fn on_volume(mut self, right: Arc<dyn PublishFence>, blocks: Arc<dyn BlockSource>) -> Self {
        self.blocks = Some(blocks);
        self.fence(right).write(true)
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
        let file = match &self.blocks {
            Some(_) => HostFile::open_on_volume(path)?,
            None => HostFile::open(path, self.access, self.sharing)?,
        };
        let file = Arc::new(file);
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
            Some(format @ (ImageFormat::Vhdx | ImageFormat::Qcow2 | ImageFormat::Vmdk)) => {
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

    /// Opens the disk whose files were opened elsewhere: the leaf first, then its parent, and so on down to the base. No path
    /// is looked at, so a process that may open no file can use it.
    ///
    /// Everything is checked as in [`open`](Self::open), and the same locks are taken; each parent must have the identity
    /// that its child records. Messages call the files `descriptor 0` (the leaf), `descriptor 1` and so on. The options that
    /// say where parents are looked for have no effect.
    ///
    /// What only a path can tell, the caller has to know: whether other images rely on the leaf, a snapshot froze it, or a
    /// job is open on one of the files ([`dependants`](super::dependants), [`open_job`]). So a leaf is opened for writing
    /// only with [`ignore_children`](Self::ignore_children), and a raw leaf only if its [`format`](Self::format) is given.
    /// [`OpenedDisk::into_descriptors`] hands over the files of a disk for which all of that was checked.
    ///
    /// A descriptor shares its lock with its duplicates, in other processes too: nobody else should lock or unlock the same
    /// open file meanwhile.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`StorageError::Descriptor`](crate::storage::StorageError::Descriptor) for one that is
    /// not open in the way that is needed; [`ChainError::DescriptorMissing`] and [`ChainError::DescriptorLeftOver`] if the
    /// chain is longer or shorter than the list; [`ChainError::DependantsUnknown`].
    pub fn open_descriptors(&self, files: impl IntoIterator<Item = OwnedFd>) -> Result<OpenedDisk, ChainError> {
        descriptors::open(self, files.into_iter().collect())
    }

    fn open_file(&self, path: &Path, file: Arc<HostFile>, found: &mut Vec<PathBuf>) -> Result<OpenedDisk, ChainError> {
        let job_open = self.look_for_jobs(path)?;
        let mut opened = self.open_format(path, file, found)?;
        opened.warn(job_open);
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
            ImageFormat::Vhdx | ImageFormat::Qcow2 | ImageFormat::Vmdk => {
                foreign::open(self, format, path, Arc::clone(&file) as _, Some(&file), found)
            }
        }
    }

    pub(super) fn open_raw(&self, path: &Path, file: Arc<HostFile>) -> Result<OpenedDisk, ChainError> {
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
        Ok(OpenedDisk::raw(device, path, warnings))
    }

    pub(super) fn is_writing(&self) -> bool {
        self.access == Access::ReadWrite
    }

    /// Refuses to write to a leaf that others rely on. It is locked: nobody makes a child of it meanwhile.
    pub(super) fn refuse_dependants(
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

    pub(super) fn leaf_mode(&self) -> OpenMode {
        let mode = match self.access {
            Access::ReadOnly => OpenMode::read_only(),
            Access::ReadWrite => OpenMode::read_write(),
        };
        let mode = match &self.fence {
            Some(fence) => mode.with_fence(Arc::clone(fence)),
            None => mode,
        };
        match &self.blocks {
            Some(blocks) => mode.with_blocks(Arc::clone(blocks)),
            None => mode,
        }
    }
}
