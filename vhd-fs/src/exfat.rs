//! exFAT: the allocation bitmap, which an entry of the root directory leads to.

use crate::bytes::{byte, count, has, le16, le32, le64};
use crate::window::{Window, clear_runs};
use crate::{FreeMap, Unusable};

pub(crate) const NAME: &str = "exFAT";

const SECTOR: u64 = 512;
const ENTRY: usize = 32;
const BITMAP_ENTRY: u8 = 0x81;
/// The first two entries of the table are no clusters.
const FIRST_CLUSTER: u64 = 2;
/// Bytes of the root directory in which the bitmap's entry is looked for: it is among the first.
const MAX_ROOT: u64 = 1 << 20;
const VOLUME_DIRTY: u16 = 2;
const MEDIA_FAILURE: u16 = 4;

struct Layout<'a> {
    window: Window<'a>,
    fat_start: u64,
    heap_start: u64,
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
    let (first, len) = layout.bitmap_entry(u64::from(le32(&boot, 96)))?;
    if len != layout.clusters.div_ceil(8) {
        return Err(window.damaged("its bitmap has the wrong length"));
    }
    layout.read_bitmap(first)
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

    /// The first cluster and the length of the bitmap.
    fn bitmap_entry(&self, root: u64) -> Result<(u64, u64), Unusable> {
        let mut cluster = root;
        let mut looked_at = 0;
        while looked_at < MAX_ROOT {
            let take = self.cluster.min(MAX_ROOT);
            let entries = self.window.read(self.offset_of(cluster)?, take)?;
            for entry in entries.chunks_exact(ENTRY) {
                match byte(entry, 0) {
                    BITMAP_ENTRY => return Ok((u64::from(le32(entry, 20)), le64(entry, 24))),
                    0 => return Err(self.window.damaged("it has no bitmap")),
                    _ => {}
                }
            }
            looked_at += take;
            cluster = self.next(cluster)?;
        }
        Err(self.window.damaged("it has no bitmap"))
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
