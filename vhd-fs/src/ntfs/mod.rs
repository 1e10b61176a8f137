//! NTFS: the bitmap in the file `$Bitmap`, after `$Volume` and `$LogFile` said that the volume is clean and no Windows
//! sleeps in it.

mod fixup;
mod hibernation;
mod log;
mod record;
mod runs;

use crate::bytes::{byte, has, le16, le64};
use crate::probe::is_bootable;
use crate::window::{Window, clear_runs};
use crate::{FreeMap, Unusable};
use record::{Attribute, Record};
use runs::Run;

pub(crate) const NAME: &str = "NTFS";

const SECTOR: u64 = 512;
const MFT: u64 = 0;
const MIRROR: u64 = 1;
const LOG_FILE: u64 = 2;
const VOLUME: u64 = 3;
const BITMAP: u64 = 6;
/// Records of the system's own files, and how many of them have a copy.
const SYSTEM_FILES: u64 = 12;
const MIRRORED: u64 = 4;
const TYPE_VOLUME_INFORMATION: u32 = 0x70;
const TYPE_DATA: u32 = 0x80;
/// Dirty, log to be resized, to be upgraded, journal being deleted, being checked.
const VOLUME_NOT_CLEAN: u16 = 0x1 | 0x2 | 0x4 | 0x10 | 0x4000;

/// What the boot sector says, checked.
struct Volume<'a> {
    window: Window<'a>,
    cluster: u64,
    clusters: u64,
    record: u64,
    mft: u64,
}

pub(crate) fn recognise(window: &Window<'_>) -> Result<bool, Unusable> {
    let boot = window.peek(0, SECTOR)?;
    Ok(has(&boot, 3, b"NTFS    ") && is_bootable(&boot))
}

pub(crate) fn free_space(window: &Window<'_>) -> Result<FreeMap, Unusable> {
    let volume = Volume::of(window)?;
    let mft = volume.first_record()?.attribute(TYPE_DATA)?.whole_runs(&volume)?;
    volume.check_mirror(&mft)?;
    volume.check_clean(&mft)?;
    hibernation::check(&volume, &mft)?;
    volume.claim_system_files(&mft);
    let bitmap = volume.record(&mft, BITMAP)?;
    volume.read_bitmap(&bitmap.attribute(TYPE_DATA)?)
}

impl<'a> Volume<'a> {
    fn of(window: &Window<'a>) -> Result<Self, Unusable> {
        let boot = window.read(0, SECTOR)?;
        let sector = u64::from(le16(&boot, 11));
        if !sector.is_power_of_two() || !(512..=4096).contains(&sector) {
            return Err(window.damaged("its sectors have no possible size"));
        }
        // From 128 sectors on the byte is a negative exponent.
        let per_cluster = match byte(&boot, 13) {
            small @ 1..=128 if small.is_power_of_two() => u64::from(small),
            large @ 244.. => 1 << (256 - u64::from(large)),
            _ => return Err(window.damaged("its clusters have no possible size")),
        };
        let cluster = sector * per_cluster;
        let record = match byte(&boot, 64) {
            exponent @ 0xF4..=0xF6 => 1 << (256 - u64::from(exponent)),
            clusters @ 1..=0x7F => u64::from(clusters) * cluster,
            _ => 0,
        };
        if !matches!(record, 1024 | 2048 | 4096) || cluster > 2 << 20 {
            return Err(window.damaged("its records have no possible size"));
        }
        let bytes = le64(&boot, 40).checked_mul(sector).filter(|bytes| *bytes <= window.len);
        let bytes = bytes.ok_or_else(|| window.damaged("it is larger than its partition"))?;
        let mft = le64(&boot, 48).checked_mul(cluster);
        Ok(Self {
            window: *window,
            cluster,
            clusters: bytes / cluster,
            record,
            mft: mft.ok_or_else(|| window.damaged("its file table is not inside it"))?,
        })
    }

    fn first_record(&self) -> Result<Record, Unusable> {
        Record::decode(&self.window, self.window.read(self.mft, self.record)?, MFT)
    }

    /// A record of the file table, whose runs are known.
    fn record(&self, mft: &[Run], number: u64) -> Result<Record, Unusable> {
        let mut bytes = vec![0; crate::bytes::index(self.record)];
        self.read_runs(mft, number * self.record, &mut bytes)?;
        Record::decode(&self.window, bytes, number)
    }

    /// Fills the buffer from a place in a file.
    fn read_runs(&self, runs: &[Run], at: u64, buffer: &mut [u8]) -> Result<(), Unusable> {
        let mut start = 0_u64;
        let mut done = 0;
        for run in runs {
            let end = start + run.clusters * self.cluster;
            let from = at + crate::bytes::count(done);
            if from >= start && from < end && done < buffer.len() {
                let lcn = run
                    .lcn
                    .ok_or_else(|| self.window.damaged("a hole where there is none"))?;
                let len = crate::bytes::index(end - from).min(buffer.len() - done);
                self.window
                    .read_into(lcn * self.cluster + (from - start), &mut buffer[done..done + len])?;
                done += len;
            }
            start = end;
        }
        if done < buffer.len() {
            return Err(self.window.damaged("a file is shorter than it must be"));
        }
        Ok(())
    }

    /// INV-45: no cluster of the system's files is free, those of the file table, the log and the bitmap first.
    fn claim_system_files(&self, mft: &[Run]) {
        let records = (0..SYSTEM_FILES).filter_map(|number| self.record(mft, number).ok());
        let runs = records.flat_map(|record| record.all_runs(self));
        for run in runs.chain(mft.iter().copied()) {
            if let Some(lcn) = run.lcn {
                self.window.claim(lcn * self.cluster, run.clusters * self.cluster);
            }
        }
        self.window.claim(0, self.cluster);
    }

    /// The first records of the file table have a copy, which ntfs-3g requires to be the same.
    fn check_mirror(&self, mft: &[Run]) -> Result<(), Unusable> {
        let mirror = self.record(mft, MIRROR)?;
        let mirror = mirror.attribute(TYPE_DATA)?;
        let runs = mirror.runs(self)?;
        for number in 0..(mirror.len() / self.record).min(MIRRORED) {
            let (one, other) = (self.record(mft, number)?, self.record(&runs, number)?);
            if one.used() != other.used() {
                return Err(self.window.damaged("the copy of its file table differs"));
            }
        }
        Ok(())
    }

    fn check_clean(&self, mft: &[Run]) -> Result<(), Unusable> {
        let volume = self.record(mft, VOLUME)?;
        let information = volume.attribute(TYPE_VOLUME_INFORMATION)?;
        let flags = match information {
            Attribute::Resident(value) if value.len() >= 12 => le16(value, 10),
            _ => return Err(self.window.damaged("it does not say whether it is clean")),
        };
        if flags & VOLUME_NOT_CLEAN != 0 {
            return Err(self.window.dirty("it is to be checked"));
        }
        let log = self.record(mft, LOG_FILE)?.attribute(TYPE_DATA)?.whole_runs(self)?;
        match log::is_clean(self, &log)? {
            true => Ok(()),
            false => Err(self
                .window
                .dirty("it was not unmounted, or Windows sleeps (hibernation, fast startup)")),
        }
    }

    fn read_bitmap(&self, bitmap: &Attribute<'_>) -> Result<FreeMap, Unusable> {
        let mut map = self.window.free_map();
        let mut add = |part: &[u8], first: u64| {
            let bits = (crate::bytes::count(part.len()) * 8).min(self.clusters.saturating_sub(first));
            clear_runs(part, bits, |unit, units| {
                map.add((first + unit) * self.cluster, units * self.cluster);
            });
        };
        if let Attribute::Resident(value) = bitmap {
            add(value, 0);
            return Ok(map);
        }
        if bitmap.len() < self.clusters.div_ceil(8) || bitmap.written() < self.clusters.div_ceil(8) {
            return Err(self.window.damaged("its bitmap is too short"));
        }
        let mut first = 0;
        for run in bitmap.whole_runs(self)? {
            let left = self.clusters.saturating_sub(first).div_ceil(8);
            let len = (run.clusters * self.cluster).min(left);
            let lcn = run.lcn.ok_or_else(|| self.window.damaged("its bitmap has a hole"))?;
            self.window.for_each_chunk(lcn * self.cluster, len, |part| {
                add(part, first);
                first += crate::bytes::count(part.len()) * 8;
                Ok(())
            })?;
        }
        Ok(map)
    }
}
