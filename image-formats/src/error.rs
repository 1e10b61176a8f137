//! Why an image can't be read.

use std::fmt;
use std::io;

use vhd_block::{DeviceError, ErrorKind, io_kind, with_causes};

/// Why an image can't be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file can't be read.
    #[error("cannot read {len:#x} bytes at {offset:#x} of the file")]
    Read {
        /// Where in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// It breaks a rule of its format.
    #[error(transparent)]
    Broken(#[from] BrokenRule),
    /// It needs something that this reader does not do.
    #[error("{feature} at {offset:#x}: not supported by this reader, which would read wrong bytes without it")]
    Unsupported {
        /// What it needs.
        feature: String,
        /// Where in the file that stands.
        offset: u64,
    },
}

/// A broken rule: which, where, what was found and what is right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{rule} at {offset:#x}: found {found}, expected {expected}")]
pub struct BrokenRule {
    /// The rule.
    pub rule: Rule,
    /// Where in the file.
    pub offset: u64,
    /// What stands there.
    pub found: String,
    /// What is right.
    pub expected: String,
}

impl BrokenRule {
    pub(crate) fn new(rule: Rule, offset: u64, found: impl fmt::Display, expected: impl fmt::Display) -> Self {
        Self {
            rule,
            offset,
            found: found.to_string(),
            expected: expected.to_string(),
        }
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $words:literal;)+) => {
        /// A rule of a format. The stable name is for scripts and reports.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Rule { $($(#[$doc])* $variant,)+ }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// The stable name.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }

        impl fmt::Display for Rule {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $words,)+ })
            }
        }
    };
}

rules! {
    /// The file does not end before what its format has there.
    FileTooShort = "file-too-short", "end of the file";
    /// The file begins with its identifier.
    Identifier = "identifier", "file identifier";
    /// One header is valid, and newer than the other.
    Header = "header", "header";
    /// One region table is valid.
    RegionTable = "region-table", "region table";
    /// A region is inside the file, at a multiple of 1 MiB, and overlaps no other.
    Region = "region", "region";
    /// The log of an image that was not closed has one whole sequence of entries.
    Log = "log", "log";
    /// The metadata table and its entries are inside the metadata region.
    MetadataTable = "metadata-table", "metadata table";
    /// A metadata item has its length and a value that the format allows.
    MetadataItem = "metadata-item", "metadata item";
    /// The parent locator is complete.
    ParentLocator = "parent-locator", "parent locator";
    /// The block table has an entry for every block.
    TableTooShort = "table-too-short", "block table";
    /// A table entry has a state that the format knows.
    EntryState = "entry-state", "state of a block";
    /// A block does not lie in the image's metadata.
    BlockInMetadata = "block-in-metadata", "block in the image's metadata";
    /// A block lies in the file.
    BlockPastEnd = "block-past-end", "block past the end of the file";
    /// A table of a qcow2 is at the start of a cluster, inside the file.
    Table = "table", "table";
    /// A compressed cluster holds one cluster.
    Compression = "compression", "compressed cluster";
    /// Two blocks do not overlap.
    BlockOverlap = "block-overlap", "overlapping blocks";
    /// A block that is partly present has a sector bitmap.
    SectorBitmap = "sector-bitmap", "sector bitmap";
}

impl ImageError {
    /// The kind of failure, as devices have it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } => io_kind(source),
            Self::Broken(_) => ErrorKind::Failed(DAMAGED),
            Self::Unsupported { .. } => ErrorKind::Refused(FEATURE),
        }
    }
}

/// The stable name of the kind of failure when an image breaks a rule of its format.
pub const DAMAGED: &str = "image-damaged";
/// The stable name of the kind of failure when an image needs what this reader does not do.
pub const FEATURE: &str = "image-feature";

impl From<ImageError> for DeviceError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Read { offset, source, .. } => Self::Io {
                operation: "read",
                offset,
                source,
            },
            error => Self::Image {
                kind: error.kind(),
                message: with_causes(&error),
            },
        }
    }
}

/// For reads of the file.
pub(crate) trait ReadContext<T> {
    /// Says where the file could not be read.
    fn at(self, offset: u64, len: usize) -> Result<T, ImageError>;
}

impl<T> ReadContext<T> for io::Result<T> {
    fn at(self, offset: u64, len: usize) -> Result<T, ImageError> {
        self.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => {
                let expected = format!("{len:#x} bytes");
                BrokenRule::new(Rule::FileTooShort, offset, "the end of the file", expected).into()
            }
            _ => {
                let len = vhd_block::units::u64_from(len);
                ImageError::Read { offset, len, source }
            }
        })
    }
}
