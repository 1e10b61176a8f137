//! An image without its parents, for a look at its own metadata or a change of it.

use std::path::Path;
use std::sync::Arc;

use crate::chain::{ChainError, image_error};
use crate::image::{Image, OpenMode};
use crate::storage::{Access, HostFile, Sharing};

/// An image and the file that it is in, under the image's lock as long as either lives.
pub(super) struct Alone {
    pub(super) file: Arc<HostFile>,
    pub(super) image: Image,
}

impl Alone {
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, ChainError> {
        let file = Arc::new(HostFile::open(path, access, Sharing::Exclusive)?);
        let mode = match access {
            Access::ReadOnly => OpenMode::read_only(),
            Access::ReadWrite => OpenMode::read_write(),
        };
        let opened = Image::open(Arc::clone(&file) as _, &mode);
        let image = opened.map_err(|source| image_error(&*file, path, source))?;
        Ok(Self { file, image })
    }
}
