//! How much of an image is taken into memory.

/// Bytes; the longest log that is replayed. Windows writes logs of 1 MiB.
pub const MAX_LOG: u64 = 64 << 20;

/// Bytes; the longest block table that is loaded: that of 64 TiB in blocks of 1 MiB, with its sector bitmaps.
pub const MAX_TABLE: u64 = 513 << 20;

/// Bytes; the longest first table of a qcow2: qemu takes no longer one.
pub const MAX_L1: u64 = 32 << 20;

/// Bytes of tables of the second level that an image keeps in memory.
pub const TABLE_CACHE: u64 = 32 << 20;

/// Bytes of sector bitmaps that an image keeps in memory.
pub const BITMAP_CACHE: u64 = 16 << 20;
