//! Disks in images of other programs, for reading.
//!
//! ```text
//! mod.rs    the disk, its files, and what each says of itself
//! file.rs   a file of this host, or any other, as the readers of formats want it
//! chain.rs  a leaf and its parents
//! vhdx.rs   VHDX: what an image says, and which file is its parent
//! qcow2.rs, vmdk.rs   the same of qcow2 and VMDK
//! check.rs  what a check finds in one
//! ```

mod chain;
mod check;
mod file;
mod qcow2;
mod vhdx;
mod vmdk;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use image_formats::{ImageError, Layer as FormatLayer, LayeredImage};

use super::ImageFormat;
use super::detect::foreign_format;
use super::error::ChainError;
use super::{OpenOptions, OpenedDisk};
use crate::device::{BlockDevice, Disk};
use crate::format::{DiskType, UniqueId};
use crate::image::ParentPath;
use crate::storage::{HostFile, StorageFile};
pub(super) use chain::examine;
pub use check::check;
use file::SharedFile;

/// A disk in images of another program.
pub struct ForeignDisk {
    device: Arc<dyn BlockDevice>,
    format: ImageFormat,
    layers: Vec<ForeignLayer>,
}

/// One image of a foreign disk.
pub struct ForeignLayer {
    file: Arc<dyn StorageFile>,
    layer: Arc<dyn FormatLayer>,
    facts: ForeignFacts,
}

/// What an image of another program says of itself.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ForeignFacts {
    /// Its format.
    pub format: ImageFormat,
    /// Its type, as far as the format has types.
    pub disk_type: DiskType,
    /// By what a child knows it: of a VHDX, its data write GUID. Nil where the format has none.
    pub id: UniqueId,
    /// The identity that a guest sees, if there is one.
    pub disk_id: Option<UniqueId>,
    /// The program that made it, as it says.
    pub creator: Option<String>,
    /// Bytes on the disk.
    pub disk_size: u64,
    /// Bytes in a block.
    pub block_size: u64,
    /// Blocks on the disk.
    pub blocks: u64,
    /// Blocks that have space in the file, if that is known without looking through all of it.
    pub allocated_blocks: Option<u64>,
    /// Bytes in a logical sector.
    pub logical_sector: u32,
    /// Bytes in a physical sector.
    pub physical_sector: u32,
    /// Entries of its log that are replayed in memory: it was not closed.
    pub replayed: u64,
    /// What it says of its parent.
    pub parent: Option<ForeignParent>,
}

/// What an image of another program says of its parent.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ForeignParent {
    /// The format of the child, which says what a parent is known by.
    pub format: ImageFormat,
    /// By what the parent is known.
    pub id: UniqueId,
    /// By what it may be known as well.
    pub second_id: Option<UniqueId>,
    /// Where it is, best first.
    pub paths: Vec<ParentPath>,
}

impl ForeignFacts {
    /// What tells its disk from others, if anything does.
    fn identity(&self) -> Option<[u8; 16]> {
        (!self.id.is_nil()).then_some(self.id.0)
    }
}

impl ForeignParent {
    /// Whether an image of this identity is the parent.
    #[must_use]
    pub fn matches(&self, id: UniqueId) -> bool {
        id == self.id || Some(id) == self.second_id
    }
}

impl fmt::Debug for ForeignDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts: Vec<_> = self.layers.iter().map(|layer| &layer.facts).collect();
        f.debug_struct("ForeignDisk")
            .field("layers", &facts)
            .finish_non_exhaustive()
    }
}

impl ForeignDisk {
    fn new(layers: Vec<ForeignLayer>) -> Self {
        let leaf = &layers[0].facts;
        let (format, identity) = (leaf.format, leaf.identity());
        let device = LayeredImage::new(layers.iter().map(|layer| Arc::clone(&layer.layer)).collect(), identity);
        Self {
            device: Arc::new(device),
            format,
            layers,
        }
    }

    /// The disk for those who use it.
    pub(super) fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// The format of its images.
    pub(super) fn format(&self) -> ImageFormat {
        self.format
    }

    /// Its images, the leaf first.
    #[must_use]
    pub fn layers(&self) -> &[ForeignLayer] {
        &self.layers
    }
}

impl ForeignLayer {
    /// The file.
    #[must_use]
    pub fn file(&self) -> &dyn StorageFile {
        &*self.file
    }

    /// What it says of itself.
    #[must_use]
    pub fn facts(&self) -> &ForeignFacts {
        &self.facts
    }

    /// What the image stores by itself: the rest reads zero.
    #[must_use]
    pub fn alone(&self) -> Disk {
        Disk::new(Arc::new(LayeredImage::new(
            vec![Arc::clone(&self.layer)],
            self.facts.identity(),
        )))
    }
}

/// Opens the disk whose leaf is in `file`, with its ancestors.
pub(super) fn open(
    options: &OpenOptions,
    format: ImageFormat,
    path: &Path,
    file: Arc<dyn StorageFile>,
    host: Option<&HostFile>,
    found: &mut Vec<std::path::PathBuf>,
) -> Result<OpenedDisk, ChainError> {
    options.require_reading(format, path)?;
    chain::open(options, format, path, file, host, found)
}

/// What the image in a file says of itself, without its ancestors.
///
/// # Errors
/// That it is not readable, or not in a format of another program that is read here.
pub fn read_alone(file: Arc<dyn StorageFile>, path: &Path) -> Result<ForeignLayer, ChainError> {
    let format = foreign_format(&*file).map_err(|source| ChainError::Read {
        path: path.to_owned(),
        source,
    })?;
    let format = format.and_then(|format| format.readable()).unwrap_or(ImageFormat::Vhdx);
    chain::read_image(format, file, path).map(|(layer, _)| layer)
}

fn shared(file: &Arc<dyn StorageFile>) -> Arc<dyn image_formats::ImageFile> {
    Arc::new(SharedFile(Arc::clone(file)))
}

fn foreign_error(path: &Path, source: ImageError) -> ChainError {
    ChainError::ForeignImage {
        path: path.to_owned(),
        source,
    }
}
