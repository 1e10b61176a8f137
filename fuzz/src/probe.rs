//! A look at a disk: some reads, and its map.

use std::ops::ControlFlow;

use vhd_block::{ByteRange, DeviceError, Disk};

/// Bytes that are read at each place; no multiple of a sector.
const PROBE: usize = 700;

/// Reads at both ends and in the middle, and maps the whole disk: what opens can be read and mapped.
pub fn read(disk: &Disk, most: usize) {
    let len = usize::try_from(disk.size()).unwrap_or(PROBE).min(PROBE);
    let last = disk.size() - len as u64;
    for place in [0, last / 2, last] {
        disk.read_at(&mut vec![0; len], place).expect("what opens can be read");
    }
    map(disk, disk.size(), most).expect("what opens can be mapped");
}

/// Maps the first `len` bytes as far as `most` extents go: they have no gaps, and end where they are to.
///
/// # Errors
/// The map cannot be read.
pub fn map(disk: &Disk, len: u64, most: usize) -> Result<(), DeviceError> {
    let (mut next, mut count) = (0, 0);
    let visited = disk.extents(ByteRange::new(0, len), &mut |extent| {
        assert!(extent.range.start == next && extent.range.len > 0, "{extent:?}");
        (next, count) = (extent.range.end(), count + 1);
        if count < most {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    assert!(visited.is_err() || next == len || count == most);
    visited
}
