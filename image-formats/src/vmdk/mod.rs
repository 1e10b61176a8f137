//! VMDK in one file: `monolithicSparse` and `streamOptimized`, after VMware's "Virtual Disk Format".
//!
//! ```text
//! image.rs    one open image, and where its bytes are     header.rs   header, footer and descriptor
//! ```
//!
//! Refused by name: disks in several files, images with a parent, ESX formats (`COWD`, `SE sparse`).

mod header;
mod image;

pub use header::Header;
pub use image::Image;

/// Bytes in a sector, in which the format counts.
pub(crate) const SECTOR: u64 = 512;
/// Entries in a grain table.
pub(crate) const ENTRIES: u64 = 512;
