//! VMDK: an image in one file, without a parent.

use std::path::Path;
use std::sync::Arc;

use image_formats::vmdk::Image;

use super::super::{ChainError, ImageFormat};
use super::chain::Read;
use super::{ForeignFacts, ForeignLayer, foreign_error, shared};
use crate::format::{DiskType, UniqueId};
use crate::storage::StorageFile;

/// The image in a file.
pub(super) fn read(file: Arc<dyn StorageFile>, path: &Path) -> Result<Read, ChainError> {
    let image = Image::open(shared(&file)).map_err(|source| foreign_error(path, source))?;
    let header = image.header();
    let facts = ForeignFacts {
        format: ImageFormat::Vmdk,
        disk_type: DiskType::Dynamic,
        id: UniqueId::NIL,
        disk_id: None,
        creator: None,
        disk_size: header.disk_size,
        block_size: header.grain_size,
        blocks: header.disk_size.div_ceil(header.grain_size),
        allocated_blocks: None,
        logical_sector: 512,
        physical_sector: 512,
        replayed: 0,
        parent: None,
    };
    let layer = Arc::new(image);
    Ok((ForeignLayer { file, layer, facts }, Vec::new()))
}
