//! The block table of an image, as a coordinator needs to know it.

use std::path::Path;
use std::sync::Arc;

use csv_lock::Table;
use vhd_core::chain::ImageFormat;
use vhd_core::format::{FOOTER_SIZE, check_table_covers};
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile};
use vhd_core::units::u64_from;

use crate::failure::Failure;

/// The table of the image in a file; `None` for one that has none, or is no VHD: nothing is allocated for it.
pub(super) fn table_of(file: &Path) -> Result<Option<Table>, Failure> {
    let opened: Arc<dyn StorageFile> = Arc::new(HostFile::open(file, Access::ReadOnly, Sharing::Unlocked)?);
    if ImageFormat::detect(&*opened, file).ok() != Some(ImageFormat::Vhd) {
        return Ok(None);
    }
    let about = |failure: Failure| failure.about(file.display());
    let image = Image::open(opened, &OpenMode::read_only()).map_err(|error| about(error.into()))?;
    let Some(header) = image.header() else {
        return Ok(None);
    };
    let blocks = check_table_covers(header, image.footer()).ok();
    Ok(Some(Table {
        offset: header.table_offset,
        entries: blocks
            .and_then(|blocks| u32::try_from(blocks).ok())
            .unwrap_or(header.max_table_entries),
        block: header.layout.stored_bytes(),
        bitmap: header.layout.bitmap_bytes(),
        footer: u64_from(FOOTER_SIZE),
        full: !image.is_differencing(),
    }))
}
