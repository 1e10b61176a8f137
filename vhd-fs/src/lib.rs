//! Which parts of a disk its file systems do not use; their files ([`files`]); what they would start ([`boot`]).
//!
//! ```text
//!   scan.rs       the whole disk: its partitions, as the crate vhd-partition finds them, and their free space
//!   container.rs  what keeps file systems inside: left alone
//!   probe.rs      what a partition holds: exactly one file system, or a reason to leave it alone
//!   ext.rs xfs/ fat.rs exfat.rs ntfs/ swap.rs     each reads one kind of allocation map
//!   window.rs     a partition as a reader sees it; notes what the reader relies on
//!   free_map.rs units.rs    the free space of one partition, 4 KiB a bit
//!   checksum.rs   CRC-32C and CRC-16
//! ```
//!
//! Everything is read through [`ReadAt`]; nothing is ever written. What a partition says is believed only if the
//! file system was unmounted cleanly, has no feature that is not known here, and agrees with itself where it
//! counts its free space twice (INV-13); if its checksums match, and none of its own structures lies in what it calls
//! free (INV-45). Everything else is in use. Any content is possible: no read leaves the
//! partition, no loop goes on without bound, and memory is bounded by the size of the disk: two bits
//! for 4 KiB.
#![forbid(unsafe_code)]

pub mod boot;
mod bytes;
mod checksum;
mod container;
mod exfat;
mod ext;
mod fat;
pub mod files;
mod free_map;
mod ntfs;
mod probe;
mod scan;
mod swap;
mod units;
mod unusable;
mod window;
mod xfs;

pub use free_map::FreeMap;
pub use scan::{DiskReport, PartitionReport, scan};
pub use unusable::Unusable;
pub use vhd_partition::{ReadAt, Scheme};
