//! The partitions of a disk.

use std::fmt;

use uuid::Uuid;

use crate::backup;
use crate::gpt::{Gpt, PRIMARY};
use crate::mbr::Mbr;
use crate::oddity::Oddity;
use crate::source::{SECTOR, SECTOR_SIZES, overlap};
use crate::{ReadAt, TableError};

/// The kinds of partition table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// The table of the first sector, with extended partitions.
    Mbr,
    /// A GUID partition table.
    Gpt,
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mbr => "mbr",
            Self::Gpt => "gpt",
        })
    }
}

/// The type of a partition. Displayed as two hexadecimal digits, or as a GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartitionType {
    /// The byte in an MBR.
    Mbr(u8),
    /// The GUID in a GPT.
    Gpt(Uuid),
}

impl fmt::Display for PartitionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mbr(kind) => write!(f, "{kind:02x}"),
            Self::Gpt(kind) => kind.fmt(f),
        }
    }
}

/// A partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    /// Its number as Linux counts: from 1, logical ones of an MBR from 5.
    pub number: u32,
    /// Its first byte on the disk.
    pub start: u64,
    /// Bytes. A hostile table can name partitions behind the end of the disk ([`Oddity::OutsideDisk`]).
    pub len: u64,
    /// Its type.
    pub kind: PartitionType,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Its identity as Linux writes it (PARTUUID): a GUID, or the disk's signature and the number.
    pub identity: String,
    /// The attribute bits of a GPT; of an MBR the status byte, which is 0x80 for the active partition.
    pub attributes: u64,
}

impl Partition {
    /// The byte behind the partition, at most `u64::MAX`.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// The partition table of a disk.
#[derive(Debug)]
pub struct Table {
    /// The kind of table.
    pub scheme: Scheme,
    /// Bytes of the sectors that the table counts in: 512, or 4096 of some GPTs.
    pub sector_size: u64,
    /// The disk's identity as Linux writes it (PTUUID): a GUID, or eight hexadecimal digits.
    pub identity: String,
    /// The partitions, by number.
    pub partitions: Vec<Partition>,
    /// What is odd about the table; empty for a sound one.
    pub oddities: Vec<Oddity>,
}

impl Table {
    /// The partition table of a disk; `None` if it has none. A GPT whose first header is damaged is read from its
    /// backup.
    ///
    /// # Errors
    /// If the disk cannot be read, or says that it has a GPT and neither header is valid.
    pub fn read(disk: &dyn ReadAt) -> Result<Option<Self>, TableError> {
        let Some(mbr) = Mbr::read(disk)? else {
            return Self::without_mbr(disk);
        };
        let mut table = match mbr.is_protective() {
            true => Self::by_gpt(disk, &mbr)?,
            false => Self::by_mbr(disk, &mbr)?,
        };
        table.note_places(disk.size());
        Ok(Some(table))
    }

    /// A GPT that nothing announces.
    fn without_mbr(disk: &dyn ReadAt) -> Result<Option<Self>, TableError> {
        let Some(gpt) = first_valid(SECTOR_SIZES.map(|size| Gpt::at(disk, size, PRIMARY)))?.ok() else {
            return Ok(None);
        };
        let mut table = Self::of(&gpt);
        table.oddities.push(Oddity::NoProtectiveMbr);
        table.note_places(disk.size());
        Ok(Some(table))
    }

    fn by_mbr(disk: &dyn ReadAt, mbr: &Mbr) -> Result<Self, TableError> {
        let mut oddities = Vec::new();
        if first_valid([Gpt::primary(disk)])?.is_ok() {
            oddities.push(Oddity::GptBehindMbr);
        }
        Ok(Self {
            scheme: Scheme::Mbr,
            sector_size: SECTOR,
            identity: format!("{:08x}", mbr.disk_signature()),
            partitions: mbr.partitions(disk, &mut oddities)?,
            oddities,
        })
    }

    fn by_gpt(disk: &dyn ReadAt, mbr: &Mbr) -> Result<Self, TableError> {
        let mut table = match first_valid(SECTOR_SIZES.map(|size| Gpt::at(disk, size, PRIMARY)))? {
            Ok(gpt) => {
                let mut table = Self::of(&gpt);
                table.oddities.extend(backup::oddity(disk, &gpt, mbr)?);
                table
            }
            Err(error) => {
                let candidates = SECTOR_SIZES.into_iter().flat_map(|size| {
                    let places = backup::places(disk.size() / size, mbr);
                    places.into_iter().map(move |lba| Gpt::at(disk, size, lba))
                });
                let Ok(gpt) = first_valid(candidates)? else {
                    return Err(error);
                };
                let mut table = Self::of(&gpt);
                table.oddities.push(Oddity::PrimaryDamaged(error));
                table
            }
        };
        if !mbr.beside_protective().is_empty() {
            table.oddities.push(Oddity::HybridMbr);
        }
        Ok(table)
    }

    fn of(gpt: &Gpt) -> Self {
        let (mut partitions, mut oddities) = (Vec::new(), Vec::new());
        for entry in gpt.entries() {
            match entry {
                Ok(partition) => partitions.push(partition),
                Err(oddity) => oddities.push(oddity),
            }
        }
        if gpt.sector_size() != SECTOR {
            oddities.push(Oddity::SectorSize(gpt.sector_size()));
        }
        let tables = [0..PRIMARY + 1, gpt.header().array()];
        let tables = tables.map(|range| range.start * gpt.sector_size()..range.end * gpt.sector_size());
        let over_table = |partition: &&Partition| {
            let range = partition.start..partition.end();
            tables.iter().any(|table| overlap(table, &range))
        };
        let over_table = partitions.iter().filter(over_table);
        oddities.extend(over_table.map(|partition| Oddity::OverTable(partition.number)));
        Self {
            scheme: Scheme::Gpt,
            sector_size: gpt.sector_size(),
            identity: gpt.header().disk_guid().to_string(),
            partitions,
            oddities,
        }
    }

    /// Notes partitions that leave the disk or share space: of each at most one.
    fn note_places(&mut self, size: u64) {
        let outside = self.partitions.iter().filter(|partition| partition.end() > size);
        self.oddities
            .extend(outside.map(|partition| Oddity::OutsideDisk(partition.number)));
        let mut by_start: Vec<&Partition> = self.partitions.iter().collect();
        by_start.sort_by_key(|partition| partition.start);
        // The one that reaches furthest so far is the one to compare with: a long one may reach over several.
        let mut furthest: Option<&Partition> = None;
        for partition in by_start {
            if let Some(before) = furthest.filter(|before| before.end() > partition.start) {
                self.oddities.push(Oddity::Overlap(before.number, partition.number));
            }
            if furthest.is_none_or(|before| before.end() < partition.end()) {
                furthest = Some(partition);
            }
        }
        if self.scheme == Scheme::Mbr {
            let first = self.partitions.iter().filter(|partition| partition.start == 0);
            self.oddities
                .extend(first.map(|partition| Oddity::OverTable(partition.number)));
        }
    }
}

/// The first table that is valid, or why none is: the first reason that says more than that no header is there.
///
/// A disk that cannot be read is no reason to look elsewhere.
fn first_valid(
    candidates: impl IntoIterator<Item = Result<Gpt, TableError>>,
) -> Result<Result<Gpt, TableError>, TableError> {
    let mut reason = TableError::Signature { lba: PRIMARY };
    for candidate in candidates {
        match candidate {
            Ok(gpt) => return Ok(Ok(gpt)),
            Err(error @ TableError::Read(_)) => return Err(error),
            Err(error) if matches!(reason, TableError::Signature { .. }) => reason = error,
            Err(_) => {}
        }
    }
    Ok(Err(reason))
}
