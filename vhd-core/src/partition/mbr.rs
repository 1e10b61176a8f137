//! The partition table of the first sector.

use std::collections::HashSet;

use super::{Partition, PartitionError, range_of, read_sectors};
use crate::device::Disk;
use crate::units::{SECTOR_SIZE, usize_from};

const SECTOR: usize = usize_from(SECTOR_SIZE);
/// Where the four entries begin, and the bytes of each.
const TABLE: usize = 446;
const ENTRY: usize = 16;
const ENTRIES: usize = 4;
const SIGNATURE: [u8; 2] = [0x55, 0xAA];
/// The type of the one partition that covers a disk with a GPT.
const PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
/// Logical partitions that are followed.
const MAX_LOGICAL: usize = 256;
const FIRST_LOGICAL: u32 = 5;

/// One of the four entries of a table.
#[derive(Clone, Copy)]
struct Entry {
    status: u8,
    kind: u8,
    first: u64,
    count: u64,
}

impl Entry {
    fn is_used(self) -> bool {
        self.kind != 0 && self.count > 0
    }

    fn is_extended(self) -> bool {
        EXTENDED.contains(&self.kind)
    }

    fn partition(self, number: u32, base: u64) -> Partition {
        Partition {
            number,
            range: range_of(base.saturating_add(self.first), self.count),
            kind: format!("{:02x}", self.kind),
            name: None,
        }
    }
}

/// The first sector, if it bears a partition table: boot sectors of file systems have the signature too, but
/// code where the entries are.
pub(super) fn read_boot_sector(disk: &Disk) -> Result<Option<[u8; SECTOR]>, PartitionError> {
    if disk.size() < SECTOR_SIZE {
        return Ok(None);
    }
    let mut sector = [0; SECTOR];
    read_sectors(disk, 0, &mut sector)?;
    let sound = entries(&sector).iter().all(|entry| entry.status & 0x7F == 0);
    let used = entries(&sector).iter().any(|entry| entry.is_used());
    Ok((has_signature(&sector) && sound && used).then_some(sector))
}

/// Whether a first sector says that the disk has a GPT.
#[must_use]
pub fn is_protective(sector: &[u8; SECTOR]) -> bool {
    has_signature(sector) && entries(sector).iter().any(|entry| entry.kind == PROTECTIVE)
}

fn has_signature(sector: &[u8; SECTOR]) -> bool {
    sector.ends_with(&SIGNATURE)
}

fn entries(sector: &[u8; SECTOR]) -> [Entry; ENTRIES] {
    std::array::from_fn(|index| {
        let at = TABLE + index * ENTRY;
        let number = |at: usize| {
            u64::from(u32::from_le_bytes([
                sector[at],
                sector[at + 1],
                sector[at + 2],
                sector[at + 3],
            ]))
        };
        Entry {
            status: sector[at],
            kind: sector[at + 4],
            first: number(at + 8),
            count: number(at + 12),
        }
    })
}

/// The first sector with the protective partition reaching to the end of a disk of `sectors` sectors.
pub(super) fn grown_protective(sector: &[u8; SECTOR], sectors: u64) -> [u8; SECTOR] {
    let mut grown = *sector;
    for (index, entry) in entries(sector).iter().enumerate() {
        if entry.kind == PROTECTIVE {
            let count = u32::try_from(sectors.saturating_sub(entry.first)).unwrap_or(u32::MAX);
            let at = TABLE + index * ENTRY + 12;
            grown[at..at + 4].copy_from_slice(&count.to_le_bytes());
        }
    }
    grown
}

/// The partitions of a table, logical ones included.
pub(super) fn partitions(disk: &Disk, boot: &[u8; SECTOR]) -> Result<Vec<Partition>, PartitionError> {
    let mut partitions = Vec::new();
    for (number, entry) in (1..).zip(entries(boot)).filter(|(_, entry)| entry.is_used()) {
        if entry.is_extended() {
            add_logical(disk, entry.first, &mut partitions)?;
        } else {
            partitions.push(entry.partition(number, 0));
        }
    }
    partitions.sort_by_key(|partition| partition.number);
    Ok(partitions)
}

/// Follows the list of logical partitions in the extended one at sector `base`.
fn add_logical(disk: &Disk, base: u64, partitions: &mut Vec<Partition>) -> Result<(), PartitionError> {
    let mut seen = HashSet::new();
    let mut at = base;
    for number in (FIRST_LOGICAL..).take(MAX_LOGICAL) {
        if !seen.insert(at) || at >= disk.size() / SECTOR_SIZE {
            break;
        }
        let mut sector = [0; SECTOR];
        read_sectors(disk, at, &mut sector)?;
        if !has_signature(&sector) {
            break;
        }
        let [own, next, ..] = entries(&sector);
        if own.is_used() {
            partitions.push(own.partition(number, at));
        }
        if !next.is_used() || !next.is_extended() {
            break;
        }
        at = base.saturating_add(next.first);
    }
    Ok(())
}
