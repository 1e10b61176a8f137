//! qcow2, versions 2 and 3, after its public specification.
//!
//! ```text
//! image.rs    one open image, and where its bytes are     header.rs   what the header says
//! tables.rs   the two levels of tables                    writer.rs   a new image, written in one go
//! ```
//!
//! Read: plain, zero and deflated clusters, images with backing files. Internal snapshots are not looked at: the disk is its
//! present state. Refused by name: encryption, external data files, extended tables, zstd clusters, unknown features.

mod header;
mod image;
mod tables;
mod writer;

pub use header::Header;
pub use image::Image;
pub use writer::{CLUSTER, MAX_BACKING_NAME, Writer};

/// What a qcow2 file begins with.
pub const SIGNATURE: &[u8; 4] = b"QFI\xFB";

/// Bits of a table entry that are an offset in the file.
pub(crate) const OFFSET: u64 = 0x00FF_FFFF_FFFF_FE00;
/// A cluster that is compressed.
pub(crate) const COMPRESSED: u64 = 1 << 62;
/// A cluster that reads zero.
pub(crate) const ZERO: u64 = 1;
/// The one reference to a cluster: it can be written in place.
pub(crate) const COPIED: u64 = 1 << 63;
