//! Any bytes as a disk with file systems, whose free space is read.

use std::collections::BTreeMap;
use std::io;

use vhd_fs::{DiskReport, ReadAt, scan};

const SECTOR: usize = 512;
/// The size of a disk is a multiple of this.
const UNIT: u64 = 64 << 10;
/// What is written into everything that is called free.
const NOISE: u8 = 0xA5;

/// A disk that is zero but for some sectors.
struct Sparse<'a> {
    size: u64,
    sectors: BTreeMap<u64, &'a [u8]>,
    /// What was found free in it, where noise is read then.
    free: Option<&'a DiskReport>,
}

impl<'a> Sparse<'a> {
    /// Two bytes for the size in units of 64 KiB, then sectors: four bytes for its number, and 512 for its content.
    fn decode(bytes: &'a [u8]) -> Option<Self> {
        let (size, rest) = bytes.split_first_chunk::<2>()?;
        let sectors = rest.chunks_exact(4 + SECTOR).map(|record| {
            let number = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
            (u64::from(number), &record[4..])
        });
        Some(Self {
            size: u64::from(u16::from_le_bytes(*size)) * UNIT,
            sectors: sectors.collect(),
            free: None,
        })
    }
}

impl ReadAt for Sparse<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let (len, end) = (buf.len() as u64, offset + buf.len() as u64);
        assert!(end <= self.size, "a read leaves the disk");
        buf.fill(0);
        for (number, bytes) in self.sectors.range(offset / 512..end.div_ceil(512)) {
            let start = number * 512;
            for (at, byte) in (start..).zip(*bytes).filter(|(at, _)| (offset..end).contains(at)) {
                buf[(at - offset) as usize] = *byte;
            }
        }
        let mut at = 0;
        while let Some(report) = self.free.filter(|_| at < len) {
            let (free, run) = report.run(offset + at);
            let run = run.min(len - at);
            if free {
                buf[at as usize..(at + run) as usize].fill(NOISE);
            }
            at += run;
        }
        Ok(())
    }
}

/// Reads what is free on the disk: reading ends, what is free is inside, and none of it was looked at to find out:
/// with noise in all of it the same is free.
pub fn file_system(bytes: &[u8]) {
    let Some(disk) = Sparse::decode(bytes) else {
        return;
    };
    let Ok(report) = scan(&disk) else {
        return;
    };
    for partition in &report.partitions {
        if let Ok(map) = &partition.free {
            assert!(map.start() >= partition.start && map.end() <= partition.end() && map.end() <= disk.size);
            assert!(map.free_bytes() <= partition.len);
        }
    }
    let noisy = Sparse {
        free: Some(&report),
        sectors: disk.sectors.clone(),
        ..disk
    };
    let again = scan(&noisy).expect("noise in free space does not change the table");
    let mut at = 0;
    while at < disk.size {
        let (one, other) = (report.run(at), again.run(at));
        assert_eq!(one, other, "free space at {at:#x} is another one with noise in it");
        at = at.saturating_add(one.1);
    }
}
