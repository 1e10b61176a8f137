//! Why a partition table cannot be used.

use std::io;

/// Why a partition table cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The disk cannot be read.
    #[error("cannot read the partition table")]
    Read(#[source] io::Error),
    /// There is no GPT header where one must be.
    #[error("no GPT header in sector {lba}, although the disk has a protective MBR")]
    Signature {
        /// The sector.
        lba: u64,
    },
    /// A checksum does not match.
    #[error("the checksum of the GPT {part} is {computed:#010x}, the header in sector {lba} says {stored:#010x}")]
    Checksum {
        /// The sector of the header.
        lba: u64,
        /// What the checksum covers: `header` or `entries`.
        part: &'static str,
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// A field has a value that is not possible on this disk.
    #[error("the GPT header in sector {lba} has the {field} {value}, which is not possible on this disk")]
    Field {
        /// The sector of the header.
        lba: u64,
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The new backup would overwrite a partition.
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
    /// The new backup would overwrite the table itself.
    #[error(
        "the GPT uses the sectors {first} to {last}, which leaves no room for its backup at sector {backup} or for \
         partitions before it"
    )]
    OwnTableInTheWay {
        /// The first sector of the header or entries in the way.
        first: u64,
        /// The last one.
        last: u64,
        /// The first sector of the backup.
        backup: u64,
    },
    /// The new backup would overwrite bytes that belong to nothing known.
    #[error(
        "sector {lba} is outside all partitions but not empty, and the GPT's backup has to go there: clear the sectors \
         {first} to {last} first"
    )]
    PlaceInUse {
        /// The sector.
        lba: u64,
        /// The first sector of the new backup.
        first: u64,
        /// The last one.
        last: u64,
    },
    /// What the first header names as its backup is a GPT header, but not a backup of this table.
    #[error(
        "the GPT names sector {lba} as its backup, but {problem}: nothing is moved; repair the table with a partitioning \
         tool in the guest first"
    )]
    NotABackup {
        /// The sector.
        lba: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
}
