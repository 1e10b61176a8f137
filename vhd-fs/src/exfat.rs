//! exFAT: the allocation bitmap, which an entry of the root directory leads to.

use crate::bytes::{byte, count, has, le16, le32, le64};
use crate::checksum::matches;
use crate::window::{Window, clear_runs};
use crate::{FreeMap, Unusable};

pub(crate) const NAME: &str = "exFAT";

const SECTOR: u64 = 512;
const ENTRY: usize = 32;
const BITMAP_ENTRY: u8 = 0x81;
/// The first two entries of the table are no clusters.
const FIRST_CLUSTER: u64 = 2;
/// The table of upper-case letters.
const NAMES_ENTRY: u8 = 0x82;
/// From this number on an entry of the table ends a chain.
const END: u64 = 0xFFFF_FFF8;
/// Bytes of the longest root directory and the largest table of upper-case letters.
const MAX_ROOT: u64 = 256 << 20;
const MAX_NAMES: u64 = 128 << 10;
/// Sectors whose checksum is in the one behind them.
const BOOT_SECTORS: u64 = 11;
const VOLUME_DIRTY: u16 = 2;
const MEDIA_FAILURE: u16 = 4;

struct Layout<'a> {
    window: Window<'a>,
    fat_start: u64,
    heap_start: u64,
    sector: u64,
    cluster: u64,
    clusters: u64,
}

pub(crate) fn recognise(window: &Window<'_>) -> Result<bool, Unusable> {
    let boot = window.peek(0, SECTOR)?;
    Ok(has(&boot, 3, b"EXFAT   ") && has(&boot, 510, &[0x55, 0xAA]))
}

pub(crate) fn free_space(window: &Window<'_>) -> Result<FreeMap, Unusable> {
    let boot = window.read(0, SECTOR)?;
    let layout = Layout::of(window, &boot)?;
    let flags = le16(&boot, 106);
    if flags & (VOLUME_DIRTY | MEDIA_FAILURE) != 0 {
        return Err(window.dirty("it was not unmounted, or its medium fails"));
    }
    if byte(&boot, 110) != 1 {
        return Err(window.unsupported("two tables"));
    }
    check_boot_region(window, layout.sector)?;
    let files = layout.system_files(u64::from(le32(&boot, 96)))?;
    let (first, len) = files.bitmap.ok_or_else(|| window.damaged("it has no bitmap"))?;
    if len != layout.clusters.div_ceil(8) {
        return Err(window.damaged("its bitmap has the wrong length"));
    }
    layout.check_names(&files)?;
    layout.read_bitmap(first)
}

/// The checksum of the first sectors stands in the one behind them. Flags and percentage of use are not counted.
fn check_boot_region(window: &Window<'_>, sector: u64) -> Result<(), Unusable> {
    let region = window.read(0, BOOT_SECTORS * sector)?;
    let counted = (0..).zip(&region).filter(|(at, _)| !matches!(*at, 106 | 107 | 112));
    let sum = counted.fold(0, |sum: u32, (_, &byte)| add_to_checksum(sum, byte));
    let stored = window.read(BOOT_SECTORS * sector, sector)?;
    match stored.chunks_exact(4).all(|word| matches(le32(word, 0), sum)) {
        true => Ok(()),
        false => Err(window.damaged("the checksum of its boot sectors is wrong")),
    }
}

fn add_to_checksum(sum: u32, byte: u8) -> u32 {
    sum.rotate_right(1).wrapping_add(u32::from(byte))
}

/// The files of the file system itself: first cluster and length of each.
#[derive(Default)]
struct SystemFiles {
    bitmap: Option<(u64, u64)>,
    /// The table of upper-case letters, and its checksum.
    names: Option<(u64, u64, u32)>,
}

impl<'a> Layout<'a> {
    fn of(window: &Window<'a>, boot: &[u8]) -> Result<Self, Unusable> {
        let (sector_shift, cluster_shift) = (byte(boot, 108), byte(boot, 109));
        if !(9..=12).contains(&sector_shift) || sector_shift.saturating_add(cluster_shift) > 25 {
            return Err(window.damaged("its sectors or clusters have no possible size"));
        }
        let sector = 1_u64 << sector_shift;
        let layout = Self {
            window: *window,
            fat_start: u64::from(le32(boot, 80)) * sector,
            heap_start: u64::from(le32(boot, 88)) * sector,
            sector,
            cluster: sector << cluster_shift,
            clusters: u64::from(le32(boot, 92)),
        };
        let fat_end = layout.fat_start + (layout.clusters + FIRST_CLUSTER) * 4;
        let heap_end = layout.heap_start + layout.clusters * layout.cluster;
        if fat_end > layout.heap_start || heap_end > window.len {
            return Err(window.damaged("it is larger than its partition"));
        }
        Ok(layout)
    }

    fn offset_of(&self, cluster: u64) -> Result<u64, Unusable> {
        let index = cluster
            .checked_sub(FIRST_CLUSTER)
            .filter(|index| *index < self.clusters);
        let index = index.ok_or_else(|| self.window.damaged("a chain leads out of it"))?;
        Ok(self.heap_start + index * self.cluster)
    }

    fn next(&self, cluster: u64) -> Result<u64, Unusable> {
        self.offset_of(cluster)?;
        let entry = self.window.read(self.fat_start + cluster * 4, 4)?;
        Ok(u64::from(le32(&entry, 0)))
    }

    /// Reads the whole root directory.
    fn system_files(&self, root: u64) -> Result<SystemFiles, Unusable> {
        let mut files = SystemFiles::default();
        let mut ended = false;
        let mut cluster = root;
        let mut looked_at = 0;
        loop {
            let entries = self.window.read(self.offset_of(cluster)?, self.cluster)?;
            for entry in entries.chunks_exact(ENTRY) {
                match byte(entry, 0) {
                    _ if ended => {}
                    BITMAP_ENTRY if files.bitmap.is_some() => return Err(self.window.unsupported("two bitmaps")),
                    BITMAP_ENTRY => files.bitmap = Some((u64::from(le32(entry, 20)), le64(entry, 24))),
                    NAMES_ENTRY => files.names = Some((u64::from(le32(entry, 20)), le64(entry, 24), le32(entry, 4))),
                    0 => ended = true,
                    _ => {}
                }
            }
            looked_at += self.cluster;
            cluster = match self.next(cluster)? {
                END.. => return Ok(files),
                _ if looked_at >= MAX_ROOT => return Err(self.window.damaged("its root directory is too long")),
                next => next,
            };
        }
    }

    /// Requires the table of upper-case letters to be what its checksum says.
    fn check_names(&self, files: &SystemFiles) -> Result<(), Unusable> {
        let names = files.names.filter(|(_, len, _)| (1..=MAX_NAMES).contains(len));
        let (mut cluster, mut left, stored) =
            names.ok_or_else(|| self.window.damaged("it has no table of upper-case letters"))?;
        let mut sum = 0;
        loop {
            let take = self.cluster.min(left);
            let bytes = self.window.read(self.offset_of(cluster)?, take)?;
            sum = bytes.iter().fold(sum, |sum, &byte| add_to_checksum(sum, byte));
            left -= take;
            if left == 0 {
                break;
            }
            cluster = self.next(cluster)?;
        }
        match matches(sum, stored) {
            true => Ok(()),
            false => Err(self
                .window
                .damaged("the checksum of its table of upper-case letters is wrong")),
        }
    }

    fn read_bitmap(&self, first: u64) -> Result<FreeMap, Unusable> {
        let mut map = self.window.free_map();
        let mut cluster = first;
        let mut done = 0;
        // One step for each cluster of the bitmap, of which there are as many as its length has.
        while done < self.clusters {
            let mut at = done;
            let bytes = self.cluster.min((self.clusters - done).div_ceil(8));
            self.window.for_each_chunk(self.offset_of(cluster)?, bytes, |part| {
                let bits = (count(part.len()) * 8).min(self.clusters - at);
                clear_runs(part, bits, |unit, units| {
                    map.add(self.heap_start + (at + unit) * self.cluster, units * self.cluster);
                });
                at += bits;
                Ok(())
            })?;
            done = at;
            if done < self.clusters {
                cluster = self.next(cluster)?;
            }
        }
        Ok(map)
    }
}
