//! Partition tables: MBR with logical partitions, and GPT.
//!
//! ```text
//!   table.rs      Table::read: the partitions of a disk, and what is odd about its tables
//!   mbr.rs        the first sector; the list of logical partitions
//!   gpt.rs        one GPT: a header and its entries
//!   backup.rs     which sectors are proven to be the backup of a GPT
//!   relocate.rs   moving the backup to a new end of the disk
//!   oddity.rs     what is odd, as data: the caller decides what it accepts
//! ```
//!
//! A guest writes what it likes into its partition table, so nothing here is trusted: every number is checked before
//! it is used, memory and reads are bounded whatever the disk holds, and nothing panics. This crate never writes; a
//! [`Relocation`] is a list of patches that the caller applies.
//!
//! One reader serves two kinds of caller. Those that name what is there (`vhd diff --partitions`, the check of what a
//! smaller disk would lose) use every partition that was found. Those that act on it (free space) ask
//! [`Oddity::is_doubtful`] first.
#![forbid(unsafe_code)]

mod backup;
mod error;
mod gpt;
mod mbr;
mod oddity;
mod relocate;
mod source;
mod table;

pub use backup::proven_backups;
pub use error::TableError;
pub use gpt::{Gpt, GptHeader};
pub use oddity::Oddity;
pub use relocate::{Patch, Relocation, relocate};
pub use source::ReadAt;
pub use table::{Partition, PartitionType, Scheme, Table};
