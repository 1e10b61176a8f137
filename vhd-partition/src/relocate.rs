//! Moving the backup of a GPT to a new end of its disk.
//!
//! INV-44: what is overwritten is the first header, the protective MBR, sectors that are proven to be a backup of this
//! table, and empty ones. Nothing that the first table uses is touched.

use std::ops::Range;

use crate::backup::{all, in_use};
use crate::gpt::{Gpt, GptHeader, PRIMARY};
use crate::mbr::Mbr;
use crate::source::{SECTOR, overlap, read, u64_from, usize_from};
use crate::{ReadAt, TableError};

/// Bytes to write, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Patch {
    /// The offset on the disk.
    pub offset: u64,
    /// What belongs there.
    pub bytes: Vec<u8>,
}

impl Patch {
    fn range(&self) -> Range<u64> {
        self.offset..self.offset + u64_from(self.bytes.len())
    }
}

/// What has to be written so that a GPT ends with its disk.
#[derive(Clone, Debug)]
pub struct Relocation {
    patches: Vec<Patch>,
}

impl Relocation {
    /// The patches, in this order: the new backup, the first header, zeroes where an old backup was, the protective MBR.
    /// Written and flushed one after the other they leave a valid first table at every moment. An old backup's header
    /// goes after its entries, and the MBR last: they tell an interrupted move where the old backup is.
    #[must_use]
    pub fn patches(&self) -> &[Patch] {
        &self.patches
    }

    /// Whether every byte of a range is in a patch.
    #[must_use]
    pub fn covers(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            let mut ranges = self.patches.iter().map(Patch::range);
            let Some(patch) = ranges.find(|patch| patch.contains(&at)) else {
                return false;
            };
            at = patch.end;
        }
        true
    }
}

/// What has to be written so that the GPT of a disk ends where the disk will, at `size` bytes; `None` if it has no GPT
/// with a protective MBR.
///
/// # Errors
/// If the disk cannot be read, the first table is damaged, its backup is none or disagrees with it, or there is no
/// empty place for a new one.
pub fn relocate(disk: &dyn ReadAt, size: u64) -> Result<Option<Relocation>, TableError> {
    let Some(mbr) = Mbr::read(disk)?.filter(Mbr::is_protective) else {
        return Ok(None);
    };
    let gpt = Gpt::primary(disk)?;
    let unit = gpt.sector_size();
    let sectors = size / unit;
    let old = all(disk, &gpt, &mbr)?;
    let place = new_place(&gpt, &mbr, sectors)?;
    check_empty(disk, &gpt, &place, &old)?;
    let last = place.end - 1;
    let moved = |own, other, array| gpt.header().moved(own, other, array, place.start - 1).encode();
    let primary = moved(PRIMARY, last, gpt.header().array().start);
    let backup = moved(last, PRIMARY, place.start);
    let patch = |lba: u64, bytes| Patch {
        offset: lba * unit,
        bytes,
    };
    let mut patches = vec![
        patch(place.start, [gpt.array(), &backup].concat()),
        patch(PRIMARY, primary),
    ];
    let outdated = old.iter().flat_map(|range| without(range, &place));
    patches.extend(outdated.map(|range| patch(range.start, vec![0; usize_from((range.end - range.start) * unit)])));
    patches.push(patch(0, mbr.grown(size / SECTOR)));
    Ok(Some(Relocation { patches }))
}

/// The sectors of the new backup on a disk of `sectors` sectors: entries, and the header in the last one.
fn new_place(gpt: &Gpt, mbr: &Mbr, sectors: u64) -> Result<Range<u64>, TableError> {
    let header = gpt.header();
    let start = sectors.saturating_sub(1 + header.array_sectors());
    let place = start..sectors;
    let own = header.array();
    let is_behind = own.end > header.first_usable();
    if is_behind || start <= own.end || start <= header.first_usable() {
        return Err(TableError::OwnTableInTheWay {
            first: own.start,
            last: own.end.saturating_sub(1),
            backup: start,
        });
    }
    let partitions = gpt.partitions();
    let hybrid = mbr.beside_protective();
    let unit = gpt.sector_size();
    let mut ends = partitions
        .iter()
        .chain(&hybrid)
        .map(|partition| (partition.number, partition.end().div_ceil(unit)));
    if let Some((number, end)) = ends.find(|(_, end)| *end > start) {
        return Err(TableError::NoRoom {
            number,
            last: end.saturating_sub(1),
            backup: start,
        });
    }
    // Partitions are before the new place: what is left to ask is whether one lies over the table itself.
    let table = [0..PRIMARY + 1, own];
    let over_table = |range: &&Range<u64>| table.iter().any(|table| overlap(table, range));
    match in_use(gpt, mbr)[table.len()..].iter().find(over_table) {
        None => Ok(place),
        Some(range) => Err(TableError::OwnTableInTheWay {
            first: range.start,
            last: range.end.saturating_sub(1),
            backup: start,
        }),
    }
}

/// Requires that the new place, as far as it is on the disk already, holds nothing but zeroes and what is left of
/// backups: of an old one, or of a move that was interrupted.
fn check_empty(disk: &dyn ReadAt, gpt: &Gpt, place: &Range<u64>, old: &[Range<u64>]) -> Result<(), TableError> {
    let unit = gpt.sector_size();
    let sectors = disk.size() / unit;
    for lba in place.start..place.end.min(sectors) {
        if old.iter().any(|range| range.contains(&lba)) {
            continue;
        }
        let sector = read(disk, lba * unit, unit)?.unwrap_or_default();
        let is_entries = || gpt.array().chunks_exact(sector.len()).any(|part| part == sector);
        if sector.iter().all(|&byte| byte == 0) || is_entries() || is_header_of(gpt, &sector, lba, place.end) {
            continue;
        }
        return Err(TableError::PlaceInUse {
            lba,
            first: place.start,
            last: place.end - 1,
        });
    }
    Ok(())
}

fn is_header_of(gpt: &Gpt, sector: &[u8], lba: u64, sectors: u64) -> bool {
    let is_backup = |found: GptHeader| found.other_lba() == PRIMARY && found.disk_guid() == gpt.header().disk_guid();
    GptHeader::decode(sector, lba, sectors).is_ok_and(is_backup)
}

/// What of a range is outside another one.
fn without(range: &Range<u64>, other: &Range<u64>) -> Vec<Range<u64>> {
    let before = range.start..range.end.min(other.start);
    let behind = range.start.max(other.end)..range.end;
    [before, behind].into_iter().filter(|part| !part.is_empty()).collect()
}
