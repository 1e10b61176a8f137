//! Any bytes as a disk with file systems, whose free space is read.

use std::io;

use vhd_fs::{DiskReport, ReadAt, scan};

use super::sparse_disk::SparseDisk;

/// What is written into everything that is called free.
const NOISE: u8 = 0xA5;

/// The disk with noise in all that was found free on it.
struct Noisy<'a> {
    disk: &'a SparseDisk,
    free: &'a DiskReport,
}

impl ReadAt for Noisy<'_> {
    fn size(&self) -> u64 {
        self.disk.size
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(buf, offset)?;
        let (mut at, len) = (0, buf.len() as u64);
        while at < len {
            let (free, run) = self.free.run(offset + at);
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
    let Some(disk) = SparseDisk::decode(bytes) else {
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
    let noisy = Noisy {
        disk: &disk,
        free: &report,
    };
    let again = scan(&noisy).expect("noise in free space does not change the table");
    let mut at = 0;
    while at < disk.size {
        let (one, other) = (report.run(at), again.run(at));
        assert_eq!(one, other, "free space at {at:#x} is another one with noise in it");
        at = at.saturating_add(one.1);
    }
}
