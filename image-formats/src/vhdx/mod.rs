//! VHDX and AVHDX, after the public specification MS-VHDX.
//!
//! ```text
//! image.rs      one open image: opening it, and where its bytes are
//! header.rs     file identifier and the two headers          crc32c.rs   the checksum of all structures
//! log.rs        the entries to replay                        patched.rs  the file with these entries, in memory
//! region.rs     region tables                                metadata.rs, locator.rs   what the disk is, and its parent
//! table.rs      the block allocation table                   bitmap.rs   sector bitmaps
//! ```
//!
//! Opening goes in the order of the specification: identifier, headers, log, regions, metadata, table. The log of an image
//! that was not closed is replayed in memory; the file stays as it is.

mod bitmap;
mod crc32c;
mod header;
mod image;
mod locator;
mod log;
mod metadata;
mod patched;
mod region;
mod table;

pub use header::{Header, read_header};
pub use image::{Image, LogState, Oddity};
pub use locator::{ParentKey, ParentLocator};
pub use metadata::{DiskType, Metadata};
pub use table::Usage;
pub use uuid::Uuid;

/// The grid on which regions and blocks lie.
pub(crate) const MIB: u64 = 1 << 20;

/// What a VHDX file begins with.
pub const SIGNATURE: &[u8; 8] = b"vhdxfile";
