//! Spans of the files below a disk, for those who move the bytes themselves.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::Arc;

use vhd_block::{ByteRange, DeviceError, SpanFile, SpanStorage, WriteOutcome, WriteSpan};

use crate::image::Image;
use crate::storage::StorageFile;
use crate::units::VirtualOffset;

/// The file of a layer, as spans have it. It keeps the file open, and locked.
#[derive(Debug)]
struct LayerFile {
    file: Arc<dyn StorageFile>,
    /// Bytes up to which the file reads as the layer does.
    exact_to: u64,
    /// Of a disk that does not change: nothing is merged into an image that somebody else has.
    _image: Option<Arc<Image>>,
}

/// The file of a raw layer of so many bytes, for spans of it. Behind its end, `padded` reads zero.
pub(super) fn of_raw(file: Arc<dyn StorageFile>, len: u64, padded: u64) -> Arc<dyn SpanStorage> {
    let exact_to = if len < padded { len } else { u64::MAX };
    Arc::new(LayerFile {
        file,
        exact_to,
        _image: None,
    })
}

/// The file of an image, for spans of it. INV-80: a span of a disk that is written to (`is_written`) may read what was
/// written since, and keeps the file alone; one of a disk for reading keeps the image, so that it reads what it read.
pub(super) fn of_image(image: &Arc<Image>, is_written: bool) -> Arc<dyn SpanStorage> {
    Arc::new(LayerFile {
        file: Arc::clone(image.file()),
        exact_to: u64::MAX,
        _image: (!is_written).then(|| Arc::clone(image)),
    })
}

impl SpanStorage for LayerFile {
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(buf, offset)
    }

    fn descriptor(&self, offset: u64, len: u64) -> Option<BorrowedFd<'_>> {
        let file = self.file.host_file()?;
        (offset.saturating_add(len) <= self.exact_to).then(|| file.as_fd())
    }
}

/// A place in the leaf of a disk that stays what it is.
pub(super) struct InImage {
    pub(super) image: Arc<Image>,
    pub(super) range: ByteRange,
}

impl WriteOutcome for InImage {
    fn complete(self: Box<Self>) -> Result<(), DeviceError> {
        self.image
            .complete_place(VirtualOffset(self.range.start), self.range.len)
    }

    fn abandon(self: Box<Self>) {}
}

/// A place in a raw file.
struct InPlace;

impl WriteOutcome for InPlace {
    fn complete(self: Box<Self>) -> Result<(), DeviceError> {
        Ok(())
    }

    fn abandon(self: Box<Self>) {}
}

/// A range of a raw file, to be written.
pub(super) fn in_raw(storage: &Arc<dyn SpanStorage>, range: ByteRange) -> WriteSpan {
    WriteSpan::new(
        SpanFile::new(Arc::clone(storage)),
        range.start,
        range.len,
        Box::new(InPlace),
    )
}
