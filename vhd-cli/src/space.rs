//! Free space of the file systems on a disk, as compaction takes it.

use vhd_core::device::Disk;
use vhd_core::ops::compact::FreeSpace;
use vhd_core::partition::DiskReader;
use vhd_fs::{DiskReport, Unusable};

/// What the file systems on a disk do not use, as far as that is known.
pub(crate) struct DiskSpace {
    found: Result<DiskReport, Unusable>,
}

impl DiskSpace {
    /// Looks at the partitions and file systems of a disk.
    pub(crate) fn of(disk: &Disk) -> Self {
        Self {
            found: vhd_fs::scan(&DiskReader(disk)),
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
