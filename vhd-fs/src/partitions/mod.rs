//! Partition tables. Sectors are of 512 bytes, as on every VHD.

mod gpt;
mod mbr;

use std::fmt;

use crate::bytes::{byte, has};
use crate::probe::{boot_sector_file_system, recognise};
use crate::window::Window;
use crate::{ReadAt, Unusable};

pub(crate) const SECTOR: u64 = 512;

/// How a disk is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TableKind {
    /// Not at all: one file system on the whole disk, or nothing.
    None,
    /// By a master boot record.
    Mbr,
    /// By a GUID partition table.
    Gpt,
}

impl fmt::Display for TableKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
        })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Partition {
    pub(crate) number: u32,
    pub(crate) start: u64,
    pub(crate) len: u64,
    /// Its type says that it is a part of something larger.
    pub(crate) is_raid: bool,
}

impl Partition {
    pub(crate) fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

pub(crate) struct Found {
    pub(crate) table: TableKind,
    pub(crate) partitions: Vec<Partition>,
}

pub(crate) fn find(disk: &dyn ReadAt) -> Result<Found, Unusable> {
    let whole = Window::new(disk, 0, disk.size());
    let first = whole.peek(0, SECTOR)?;
    let entries = mbr::primary_entries(&first);
    // A boot sector of a file system ends like a master boot record, and its code may look like entries.
    let file_system = match boot_sector_file_system(&first) {
        Some(name) => Some(name),
        None => recognise(&whole)?,
    };
    let is_divided = has(&first, 510, &[0x55, 0xAA]) && entries.is_some_and(|entries| !entries.is_empty());
    match (is_divided, file_system) {
        (true, Some(name)) => Err(Unusable::Ambiguous("a disk with partitions", name)),
        (true, None) => divided(&whole, &first),
        (false, _) => Ok(Found {
            table: TableKind::None,
            partitions: vec![Partition {
                number: 0,
                start: 0,
                len: disk.size(),
                is_raid: false,
            }],
        }),
    }
}

fn divided(whole: &Window<'_>, first: &[u8]) -> Result<Found, Unusable> {
    let is_protective = (0..4).any(|slot| byte(first, 446 + slot * 16 + 4) == mbr::GPT_PROTECTIVE);
    if is_protective {
        return Ok(Found {
            table: TableKind::Gpt,
            partitions: gpt::partitions(whole)?,
        });
    }
    if has(&whole.peek(SECTOR, 8)?, 0, gpt::SIGNATURE) {
        return Err(Unusable::Ambiguous("a disk with an MBR", "one with a GPT"));
    }
    Ok(Found {
        table: TableKind::Mbr,
        partitions: mbr::partitions(whole, first)?,
    })
}
