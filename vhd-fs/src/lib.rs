//! Which parts of a disk its file systems do not use.
//!
//! ```text
//!   partitions/   MBR with logical partitions, GPT, or none
//!   probe.rs      what a partition holds: exactly one file system, or a reason to leave it alone
//!   ext.rs xfs/ fat.rs exfat.rs ntfs/ swap.rs     each reads one kind of allocation map
//!   free_map.rs   the free space of one partition, 4 KiB a bit
//! ```
//!
//! Everything is read through [`ReadAt`]; nothing is ever written. What a partition says is believed only if the
//! file system was unmounted cleanly, has no feature that is not known here, and agrees with itself where it
//! counts its free space twice (INV-13). Everything else is in use. Any content is possible: no read leaves the
//! partition, no loop goes on without bound, and memory is bounded by the size of the disk: a bit for 4 KiB.
#![forbid(unsafe_code)]

mod bytes;
mod exfat;
mod ext;
mod fat;
pub mod files;
mod free_map;
mod ntfs;
mod partitions;
mod probe;
mod scan;
mod swap;
mod unusable;
mod window;
mod xfs;

pub use free_map::FreeMap;
pub use partitions::TableKind;
pub use scan::{DiskReport, PartitionReport, scan};
pub use unusable::Unusable;

use std::io;

/// A disk that can be read.
pub trait ReadAt {
    /// Bytes on the disk.
    fn size(&self) -> u64;

    /// Fills `buf` from byte `offset`; the range is inside the disk.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        u64::try_from(self.len()).unwrap_or(u64::MAX)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(buf.len())?));
        let bytes = range.and_then(|range| self.get(range));
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
