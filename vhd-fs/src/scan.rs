//! The whole disk: its partitions, and what is free in each.

use vhd_partition::{Oddity, Partition, Scheme, Table};

use crate::probe::{boot_sector_file_system, probe, recognise};
use crate::window::Window;
use crate::{FreeMap, ReadAt, Unusable, container};

/// Bytes of a boot sector.
const BOOT: u64 = 512;

/// What is known of the space of a disk.
#[derive(Debug)]
pub struct DiskReport {
    /// How the disk is divided; `None` if it has no partition table.
    pub table: Option<Scheme>,
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
    let whole = Window::new(disk, 0, disk.size());
    let table = Table::read(disk)?;
    // A boot sector of a file system ends like a master boot record, and its code may look like entries.
    let file_system = match boot_sector_file_system(&whole.peek(0, BOOT)?) {
        Some(name) => Some(name),
        None => recognise(&whole)?,
    };
    match (table, file_system) {
        (Some(_), Some(name)) => Err(Unusable::Ambiguous("a disk with partitions", name)),
        (Some(table), None) => divided(disk, table),
        (None, _) => {
            let (file_system, free) = probe(&whole);
            Ok(DiskReport {
                table: None,
                partitions: vec![PartitionReport {
                    number: 0,
                    start: 0,
                    len: disk.size(),
                    file_system,
                    free,
                }],
            })
        }
    }
}

fn divided(disk: &dyn ReadAt, table: Table) -> Result<DiskReport, Unusable> {
    let doubts: Vec<&Oddity> = table.oddities.iter().filter(|oddity| oddity.is_doubtful()).collect();
    if let Some(doubt) = doubts.iter().find(|oddity| oddity.partitions().is_none()) {
        return Err(Unusable::Table(doubt.to_string()));
    }
    let mut partitions = table.partitions;
    partitions.sort_by_key(|partition| partition.start);
    let reports = partitions.iter().map(|partition| {
        let is_meant = |oddity: &&&Oddity| {
            oddity
                .partitions()
                .is_some_and(|those| those.contains(&partition.number))
        };
        report(disk, partition, doubts.iter().find(is_meant).map(ToString::to_string))
    });
    Ok(DiskReport {
        table: Some(table.scheme),
        partitions: reports.collect(),
    })
}

fn report(disk: &dyn ReadAt, partition: &Partition, doubt: Option<String>) -> PartitionReport {
    let (file_system, free) = match (doubt, container::by_type(partition.kind)) {
        (Some(doubt), _) => (None, Err(Unusable::Table(doubt))),
        (None, Some(container)) => (None, Err(Unusable::Container(container))),
        (None, None) => probe(&Window::new(disk, partition.start, partition.len)),
    };
    PartitionReport {
        number: partition.number,
        start: partition.start,
        len: partition.len,
        file_system,
        free,
    }
}
