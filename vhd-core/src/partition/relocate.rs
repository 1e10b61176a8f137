//! Moving the backup of a GPT to the end of a disk that has grown.

use super::gpt::PRIMARY;
use super::{Gpt, GptHeader, PartitionError, is_protective, mbr, range_of, read_sectors};
use crate::device::{ByteRange, Disk};
use crate::units::{SECTOR_SIZE, u64_from, usize_from};
use zerocopy::little_endian::{U32, U64};

const SECTOR: usize = usize_from(SECTOR_SIZE);

/// What has to be written so that a GPT ends with its disk.
pub(crate) struct Relocated {
    patches: Vec<(u64, Vec<u8>)>,
}

impl Relocated {
    /// Offsets on the disk, and the bytes that belong there. Written and flushed one after the other, they leave a
    /// table that can be used at every moment: the first header leads to a backup that is there.
    pub(crate) fn patches(&self) -> &[(u64, Vec<u8>)] {
        &self.patches
    }

    /// Whether a range lies in what has to be written.
    pub(crate) fn covers(&self, range: ByteRange) -> bool {
        let patched = |at: u64| {
            let holds = |(start, bytes): &&(u64, Vec<u8>)| (*start..start + u64_from(bytes.len())).contains(&at);
            self.patches.iter().any(|patch| holds(&patch))
        };
        (range.start..range.end()).step_by(SECTOR).all(patched)
    }
}

/// What has to be written so that the GPT of a disk ends where the disk will, at `size` bytes; `None` if it has no
/// GPT.
///
/// # Errors
/// If the first header or its entries are damaged, or the backup would lie over a partition.
pub(crate) fn relocate(disk: &Disk, size: u64) -> Result<Option<Relocated>, PartitionError> {
    let Some(boot) = mbr::read_boot_sector(disk)?.filter(is_protective) else {
        return Ok(None);
    };
    let sectors = size / SECTOR_SIZE;
    let gpt = Gpt::primary(disk)?;
    let last = sectors.saturating_sub(1);
    let array = last.saturating_sub(gpt.header.array_sectors());
    check_room(&gpt, array)?;
    let usable = array.saturating_sub(1);
    let own_array = gpt.header.raw.array_lba.get();
    let primary = gpt.header.moved(PRIMARY, last, own_array, usable);
    let backup = gpt.header.moved(last, PRIMARY, array, usable);
    let mut patches = vec![
        (array * SECTOR_SIZE, [&gpt.array[..], &backup.encode()].concat()),
        (PRIMARY * SECTOR_SIZE, primary.encode().to_vec()),
        (0, mbr::grown_protective(&boot, sectors).to_vec()),
    ];
    patches.extend(outdated_backup(disk, &gpt, array)?);
    Ok(Some(Relocated { patches }))
}

/// Where the backup of the disk's GPT is, header and entries; nothing if there is none where the first header says.
pub(crate) fn backup_ranges(disk: &Disk) -> Result<Vec<ByteRange>, PartitionError> {
    if mbr::read_boot_sector(disk)?.filter(is_protective).is_none() {
        return Ok(Vec::new());
    }
    let lba = Gpt::primary(disk)?.header.other_lba();
    let Ok(backup) = Gpt::at(disk, lba) else {
        return Ok(Vec::new());
    };
    let entries = range_of(backup.header.raw.array_lba.get(), backup.header.array_sectors());
    Ok(vec![entries, range_of(lba, 1)])
}

fn check_room(gpt: &Gpt, array: u64) -> Result<(), PartitionError> {
    let ends = gpt.partitions().into_iter();
    let mut ends = ends.map(|partition| (partition.number, partition.range.end() / SECTOR_SIZE));
    match ends.find(|(_, end)| *end > array) {
        None => Ok(()),
        Some((number, end)) => Err(PartitionError::NoRoom {
            number,
            last: end.saturating_sub(1),
            backup: array,
        }),
    }
}

/// Zeroes where the backup was, as far as it does not go there again: found there later, it would be taken for one.
/// What is no backup, or lies in a partition, is left alone.
fn outdated_backup(disk: &Disk, gpt: &Gpt, array: u64) -> Result<Vec<(u64, Vec<u8>)>, PartitionError> {
    let (old, sectors) = (gpt.header.other_lba(), disk.size() / SECTOR_SIZE);
    if old <= PRIMARY || old >= sectors {
        return Ok(Vec::new());
    }
    let mut sector = [0; SECTOR];
    read_sectors(disk, old, &mut sector)?;
    let Ok(header) = GptHeader::decode(&sector, old, sectors) else {
        return Ok(Vec::new());
    };
    let mut places = vec![range_of(old, 1)];
    if Gpt::at(disk, old).is_ok() {
        places.push(range_of(header.raw.array_lba.get(), header.array_sectors()));
    }
    let partitions = gpt.partitions();
    let in_use = |range: &ByteRange| {
        let mut used = partitions.iter().map(|partition| partition.range);
        used.any(|used| used.start < range.end() && range.start < used.end())
    };
    let before = places.into_iter().filter_map(|range| {
        let end = range.end().min(array * SECTOR_SIZE);
        (range.start < end).then(|| ByteRange::new(range.start, end - range.start))
    });
    let free = before.filter(|range| !in_use(range));
    Ok(free
        .map(|range| (range.start, vec![0; usize_from(range.len)]))
        .collect())
}

impl GptHeader {
    /// The same with other places, and its checksum.
    fn moved(&self, own_lba: u64, other_lba: u64, array_lba: u64, last_usable: u64) -> Self {
        let mut moved = *self;
        moved.raw.own_lba = U64::new(own_lba);
        moved.raw.other_lba = U64::new(other_lba);
        moved.raw.array_lba = U64::new(array_lba);
        moved.raw.last_usable = U64::new(last_usable);
        moved.raw.checksum = U32::new(moved.sum());
        moved
    }
}
