//! What the caller knows of an image: it wins over footers that may be those of other images.

use crate::format::{DiskType, Footer};

/// What the caller knows of the image, for the case that the file does not tell it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The size of the disk in bytes.
    pub size: Option<u64>,
    /// The type of the image.
    pub disk_type: Option<DiskType>,
}

impl Facts {
    /// Whether a footer that begins at `at` can be the image's own by what is known. Of a fixed disk the footer also says
    /// by its place how large it is.
    pub(super) fn allow(&self, footer: &Footer, at: u64) -> bool {
        let kind = |disk_type: DiskType| disk_type.is_sparse();
        let is_fixed = footer.disk_type == DiskType::Fixed;
        let fits = |size| footer.current_size == size || is_fixed && at == size;
        self.disk_type.is_none_or(|known| kind(known) == kind(footer.disk_type)) && self.size.is_none_or(fits)
    }
}
