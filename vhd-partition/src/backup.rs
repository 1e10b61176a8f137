//! Which sectors are proven to be the backup of a GPT.

use std::ops::Range;

use crate::gpt::{Gpt, PRIMARY};
use crate::mbr::Mbr;
use crate::oddity::Oddity;
use crate::source::overlap;
use crate::{ReadAt, TableError};

/// Sectors in which a backup may be that the first header does not name: the last one, and the last one of the disk
/// that the MBR describes.
pub(crate) fn places(sectors: u64, mbr: &Mbr) -> Vec<u64> {
    let mut places = vec![sectors.saturating_sub(1)];
    places.extend(mbr.protected_end());
    places
}

/// What the first table uses, in its sectors: MBR and header, its entries, and all partitions.
pub(crate) fn in_use(primary: &Gpt, mbr: &Mbr) -> Vec<Range<u64>> {
    let mut used = vec![0..PRIMARY + 1, primary.header().array()];
    let partitions = primary.partitions();
    let hybrid = mbr.beside_protective();
    let unit = primary.sector_size();
    used.extend(
        partitions
            .iter()
            .chain(&hybrid)
            .map(|partition| partition.start / unit..partition.end().div_ceil(unit)),
    );
    used
}

/// What is found where a backup may be.
pub(crate) enum Found {
    /// A backup of the table, in these sectors: entries and header.
    Backup([Range<u64>; 2]),
    /// The same with some entries cleared, by a move that was interrupted.
    Cleared([Range<u64>; 2], TableError),
    /// No valid header, or one whose entries are damaged.
    Nothing(TableError),
    /// A valid header that is no backup of this table, and why.
    Stranger(&'static str),
}

/// Looks for a backup of `primary` in sector `lba`. It is one only if it says so, holds the same, and neither its header
/// nor its entries lie in what the first table uses.
pub(crate) fn look(disk: &dyn ReadAt, primary: &Gpt, mbr: &Mbr, lba: u64) -> Result<Found, TableError> {
    let backup = match Gpt::with_any_entries(disk, primary.sector_size(), lba) {
        Ok(backup) => backup,
        Err(error @ TableError::Read(_)) => return Err(error),
        Err(error) => return Ok(Found::Nothing(error)),
    };
    let ranges = [backup.header().array(), lba..lba + 1];
    let used = in_use(primary, mbr);
    let is_in_use = |range: &Range<u64>| used.iter().any(|used| overlap(used, range));
    let problem = match () {
        () if lba == PRIMARY => Some("that is the first header itself"),
        () if backup.header().other_lba() != PRIMARY => Some("the header there names another sector as the first one"),
        () if backup.header().disk_guid() != primary.header().disk_guid() => {
            Some("the header there is of another disk")
        }
        () if is_in_use(&ranges[0]) => Some("the header there has its entries where the first table or a partition is"),
        () if is_in_use(&ranges[1]) => Some("that sector belongs to the first table or to a partition"),
        () if !backup.has_form_of(primary) => Some("the entries there have another number or size"),
        () => None,
    };
    if let Some(problem) = problem {
        return Ok(Found::Stranger(problem));
    }
    Ok(match backup.check_entries() {
        Ok(()) if backup.array() == primary.array() => Found::Backup(ranges),
        Ok(()) => Found::Stranger("the entries there are not the same"),
        Err(error) if backup.is_cleared_copy_of(primary) => Found::Cleared(ranges, error),
        Err(error) => Found::Nothing(error),
    })
}

/// What is odd about the backup of a valid first table.
pub(crate) fn oddity(disk: &dyn ReadAt, primary: &Gpt, mbr: &Mbr) -> Result<Option<Oddity>, TableError> {
    let lba = primary.header().other_lba();
    let last = (disk.size() / primary.sector_size()).saturating_sub(1);
    Ok(match look(disk, primary, mbr, lba)? {
        Found::Nothing(error) | Found::Cleared(_, error) => Some(Oddity::BackupDamaged(error)),
        Found::Stranger(problem) => Some(Oddity::BackupDisagrees(problem)),
        Found::Backup(_) if lba != last => Some(Oddity::BackupNotAtEnd { lba, last }),
        Found::Backup(_) => None,
    })
}

/// The sectors of all backups of a valid first table: of the one it names, and of those that an interrupted move has
/// left behind.
///
/// # Errors
/// If the table names a sector with a valid header that is no backup of it, or the disk cannot be read.
pub(crate) fn all(disk: &dyn ReadAt, primary: &Gpt, mbr: &Mbr) -> Result<Vec<Range<u64>>, TableError> {
    let named = primary.header().other_lba();
    let mut found = match look(disk, primary, mbr, named)? {
        Found::Backup(ranges) | Found::Cleared(ranges, _) => Vec::from(ranges),
        Found::Nothing(_) => Vec::new(),
        Found::Stranger(problem) => return Err(TableError::NotABackup { lba: named, problem }),
    };
    for lba in places(disk.size() / primary.sector_size(), mbr) {
        if found.iter().any(|range| range.contains(&lba)) {
            continue;
        }
        if let Found::Backup(ranges) | Found::Cleared(ranges, _) = look(disk, primary, mbr, lba)? {
            found.extend(ranges);
        }
    }
    Ok(found)
}

/// The bytes of the disk that are proven to be a backup of its GPT, entries and header; empty for a disk without one.
///
/// # Errors
/// If the disk cannot be read, its first table is damaged, or it names something else as its backup.
pub fn proven_backups(disk: &dyn ReadAt) -> Result<Vec<Range<u64>>, TableError> {
    let Some(mbr) = Mbr::read(disk)?.filter(Mbr::is_protective) else {
        return Ok(Vec::new());
    };
    let primary = Gpt::primary(disk)?;
    let unit = primary.sector_size();
    let ranges = all(disk, &primary, &mbr)?.into_iter();
    Ok(ranges.map(|range| range.start * unit..range.end * unit).collect())
}
