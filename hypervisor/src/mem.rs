//! Guest memory: one sealed, shared memory file, mapped on both sides of the hole for devices.

use std::fs::File;
use std::io;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap, GuestMemoryRegion as _};

use crate::Error;

/// What guest memory is to everyone here. Every access is checked against its regions.
pub(crate) type GuestMemory = GuestMemoryMmap<()>;

/// Where the addresses of devices begin. Memory that does not fit below continues at [`HOLE_END`].
pub(crate) const HOLE_START: u64 = 0xd000_0000;
/// The first address behind those of devices.
pub(crate) const HOLE_END: u64 = 1 << 32;

/// Bytes: the least memory that a machine has. The smallest Linux kernels need about this.
pub const MIN_MEMORY: u64 = 16 << 20;
/// Bytes: the most memory that a machine has.
pub const MAX_MEMORY: u64 = 1 << 40;
/// Bytes: the size of guest memory is a multiple of it.
pub const MEMORY_UNIT: u64 = 4096;

/// The ranges of `size` bytes of memory: address and length.
pub(crate) fn ranges(size: u64) -> Vec<(u64, u64)> {
    let low = size.min(HOLE_START);
    let mut ranges = vec![(0, low)];
    if size > low {
        ranges.push((HOLE_END, size - low));
    }
    ranges
}

/// Memory of `size` bytes, all zero. The file can neither shrink under its mappings nor grow.
pub(crate) fn allocate(size: u64) -> Result<GuestMemory, Error> {
    let failed = |source: io::Error| Error::Memory { size, source };
    let file = memfd_create("vhd-guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
        .map_err(|errno| failed(errno.into()))?;
    ftruncate(&file, size).map_err(|errno| failed(errno.into()))?;
    fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|errno| failed(errno.into()))?;
    let file = std::sync::Arc::new(File::from(file));
    let mut start = 0;
    let mut mapped = Vec::new();
    for (address, len) in ranges(size) {
        let backing = FileOffset::from_arc(std::sync::Arc::clone(&file), start);
        let len_here = usize::try_from(len).map_err(|error| failed(io::Error::other(error)))?;
        mapped.push((GuestAddress(address), len_here, Some(backing)));
        start += len;
    }
    GuestMemory::from_ranges_with_files(mapped).map_err(|error| failed(io::Error::other(error)))
}

/// The file that guest memory is in: the range of each region, one behind the other.
pub(crate) fn backing(memory: &GuestMemory) -> Option<&File> {
    let region = memory.iter().next()?;
    Some(region.file_offset()?.file())
}

#[cfg(test)]
mod tests {
    use vm_memory::Bytes as _;

    use super::*;

    #[test]
    fn memory_leaves_the_hole_free() {
        assert_eq!(ranges(64 << 20), [(0, 64 << 20)]);
        assert_eq!(ranges(HOLE_START), [(0, HOLE_START)]);
        assert_eq!(ranges(HOLE_START + 4096), [(0, HOLE_START), (HOLE_END, 4096)]);
    }

    #[test]
    fn memory_is_one_sealed_file() {
        let memory = allocate(HOLE_START + (1 << 20)).unwrap();
        memory.write_obj(7_u64, GuestAddress(HOLE_END)).unwrap();
        assert!(memory.write_obj(7_u64, GuestAddress(HOLE_START)).is_err());
        assert!(memory.write_obj(7_u64, GuestAddress(HOLE_END - 4)).is_err());
        let files: Vec<_> = memory.iter().map(|region| region.file_offset().unwrap()).collect();
        assert_eq!((files[0].start(), files[1].start()), (0, HOLE_START));
        assert!(files[0].file().set_len(4096).is_err());
    }
}
