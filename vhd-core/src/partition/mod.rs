//! Partition tables of a disk, as far as the jobs here need them: which partition a range lies in, and where the
//! backup of a GPT is.
//!
//! A disk comes from a guest, who may write anything: every number is checked before it is used, and nothing is
//! read or kept beyond fixed bounds.

mod error;
mod gpt;
mod mbr;
mod relocate;

pub use error::PartitionError;
pub use gpt::{Gpt, GptHeader};
pub use mbr::is_protective;
pub(crate) use relocate::{Relocated, backup_ranges, relocate};

use crate::device::{ByteRange, Disk};
use crate::units::SECTOR_SIZE;

/// The kinds of partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// The table of the first sector, with extended partitions.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts: from 1, logical ones of an MBR from 5.
    pub number: u32,
    /// Where it is.
    pub range: ByteRange,
    /// Its type: two hexadecimal digits, or a GUID.
    pub kind: String,
    /// Its name, if it has one.
    pub name: Option<String>,
}

/// The partitions of a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionTable {
    /// The kind of table.
    pub scheme: Scheme,
    /// The partitions, by number.
    pub partitions: Vec<Partition>,
}

impl PartitionTable {
    /// The partitions of a disk; `None` for a disk without a table. A GPT whose first header is damaged is read
    /// from its backup.
    ///
    /// # Errors
    /// If the disk can't be read, or says that it has a GPT and neither header is valid.
    pub fn read(disk: &Disk) -> Result<Option<Self>, PartitionError> {
        let sectors = disk.size() / SECTOR_SIZE;
        let Some(boot) = mbr::read_boot_sector(disk)? else {
            return Ok(None);
        };
        if is_protective(&boot) {
            let gpt = Gpt::primary(disk).or_else(|error| {
                let backup = Gpt::at(disk, sectors.saturating_sub(1));
                backup.map_err(|_| error)
            })?;
            return Ok(Some(Self {
                scheme: Scheme::Gpt,
                partitions: gpt.partitions(),
            }));
        }
        Ok(Some(Self {
            scheme: Scheme::Mbr,
            partitions: mbr::partitions(disk, &boot)?,
        }))
    }
}

/// Reads whole sectors.
fn read_sectors(disk: &Disk, lba: u64, bytes: &mut [u8]) -> Result<(), PartitionError> {
    let offset = lba.saturating_mul(SECTOR_SIZE);
    disk.read_at(bytes, offset).map_err(PartitionError::Read)
}

/// The bytes of `count` sectors from `first`, cut at the end of 64 bits.
fn range_of(first: u64, count: u64) -> ByteRange {
    ByteRange::new(first.saturating_mul(SECTOR_SIZE), count.saturating_mul(SECTOR_SIZE))
}
