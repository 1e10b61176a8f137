//! The whole disk: its partitions, and what is free in each.

use crate::partitions::{Found, Partition, TableKind, find};
use crate::probe::probe;
use crate::window::Window;
use crate::{FreeMap, ReadAt, Unusable};

/// What is known of the space of a disk.
#[derive(Debug)]
pub struct DiskReport {
    /// How the disk is divided.
    pub table: TableKind,
    /// The partitions, ascending; a disk without a partition table is one.
    pub partitions: Vec<PartitionReport>,
}

/// What is known of the space of a partition.
#[derive(Debug)]
pub struct PartitionReport {
    /// Its number, from 1; 0 for a disk without a partition table.
    pub number: u32,
    /// The first byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The file system, as far as it was recognised.
    pub file_system: Option<&'static str>,
    /// What is free, or why that is not known.
    pub free: Result<FreeMap, Unusable>,
}

impl DiskReport {
    /// Whether the byte at `offset` is free, and how many bytes from it on agree with it, at least one.
    #[must_use]
    pub fn run(&self, offset: u64) -> (bool, u64) {
        let behind = self.partitions.partition_point(|partition| partition.end() <= offset);
        match self.partitions.get(behind) {
            None => (false, u64::MAX - offset),
            Some(partition) if partition.start > offset => (false, partition.start - offset),
            Some(partition) => match &partition.free {
                Ok(map) => map.run(offset),
                Err(_) => (false, partition.end() - offset),
            },
        }
    }

    /// The partition that a byte of the disk is in.
    #[must_use]
    pub fn partition_at(&self, offset: u64) -> Option<&PartitionReport> {
        let behind = self.partitions.partition_point(|partition| partition.end() <= offset);
        self.partitions
            .get(behind)
            .filter(|partition| partition.start <= offset)
    }
}

impl PartitionReport {
    /// The byte behind the partition.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }
}

/// Looks at a disk.
///
/// # Errors
/// [`Unusable`] if the partition table does not tell where partitions are; what is wrong with one partition is in
/// its report.
pub fn scan(disk: &dyn ReadAt) -> Result<DiskReport, Unusable> {
    let Found { table, mut partitions } = find(disk)?;
    partitions.sort_by_key(|partition| partition.start);
    let reports = partitions.iter().enumerate().map(|(index, partition)| {
        let overlaps = |other: &Partition| partition.start < other.end() && other.start < partition.end();
        // Sorted by start, but a long one may reach over several.
        let shared = partitions
            .iter()
            .enumerate()
            .any(|(other, it)| other != index && overlaps(it));
        report(disk, partition, shared)
    });
    Ok(DiskReport {
        table,
        partitions: reports.collect(),
    })
}

fn report(disk: &dyn ReadAt, partition: &Partition, shared: bool) -> PartitionReport {
    let (file_system, free) = if shared {
        (None, Err(Unusable::Table("the partition overlaps another one")))
    } else if partition.end() > disk.size() {
        (None, Err(Unusable::Table("the partition is not inside the disk")))
    } else if partition.is_raid {
        (None, Err(Unusable::Container("part of a RAID")))
    } else {
        probe(&Window::new(disk, partition.start, partition.len))
    };
    PartitionReport {
        number: partition.number,
        start: partition.start,
        len: partition.len,
        file_system,
        free,
    }
}
