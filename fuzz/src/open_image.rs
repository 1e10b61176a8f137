//! Any bytes as an image.

use std::sync::Arc;

use vhd_core::check::{FindingCode, check};
use vhd_core::device::{Disk, Layer, LayeredDevice};
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::MemoryFile;

use super::probe;

/// Extents of a disk that are looked at: a table of holes and blocks has very many.
const EXTENTS: usize = 1000;

/// Opens the image, reads and maps it, and lets the checker look: it finds a broken rule exactly if the image can't be
/// opened.
pub fn open_image(bytes: &[u8]) {
    let file = Arc::new(MemoryFile::from_bytes(bytes.to_vec()));
    let report = check(&*file).expect("memory can be read");
    let is_broken = |code: &FindingCode| matches!(code, FindingCode::Broken(_));
    let broken = report.findings.iter().any(|finding| is_broken(&finding.code));
    let opened = Image::open(file, &OpenMode::read_only());
    assert_eq!(broken, opened.is_err(), "{report:?}");
    let Ok(image) = opened else {
        return;
    };
    image.parent_paths().expect("memory can be read");
    let parent = image.is_differencing().then(|| Layer::raw(Arc::new(MemoryFile::new())));
    let parent = parent.transpose().expect("memory has a length");
    let disk = LayeredDevice::new(image, parent.into_iter().collect());
    probe::read(&Disk::new(Arc::new(disk)), EXTENTS);
}
