//! The VHD format as pure functions: bytes in, validated types out, and back. Nothing here does I/O.
//!
//! ```text
//! fixed      | disk ................................ | footer |
//!
//! sparse     | footer copy | header | locators, table | block | block | ... | footer |
//!                 512         1024                       |
//!                                                        +-- bitmap (whole sectors) + data
//! ```
//!
//! A reader starts at the [`Footer`] in the last sector (or its copy in the first). For a fixed disk
//! that is all there is. For a dynamic or differencing disk it leads to the [`DynamicHeader`], which
//! leads to the block allocation table ([`TableEntry`]) and to the parent's locators
//! ([`LocatorEntry`]). [`BlockLayout`] is the arithmetic of blocks, the functions
//! [`word_from_bytes`], [`word_to_bytes`] and [`mask`] are the bit order of their sector bitmaps.
//!
//! All integers on disk are big-endian; only the text of the `W2ru` and `W2ku` locators is
//! little-endian. Each file has a raw structure (private, the byte layout) and a validated type
//! (public); what can't be read is a [`FormatError`], what can be read but deserves a remark is a
//! [`FormatOddity`]. Nothing here knows the length of the file: whether a header, a table or a block
//! lies inside it is for the caller to check.

mod bitmap;
mod block;
mod checksum;
mod delta_record;
mod disk_type;
mod error;
mod footer;
mod geometry;
mod header;
mod locator;
mod oddity;
mod parent_name;
mod table;
mod timestamp;
mod unique_id;

pub use bitmap::{SECTORS_PER_WORD, mask, word_from_bytes, word_to_bytes};
pub use block::{BlockLayout, DEFAULT_BLOCK_SIZE, MAX_BLOCK_SIZE, MIN_BLOCK_SIZE, MIN_CREATE_BLOCK_SIZE};
pub use checksum::checksum;
pub use delta_record::{DELTA_RECORD_SIZE, DeltaRecord};
pub use disk_type::DiskType;
pub use error::FormatError;
pub use footer::{
    COOKIE, FOOTER_SIZE, Footer, LEGACY_FOOTER_SIZE, MAX_DISK_SIZE, has_footer_cookie, reconstruct_footer,
    reseal_footer,
};
pub use geometry::Geometry;
pub use header::{
    DynamicHeader, HEADER_SIZE, LOCATOR_COUNT, block_layouts, check_table_covers, has_header_cookie, named_parent,
    reconstruct_header, reseal_header,
};
pub use locator::{LocatorEntry, MAX_LOCATOR_LENGTH, PlatformCode, decode_locator, encode_locator_utf16le};
pub use oddity::{FormatOddity, OdditySeverity};
pub use parent_name::{PARENT_NAME_UNITS, ParentName};
pub use table::{ENTRIES_PER_SECTOR, TABLE_ENTRY_SIZE, TableEntry, UNUSED_ENTRY, table_bytes};
pub use timestamp::Timestamp;
pub use unique_id::UniqueId;
