//! One image of a chain, as the device over it sees it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use vhd_block::{DeviceError, LOGICAL_BLOCK, SpanStorage};

use super::spans;
use crate::format::UniqueId;
use crate::image::{Image, ReadSpan};
use crate::storage::{FileIdentity, PaddedFile, StorageFile};
use crate::units::{FileOffset, VirtualOffset};

/// One image of a chain.
#[derive(Clone, Debug)]
pub enum Layer {
    /// A VHD.
    Vhd(Arc<Image>),
    /// A raw file; the last layer only.
    Raw(Arc<PaddedFile>),
}

impl Layer {
    /// A raw file as the base of a chain.
    pub fn raw(file: Arc<dyn StorageFile>) -> std::io::Result<Self> {
        let padded = PaddedFile::new(file, u64::from(LOGICAL_BLOCK))?;
        Ok(Self::Raw(Arc::new(padded)))
    }

    /// The size of the layer's own disk in bytes.
    #[must_use]
    pub fn disk_size(&self) -> u64 {
        match self {
            Self::Vhd(image) => image.disk_size(),
            Self::Raw(file) => file.padded_len(),
        }
    }

    /// The file of the layer.
    #[must_use]
    pub fn file(&self) -> &dyn StorageFile {
        match self {
            Self::Vhd(image) => &**image.file(),
            Self::Raw(file) => &**file,
        }
    }

    /// What the layer's file is called at this moment, whatever it was opened by.
    ///
    /// # Errors
    /// It is in no file of this host, it has no name any more, or the kernel does not say.
    pub fn path(&self) -> io::Result<PathBuf> {
        let file = self.file().host_file().ok_or(io::ErrorKind::Unsupported)?;
        let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
        match FileIdentity::of_path(&path)? == FileIdentity::of(&file.metadata()?) {
            true => Ok(path),
            false => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The identity of the disk in the layer; nil for a raw file, which has none.
    #[must_use]
    pub fn unique_id(&self) -> UniqueId {
        self.image().map_or(UniqueId::NIL, Image::unique_id)
    }

    pub(super) fn shared_file(&self) -> Arc<dyn StorageFile> {
        match self {
            Self::Vhd(image) => Arc::clone(image.file()),
            Self::Raw(file) => Arc::clone(file) as _,
        }
    }

    pub(super) fn span_storage(&self, is_written: bool) -> Arc<dyn SpanStorage> {
        match self {
            Self::Vhd(image) => spans::of_image(image, is_written),
            // A file whose length can't be found is read by its own calls, which say why.
            Self::Raw(file) => spans::of_raw(self.shared_file(), file.len().unwrap_or(0), file.padded_len()),
        }
    }

    /// The layer's image, if it is a VHD.
    #[must_use]
    pub fn image(&self) -> Option<&Image> {
        match self {
            Self::Vhd(image) => Some(image),
            Self::Raw(_) => None,
        }
    }

    /// `None` for a raw file, and while another disk has the layer too.
    pub(super) fn image_mut(&mut self) -> Option<&mut Image> {
        match self {
            Self::Vhd(image) => Arc::get_mut(image),
            Self::Raw(_) => None,
        }
    }

    /// Bytes from the start of a range that have no space in the file; a raw file has space for all.
    pub(super) fn unallocated(&self, offset: VirtualOffset, len: u64) -> u64 {
        self.image().map_or(0, |image| image.unallocated(offset, len))
    }

    pub(crate) fn resolve_read(&self, offset: VirtualOffset, len: u64) -> Result<ReadSpan, DeviceError> {
        match self {
            Self::Vhd(image) => image.resolve_read(offset, len),
            Self::Raw(_) => Ok(ReadSpan::Data {
                file_offset: FileOffset(offset.0),
                len,
            }),
        }
    }
}
