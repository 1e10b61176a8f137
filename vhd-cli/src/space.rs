//! Free space of the file systems on a disk, as compaction takes it.

use std::io;

use vhd_core::device::Disk;
use vhd_core::ops::compact::FreeSpace;
use vhd_fs::{DiskReport, ReadAt, Unusable};

/// What the file systems on a disk do not use, as far as that is known.
pub(crate) struct DiskSpace {
    found: Result<DiskReport, Unusable>,
}

struct Reader<'a>(&'a Disk);

impl ReadAt for Reader<'_> {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buf, offset).map_err(io::Error::other)
    }
}

impl DiskSpace {
    /// Looks at the partitions and file systems of a disk.
    pub(crate) fn of(disk: &Disk) -> Self {
        Self {
            found: vhd_fs::scan(&Reader(disk)),
        }
    }

    /// The partitions, or why they are not known.
    pub(crate) fn report(&self) -> Result<&DiskReport, &Unusable> {
        self.found.as_ref()
    }
}

impl FreeSpace for DiskSpace {
    fn run(&self, offset: u64) -> (bool, u64) {
        match &self.found {
            Ok(report) => report.run(offset),
            Err(_) => (false, u64::MAX - offset),
        }
    }
}
