//! The partition table of a [`Disk`]: the reader is the crate `vhd-partition`, this is how disks and failures of this
//! crate fit to it.

use std::borrow::Borrow;
use std::io;
use std::ops::Range;

pub use vhd_partition::{Oddity, Partition, PartitionType, Scheme, Table as PartitionTable};
use vhd_partition::{ReadAt, TableError};

use crate::ErrorKind;
use crate::device::{ByteRange, DeviceError, Disk};

/// A disk as readers of its content take it. Failures are [`DeviceError`]s inside of [`io::Error`]s.
/// The disk is borrowed, or the reader's own.
pub struct DiskReader<D>(pub D);

impl<D: Borrow<Disk>> ReadAt for DiskReader<D> {
    fn size(&self) -> u64 {
        self.0.borrow().size()
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.borrow().read_at(buf, offset).map_err(io::Error::other)
    }
}

/// Why the partition table of a disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// The disk cannot be read.
    #[error("cannot read the partition table")]
    Read(#[source] DeviceError),
    /// The table is not usable, or cannot be moved.
    #[error(transparent)]
    Table(TableError),
}

impl PartitionError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(source) => source.kind().into(),
            Self::Table(_) => ErrorKind::PartitionTable,
        }
    }
}

impl From<TableError> for PartitionError {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Read(error) => match error.downcast::<DeviceError>() {
                Ok(error) => Self::Read(error),
                Err(error) => Self::Table(TableError::Read(error)),
            },
            error => Self::Table(error),
        }
    }
}

/// The partitions of a disk; `None` for a disk without a table. A GPT whose first header is damaged is read from its
/// backup.
///
/// # Errors
/// If the disk cannot be read, or says that it has a GPT and neither header is valid.
pub fn read_table(disk: &Disk) -> Result<Option<PartitionTable>, PartitionError> {
    Ok(PartitionTable::read(&DiskReader(disk))?)
}

/// The bytes of a partition. Those of a hostile table may be behind the end of the disk.
#[must_use]
pub fn range_of(partition: &Partition) -> ByteRange {
    byte_range(&(partition.start..partition.end()))
}

/// Two ways to write a range.
pub(crate) fn byte_range(range: &Range<u64>) -> ByteRange {
    ByteRange::new(range.start, range.end - range.start)
}
