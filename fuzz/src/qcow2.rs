//! Any bytes as a qcow2.

use std::sync::Arc;

use image_formats::LayeredImage;
use image_formats::qcow2::Image;
use vhd_block::Disk;

use super::probe;

/// Bytes of the disk that are read and mapped: it can be larger than time.
const SEEN: u64 = 1 << 20;
/// Extents that are looked at.
const EXTENTS: usize = 500;

/// Opens the file, alone, goes through its tables, and reads and maps what it has. A table can be broken: that is an error
/// of one read.
pub fn qcow2(bytes: &[u8]) {
    let Ok(image) = Image::open(Arc::new(bytes.to_vec())) else {
        return;
    };
    let broken = image.survey().map_or(true, |(_, broken)| !broken.is_empty());
    let disk = Disk::new(Arc::new(LayeredImage::new(vec![Arc::new(image)], None)));
    let seen = disk.size().min(SEEN);
    for place in [0, seen / 2, disk.size() - seen] {
        let mut buffer = vec![0; usize::try_from(seen.min(700)).expect("it is small")];
        let _ = disk.read_at(&mut buffer, place);
    }
    let mapped = probe::map(&disk, seen, EXTENTS);
    assert!(broken || mapped.is_ok(), "what is sound can be mapped");
}
