//! What makes a structure unreadable: one variant for each rule of the format that can be broken.

use crate::error::ErrorKind;

/// A rule of the format that some bytes, or an argument, break. All numbers are as found on disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes can't hold a footer: it has 512 of them, or 511 before Virtual PC 2004.
    #[error("a footer has 512 bytes (or 511), not {len}")]
    FooterLength {
        /// The number of bytes that were to be decoded.
        len: usize,
    },
    /// The footer's first eight bytes are not `conectix`.
    #[error("no footer here: the cookie is \"{}\" instead of \"conectix\"", .found.escape_ascii())]
    FooterCookie {
        /// The eight bytes in the cookie's place.
        found: [u8; 8],
    },
    /// The footer's cookie says that a journaled operation of the Xen tools did not finish.
    #[error(
        "an unfinished journaled operation marked this image (cookie \"v_poison\"); revert it with the tool that began it"
    )]
    JournalPending,
    /// The footer's checksum is not that of its bytes.
    #[error("the footer's checksum is {stored:#010x}, but its bytes sum to {computed:#010x}")]
    FooterChecksum {
        /// The checksum in the footer.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The disk type is none of fixed (2), dynamic (3) and differencing (4).
    #[error("disk type {found:#x} is none of fixed (2), dynamic (3) and differencing (4)")]
    DiskType {
        /// The type in the footer.
        found: u32,
    },
    /// The disk has no bytes.
    #[error("the disk size is 0")]
    DiskSizeZero,
    /// The disk size is not a whole number of sectors.
    #[error("the disk size {size:#x} is no multiple of 512")]
    DiskSizeMisaligned {
        /// The size in bytes.
        size: u64,
    },
    /// The disk is larger than a block table can address.
    #[error("the disk size {size:#x} exceeds the limit {max:#x}")]
    DiskSizeTooLarge {
        /// The size in bytes.
        size: u64,
        /// The largest size in bytes.
        max: u64,
    },
    /// The footer of a dynamic or differencing disk leads to a header inside the footer's own copy.
    #[error("the dynamic header's offset {offset:#x} is inside the footer copy")]
    HeaderInFooterCopy {
        /// The offset in the file, in bytes.
        offset: u64,
    },
    /// The header would end past the largest offset a file can have.
    #[error("the dynamic header's offset {offset:#x} is past the end of any file")]
    HeaderPastEnd {
        /// The offset in the file, in bytes.
        offset: u64,
    },
    /// A sparse image of the first Xen tap driver, whose sector bitmaps have the reverse bit order.
    #[error(
        "images of creator \"tap\" version {version:#010x} have sector bitmaps in reverse bit order, which is not supported"
    )]
    LegacyBitOrder {
        /// The creator's version.
        version: u32,
    },

    /// The dynamic header's first eight bytes are not `cxsparse`.
    #[error("no dynamic header here: the cookie is \"{}\" instead of \"cxsparse\"", .found.escape_ascii())]
    HeaderCookie {
        /// The eight bytes in the cookie's place.
        found: [u8; 8],
    },
    /// The dynamic header's checksum is not that of its bytes.
    #[error("the dynamic header's checksum is {stored:#010x}, but its bytes sum to {computed:#010x}")]
    HeaderChecksum {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of the bytes.
        computed: u32,
    },
    /// The dynamic header has a version that nothing is known about.
    #[error("the dynamic header's version is {found:#010x} instead of {expected:#010x}")]
    HeaderVersion {
        /// The version in the header.
        found: u32,
        /// The only version there is.
        expected: u32,
    },
    /// The block size is not a power of two.
    #[error("the block size {block_size:#x} is no power of two")]
    BlockSizeNotPowerOfTwo {
        /// The block size in bytes.
        block_size: u32,
    },
    /// The block size is smaller than a sector or larger than what the library reads.
    #[error("the block size {block_size:#x} is not between {min:#x} and {max:#x}")]
    BlockSizeOutOfRange {
        /// The block size in bytes.
        block_size: u32,
        /// The smallest block size in bytes.
        min: u32,
        /// The largest block size in bytes.
        max: u32,
    },
    /// The block table does not begin at a sector.
    #[error("the block table's offset {offset:#x} is no multiple of 512")]
    TableMisaligned {
        /// The offset in the file, in bytes.
        offset: u64,
    },
    /// The block table begins inside the footer copy.
    #[error("the block table's offset {offset:#x} is inside the footer copy")]
    TableInFooterCopy {
        /// The offset in the file, in bytes.
        offset: u64,
    },
    /// The block table would end past the largest offset a file can have.
    #[error("the block table's offset {offset:#x} is past the end of any file")]
    TablePastEnd {
        /// The offset in the file, in bytes.
        offset: u64,
    },
    /// The block table has fewer entries than the disk has blocks.
    #[error("the block table has {entries:#x} entries, but the disk has {blocks:#x} blocks")]
    TableTooShort {
        /// The number of entries.
        entries: u32,
        /// The number of blocks.
        blocks: u64,
    },

    /// A parent's name that does not fit the header.
    #[error("a parent's name has at most {max} UTF-16 units, not {units}")]
    ParentNameTooLong {
        /// The length of the name in UTF-16 units.
        units: usize,
        /// The largest length in UTF-16 units.
        max: usize,
    },
    /// A parent's name with a NUL in it, which would end it there.
    #[error("a parent's name can't contain NUL")]
    ParentNameNul,
    /// A text that is no unique id.
    #[error("\"{}\" is no unique id (32 hexadecimal digits, usually in groups of 8-4-4-4-12)", .text.escape_debug())]
    UniqueIdText {
        /// The text.
        text: String,
    },
}

impl FormatError {
    /// What a program branches on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::FooterLength { .. } | Self::FooterCookie { .. } => ErrorKind::FooterMissing,
            Self::JournalPending => ErrorKind::JournalPending,
            Self::FooterChecksum { .. } => ErrorKind::FooterChecksum,
            Self::DiskType { .. } => ErrorKind::DiskType,
            Self::DiskSizeZero | Self::DiskSizeMisaligned { .. } | Self::DiskSizeTooLarge { .. } => ErrorKind::DiskSize,
            Self::HeaderInFooterCopy { .. } | Self::HeaderPastEnd { .. } => ErrorKind::HeaderLocation,
            Self::LegacyBitOrder { .. } => ErrorKind::Unsupported,
            Self::HeaderCookie { .. } => ErrorKind::HeaderMissing,
            Self::HeaderChecksum { .. } => ErrorKind::HeaderChecksum,
            Self::HeaderVersion { .. } => ErrorKind::HeaderVersion,
            Self::BlockSizeNotPowerOfTwo { .. } | Self::BlockSizeOutOfRange { .. } => ErrorKind::BlockSize,
            Self::TableMisaligned { .. } | Self::TableInFooterCopy { .. } | Self::TablePastEnd { .. } => {
                ErrorKind::TableLocation
            }
            Self::TableTooShort { .. } => ErrorKind::TableTooShort,
            Self::ParentNameTooLong { .. } | Self::ParentNameNul | Self::UniqueIdText { .. } => {
                ErrorKind::InvalidArgument
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_the_numbers() {
        let cases = [
            (
                FormatError::FooterChecksum {
                    stored: 0x12,
                    computed: 0xFFFF_EE4B,
                },
                vec!["0x00000012", "0xffffee4b"],
            ),
            (
                FormatError::FooterCookie {
                    found: *b"\0abc\xFF\"xy",
                },
                vec![r#""\x00abc\xff\"xy""#],
            ),
            (FormatError::DiskType { found: 6 }, vec!["0x6"]),
            (
                FormatError::DiskSizeTooLarge {
                    size: 0x1FF_0000_0000,
                    max: 0x1FE_0000_0000,
                },
                vec!["0x1ff00000000", "0x1fe00000000"],
            ),
            (
                FormatError::TableTooShort {
                    entries: 6,
                    blocks: 0x10,
                },
                vec!["0x6", "0x10"],
            ),
            (
                FormatError::UniqueIdText {
                    text: "a\u{7}".to_owned(),
                },
                vec![r#""a\u{7}""#],
            ),
        ];
        for (error, parts) in cases {
            let text = error.to_string();
            assert!(parts.iter().all(|part| text.contains(part)), "{text}");
        }
    }
}
