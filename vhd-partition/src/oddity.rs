//! What is odd about a partition table that can be read.

use crate::TableError;

/// What is odd about a table. Numbers are those of partitions.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Oddity {
    /// A GPT without the protective entry in the first sector: Linux and Windows do not see it.
    #[error("there is a GPT, but no protective MBR")]
    NoProtectiveMbr,
    /// A GPT header behind an MBR with ordinary partitions, which are what was read.
    #[error("there is a GPT header behind an ordinary MBR")]
    GptBehindMbr,
    /// An MBR with a protective entry and others.
    #[error("the MBR has partitions beside the protective one (hybrid MBR)")]
    HybridMbr,
    /// The GPT counts in sectors of another size than the disk's 512 bytes.
    #[error("the GPT counts in sectors of {0} bytes")]
    SectorSize(u64),
    /// The first header or its entries are damaged; what was read is the backup.
    #[error("the GPT was read from its backup: {0}")]
    PrimaryDamaged(TableError),
    /// The backup is damaged or missing.
    #[error("the backup of the GPT is not usable: {0}")]
    BackupDamaged(TableError),
    /// The backup is not in the last sector: the disk has grown.
    #[error("the backup of the GPT is in sector {lba}, the last sector is {last}")]
    BackupNotAtEnd {
        /// Where it is.
        lba: u64,
        /// The last sector of the disk.
        last: u64,
    },
    /// The backup is valid and not a backup of the first table.
    #[error("the GPT and its backup disagree: {0}")]
    BackupDisagrees(&'static str),
    /// An entry whose last sector is before its first one. It is not listed as a partition.
    #[error("entry {0} of the GPT ends before it begins")]
    Reversed(u32),
    /// The partition is not all inside the disk.
    #[error("partition {0} is not inside the disk")]
    OutsideDisk(u32),
    /// The partition covers sectors that the table needs for itself.
    #[error("partition {0} lies over the partition table")]
    OverTable(u32),
    /// Two partitions share sectors.
    #[error("partitions {0} and {1} overlap")]
    Overlap(u32, u32),
    /// More than one extended partition.
    #[error("there is more than one extended partition")]
    SeveralExtended,
    /// The list of logical partitions ends in a sector without a table.
    #[error("the list of logical partitions is broken at sector {0}")]
    LogicalBroken(u64),
    /// The list of logical partitions leads to a sector that it has passed.
    #[error("the list of logical partitions leads back to sector {0}")]
    LogicalLeadsBack(u64),
    /// The list of logical partitions goes on after the last one that is followed.
    #[error("there are more than {0} logical partitions")]
    TooManyLogical(usize),
}

impl Oddity {
    /// Whether it leaves doubt about where partitions are, or about which tool would see them so. Who changes
    /// anything by what a table says must not do it then.
    #[must_use]
    pub fn is_doubtful(&self) -> bool {
        // A damaged or misplaced backup says nothing against the first header.
        !matches!(self, Self::BackupDamaged(_) | Self::BackupNotAtEnd { .. })
    }

    /// Whether it concerns single partitions, and then which.
    #[must_use]
    pub fn partitions(&self) -> Option<[u32; 2]> {
        match *self {
            Self::OutsideDisk(number) | Self::OverTable(number) | Self::Reversed(number) => Some([number, number]),
            Self::Overlap(one, other) => Some([one, other]),
            _ => None,
        }
    }
}
