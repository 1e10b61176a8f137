//! Any bytes as an image.

use std::ops::ControlFlow;
use std::sync::Arc;

use vhd_core::check::{FindingCode, check};
use vhd_core::device::{ByteRange, Disk, Layer, LayeredDevice};
use vhd_core::image::{Image, OpenMode};
use vhd_core::storage::MemoryFile;

/// Bytes that are read at each place; no multiple of a sector.
const PROBE: usize = 700;
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
    read(&Disk::new(Arc::new(LayeredDevice::new(
        image,
        parent.into_iter().collect(),
    ))));
}

fn read(disk: &Disk) {
    let len = usize::try_from(disk.size()).unwrap_or(PROBE).min(PROBE);
    let last = disk.size() - len as u64;
    for place in [0, last / 2, last] {
        disk.read_at(&mut vec![0; len], place).expect("what opens can be read");
    }
    let (mut next, mut count) = (0, 0);
    let visited = disk.extents(ByteRange::new(0, disk.size()), &mut |extent| {
        assert!(extent.range.start == next && extent.range.len > 0, "{extent:?}");
        (next, count) = (extent.range.end(), count + 1);
        if count < EXTENTS {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    visited.expect("what opens can be mapped");
    assert!(next == disk.size() || count == EXTENTS);
}
