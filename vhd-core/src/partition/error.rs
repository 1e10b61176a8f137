//! Why a partition table can't be used.

use crate::ErrorKind;
use crate::device::DeviceError;

/// Why a partition table can't be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PartitionError {
    /// The disk can't be read.
    #[error("cannot read the partition table")]
    Read(#[source] DeviceError),
    /// No GPT header where one must be.
    #[error("no GPT header in sector {lba}, although the disk has a protective MBR")]
    Signature {
        /// The sector.
        lba: u64,
    },
    /// A checksum does not match.
    #[error(
        "the GPT {part} of the header in sector {lba} has the checksum {computed:#010x} and should have {stored:#010x}"
    )]
    Checksum {
        /// The sector of the header.
        lba: u64,
        /// What the checksum is of.
        part: &'static str,
        /// The checksum that stands in the header.
        stored: u32,
        /// What the bytes have.
        computed: u32,
    },
    /// A number that no GPT can have.
    #[error("the GPT header in sector {lba} has the {field} {value}, which is not possible on this disk")]
    Field {
        /// The sector of the header.
        lba: u64,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The backup can't be put behind the partitions.
    #[error(
        "partition {number} ends at sector {last}, where the GPT's backup has to be: the backup begins at sector {backup}"
    )]
    NoRoom {
        /// The partition.
        number: u32,
        /// Its last sector.
        last: u64,
        /// The first sector of the backup.
        backup: u64,
    },
}

impl PartitionError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read(source) => source.kind().into(),
            Self::Signature { .. } | Self::Checksum { .. } | Self::Field { .. } | Self::NoRoom { .. } => {
                ErrorKind::PartitionTable
            }
        }
    }
}
