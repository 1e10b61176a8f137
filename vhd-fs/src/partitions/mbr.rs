//! The master boot record: four entries, and a chain of logical partitions in one of them.

use super::{Partition, SECTOR};
use crate::Unusable;
use crate::bytes::{byte, has, le32};
use crate::window::Window;

pub(super) const GPT_PROTECTIVE: u8 = 0xEE;
const EXTENDED: [u8; 3] = [0x05, 0x0F, 0x85];
const LINUX_RAID: u8 = 0xFD;
const ENTRIES_AT: usize = 446;
const ENTRY: usize = 16;
/// The most logical partitions that are followed.
const MAX_LOGICAL: u32 = 256;

/// An entry in use.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    slot: u32,
    kind: u8,
    first: u64,
    sectors: u64,
}

/// The entries in use; `None` if what stands there are no entries.
pub(super) fn primary_entries(sector: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    for slot in 0..4 {
        let at = ENTRIES_AT + usize::try_from(slot).unwrap_or(0) * ENTRY;
        let entry = Entry {
            slot,
            kind: byte(sector, at + 4),
            first: u64::from(le32(sector, at + 8)),
            sectors: u64::from(le32(sector, at + 12)),
        };
        if !matches!(byte(sector, at), 0 | 0x80) {
            return None;
        }
        if entry.kind != 0 && entry.sectors > 0 {
            entries.push(entry);
        }
    }
    Some(entries)
}

pub(super) fn partitions(disk: &Window<'_>, first: &[u8]) -> Result<Vec<Partition>, Unusable> {
    let mut found = Vec::new();
    for entry in primary_entries(first).unwrap_or_default() {
        if EXTENDED.contains(&entry.kind) {
            logical(disk, entry, &mut found)?;
        } else {
            found.push(partition(entry.slot + 1, entry.first, &entry));
        }
    }
    Ok(found)
}

fn partition(number: u32, first: u64, entry: &Entry) -> Partition {
    Partition {
        number,
        start: first * SECTOR,
        len: entry.sectors * SECTOR,
        is_raid: entry.kind == LINUX_RAID,
    }
}

/// Follows the chain of logical partitions. Each link is relative to the extended partition and must lead onwards.
fn logical(disk: &Window<'_>, extended: Entry, found: &mut Vec<Partition>) -> Result<(), Unusable> {
    let mut at = extended.first;
    for number in 5..5 + MAX_LOGICAL {
        let sector = disk.read(at * SECTOR, SECTOR)?;
        if !has(&sector, 510, &[0x55, 0xAA]) {
            return Err(Unusable::Table("the chain of logical partitions is broken"));
        }
        let entries = primary_entries(&sector).ok_or(Unusable::Table("a logical partition is damaged"))?;
        let mut next = None;
        for entry in entries {
            if EXTENDED.contains(&entry.kind) {
                next = Some(extended.first + entry.first);
            } else {
                found.push(partition(number, at + entry.first, &entry));
            }
        }
        match next {
            None => return Ok(()),
            Some(next) if next > at => at = next,
            Some(_) => return Err(Unusable::Table("the chain of logical partitions leads back")),
        }
    }
    Err(Unusable::Table("there are too many logical partitions"))
}
