//! FAT12, FAT16 and FAT32: a cluster whose entry is zero in every copy of the table is free.

use crate::bytes::{byte, count, has, index, le16, le32};
use crate::probe::is_bootable;
use crate::window::Window;
use crate::{FreeMap, Unusable};

pub(crate) const NAME: &str = "FAT";

const SECTOR: u64 = 512;
/// Bytes of a table that are in memory at once; a multiple of three, so that entries of 12 bits are whole.
const CHUNK: u64 = 48 << 10;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

struct Geometry {
    width: Width,
    fat_start: u64,
    fat_bytes: u64,
    fats: u64,
    data_start: u64,
    cluster: u64,
    clusters: u64,
}

pub(crate) fn is_boot_sector(sector: &[u8]) -> bool {
    let (bytes_per_sector, per_cluster) = (le16(sector, 11), byte(sector, 13));
    is_bootable(sector)
        && matches!(bytes_per_sector, 512 | 1024 | 2048 | 4096)
        && per_cluster.is_power_of_two()
        && le16(sector, 14) > 0
        && matches!(byte(sector, 16), 1 | 2)
        && (byte(sector, 21) >= 0xF8 || byte(sector, 21) == 0xF0)
        && (le16(sector, 22) > 0 || le32(sector, 36) > 0)
        && (le16(sector, 19) > 0 || le32(sector, 32) > 0)
}

pub(crate) fn recognise(window: &Window<'_>) -> Result<bool, Unusable> {
    Ok(is_boot_sector(&window.peek(0, SECTOR)?))
}

pub(crate) fn free_space(window: &Window<'_>) -> Result<FreeMap, Unusable> {
    let boot = window.read(0, SECTOR)?;
    let geometry = Geometry::of(window, &boot)?;
    check_clean(window, &boot, &geometry)?;
    let mut map = window.free_map();
    let mut free = 0;
    let len = geometry.table_len();
    let mut done = 0;
    while done < len {
        let take = CHUNK.min(len - done);
        let table = window.read(geometry.fat_start + done, take)?;
        for copy in 1..geometry.fats {
            let at = geometry.fat_start + copy * geometry.fat_bytes + done;
            if window.read(at, take)? != table {
                return Err(window.damaged("the copies of its table differ"));
            }
        }
        free += geometry.add_free(window, &table, done, &mut map);
        done += take;
    }
    geometry.check_information(window, &boot, free)?;
    Ok(map)
}

impl Geometry {
    fn of(window: &Window<'_>, boot: &[u8]) -> Result<Self, Unusable> {
        let sector = u64::from(le16(boot, 11));
        let cluster = sector * u64::from(byte(boot, 13));
        let reserved = u64::from(le16(boot, 14));
        let fats = u64::from(byte(boot, 16));
        let root_entries = u64::from(le16(boot, 17));
        let is_wide = le16(boot, 22) == 0;
        let fat_sectors = if is_wide {
            u64::from(le32(boot, 36))
        } else {
            u64::from(le16(boot, 22))
        };
        let total = match le16(boot, 19) {
            0 => u64::from(le32(boot, 32)),
            sectors => u64::from(sectors),
        };
        if !is_boot_sector(boot) || total * sector > window.len {
            return Err(window.damaged("it is larger than its partition"));
        }
        let data_sector = reserved + fats * fat_sectors + (root_entries * 32).div_ceil(sector);
        let data_sectors = total.checked_sub(data_sector);
        let clusters = data_sectors.map(|sectors| sectors * sector / cluster);
        let clusters = clusters.ok_or_else(|| window.damaged("it has no room for data"))?;
        let geometry = Self {
            width: match clusters {
                _ if is_wide => Width::ThirtyTwo,
                0..4085 => Width::Twelve,
                _ => Width::Sixteen,
            },
            fat_start: reserved * sector,
            fat_bytes: fat_sectors * sector,
            fats,
            data_start: data_sector * sector,
            cluster,
            clusters,
        };
        if geometry.table_len() > geometry.fat_bytes {
            return Err(window.damaged("its table is too short"));
        }
        Ok(geometry)
    }

    /// Bytes of the table that have entries of clusters; the first two are no clusters.
    fn table_len(&self) -> u64 {
        let entries = self.clusters + 2;
        match self.width {
            Width::Twelve => (entries * 3).div_ceil(2),
            Width::Sixteen => entries * 2,
            Width::ThirtyTwo => entries * 4,
        }
    }

    fn entry(&self, table: &[u8], number: u64) -> u32 {
        match self.width {
            Width::Twelve => {
                let both = le16(table, index(number * 3 / 2));
                u32::from(if number.is_multiple_of(2) {
                    both & 0xFFF
                } else {
                    both >> 4
                })
            }
            Width::Sixteen => u32::from(le16(table, index(number * 2))),
            Width::ThirtyTwo => le32(table, index(number * 4)) & 0x0FFF_FFFF,
        }
    }

    /// INV-45: the root directory of FAT32 is in a cluster. INV-13: FAT32 counts its free clusters, where that is known.
    fn check_information(&self, window: &Window<'_>, boot: &[u8], free: u64) -> Result<(), Unusable> {
        if self.width != Width::ThirtyTwo {
            return Ok(());
        }
        let root = u64::from(le32(boot, 44));
        if !self.is_cluster(root) {
            return Err(window.damaged("its root directory is not inside it"));
        }
        self.claim(window, root);
        let sector = u64::from(le16(boot, 48));
        if matches!(sector, 0 | 0xFFFF) {
            return Ok(());
        }
        let information = window.read(sector * u64::from(le16(boot, 11)), SECTOR)?;
        let has_signatures = has(&information, 0, b"RRaA") && has(&information, 484, b"rrAa");
        let counted = le32(&information, 488);
        if has_signatures && counted != u32::MAX && u64::from(counted) != free {
            return Err(window.damaged("it has another number of free clusters than it says"));
        }
        Ok(())
    }

    fn is_cluster(&self, number: u64) -> bool {
        (2..self.clusters + 2).contains(&number)
    }

    fn claim(&self, window: &Window<'_>, cluster: u64) {
        window.claim(self.data_start + (cluster - 2) * self.cluster, self.cluster);
    }

    /// Adds the free clusters of a part of the table that begins `done` bytes from its start; answers how many there
    /// are. What a cluster in use leads to is in use (INV-45).
    fn add_free(&self, window: &Window<'_>, table: &[u8], done: u64, map: &mut FreeMap) -> u64 {
        let (first, entries) = match self.width {
            Width::Twelve => (done * 2 / 3, count(table.len()) * 2 / 3),
            Width::Sixteen => (done / 2, count(table.len()) / 2),
            Width::ThirtyTwo => (done / 4, count(table.len()) / 4),
        };
        let mut free = 0;
        for number in 0..entries {
            let cluster = first + number;
            if !self.is_cluster(cluster) {
                continue;
            }
            match u64::from(self.entry(table, number)) {
                0 => {
                    free += 1;
                    map.add(self.data_start + (cluster - 2) * self.cluster, self.cluster);
                }
                next if self.is_cluster(next) => self.claim(window, next),
                _ => {}
            }
        }
        free
    }
}

/// INV-13: Windows keeps two bits of the second entry, Linux one of the boot sector, set while it is mounted.
fn check_clean(window: &Window<'_>, boot: &[u8], geometry: &Geometry) -> Result<(), Unusable> {
    let start = window.read(geometry.fat_start, 8)?;
    let (mark, wanted, flags_at) = match geometry.width {
        Width::Twelve => (0, 0, 37),
        Width::Sixteen => (geometry.entry(&start, 1), 0xC000, 37),
        Width::ThirtyTwo => (geometry.entry(&start, 1), 0x0C00_0000, 65),
    };
    if byte(&start, 0) != byte(boot, 21) {
        return Err(window.damaged("its table does not begin as it must"));
    }
    if mark & wanted != wanted || byte(boot, flags_at) & 3 != 0 {
        return Err(window.dirty("it was not unmounted"));
    }
    // Bit 7: only one copy of the table is kept.
    if geometry.width == Width::ThirtyTwo && le16(boot, 40) & 0x80 != 0 {
        return Err(window.unsupported("a table without copies"));
    }
    Ok(())
}
