//! One image gets another size, by itself: the step of which everything else is made.

use std::sync::Arc;

use super::fixed::FixedFooters;
use super::{ResizeError, sparse};
use crate::format::{DiskType, FOOTER_SIZE, Footer, Geometry};
use crate::image::{Footers, Image, OpenError, OpenMode, check_size};
use crate::storage::StorageFile;

/// Programs whose images qemu takes for as large as their geometry says, and not as the footer says.
const SIZED_BY_GEOMETRY: [[u8; 4]; 2] = [*b"vpc ", *b"qemu"];

/// An image, and the size it is to have. The size that it has and its footer are those from before anything was
/// changed, also when a resize goes on that was interrupted.
#[derive(Clone, Debug)]
pub(super) struct Resizing {
    from: Footer,
    raw: [u8; FOOTER_SIZE],
    to: Footer,
}

impl Resizing {
    /// `raw` is `from` as it stands in the file.
    pub(super) fn new(from: Footer, raw: [u8; FOOTER_SIZE], size: u64) -> Self {
        let to = resized(&from, size);
        Self { from, raw, to }
    }

    /// The footer from before.
    pub(super) fn footer(&self) -> &Footer {
        &self.from
    }

    /// The footer from before, as it stood in the file.
    pub(super) fn raw(&self) -> &[u8; FOOTER_SIZE] {
        &self.raw
    }

    /// The size that the image is to have.
    pub(super) fn size(&self) -> u64 {
        self.to.current_size
    }

    /// The size stays.
    pub(super) fn is_nothing(&self) -> bool {
        self.size() == self.from.current_size
    }

    /// The other way round.
    pub(super) fn reversed(&self) -> Self {
        Self {
            from: self.to.clone(),
            raw: self.to.encode_over(&self.raw),
            to: self.from.clone(),
        }
    }

    /// Gives the image its new size, durably. Done already, in part or wholly, it is done again or finished.
    pub(super) fn run(&self, file: &Arc<dyn StorageFile>) -> Result<(), ResizeError> {
        let grows = self.to.current_size > self.from.current_size;
        let shrinks = self.to.current_size < self.from.current_size;
        if self.from.disk_type == DiskType::Fixed {
            let footers = FixedFooters {
                from: self.from.clone(),
                from_raw: self.raw,
                to: self.to.clone(),
            };
            return if grows {
                footers.grow(&**file)
            } else {
                footers.shrink(&**file)
            };
        }
        let present = Footers::read(&**file)?.footer.current_size;
        if present == self.to.current_size {
            // A footer that a crash left behind is restored.
            let image = Image::open(Arc::clone(file), &OpenMode::read_write())?;
            return if shrinks {
                sparse::cut_end(image)
            } else {
                Ok(image.close()?)
            };
        }
        if grows {
            sparse::grow(file, &self.to)
        } else {
            sparse::shrink(file, &self.to)
        }
    }
}

/// The footer of the same image with another size.
fn resized(footer: &Footer, size: u64) -> Footer {
    let mut geometry = Geometry::from_size(size);
    if SIZED_BY_GEOMETRY.contains(&footer.creator_application) && geometry.size_bytes() != size {
        // The largest geometry makes qemu go by the size.
        geometry = Geometry::from_size(u64::MAX);
    }
    Footer {
        current_size: size,
        geometry,
        ..footer.clone()
    }
}

/// Gives the image in `file` another size and looks at nothing else: that its parents and children agree, that what
/// is cut off is free, and that a record covers a fixed image that grows, is the caller's business.
/// [`Resize`](super::Resize) does all that. `former` is the footer from before, to go on with what was interrupted.
///
/// # Errors
/// [`ResizeError`]. An image of blocks has the old or the new size then.
pub fn resize_file(
    file: &Arc<dyn StorageFile>,
    former: Option<&[u8; FOOTER_SIZE]>,
    size: u64,
) -> Result<(), ResizeError> {
    check_size(size)?;
    let resizing = match former {
        Some(raw) => Resizing::new(decode_former(raw)?, *raw, size),
        None => {
            let footers = Footers::read(&**file)?;
            Resizing::new(footers.footer, footers.raw, size)
        }
    };
    resizing.run(file)
}

/// A footer that was noted before a resize began.
pub(super) fn decode_former(raw: &[u8; FOOTER_SIZE]) -> Result<Footer, OpenError> {
    Footer::decode(raw).map_err(|source| OpenError::Format {
        structure: "former footer",
        offset: 0,
        source,
    })
}
