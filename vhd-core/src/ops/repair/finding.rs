//! What a repair found and is going to do, as data.

use std::fmt;

use crate::device::ByteRange;
use crate::units::SECTOR_SIZE;

/// How sure it is that a change gives back what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Certainty {
    /// A checksum, the other copy or the rules of the format leave no other possibility.
    Certain,
    /// The evidence speaks for it.
    Assumed,
}

/// What a finding of a repair is about: scripts go by it. The text form never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RepairCode {
    /// The footer in use is the copy, another one in the file, or a damaged one put right.
    FooterChosen,
    /// Both footers are lost: a new one is made.
    FooterRebuilt,
    /// A footer is written at the end of the file.
    FooterWritten,
    /// The footer copy at the start is written.
    FooterCopyWritten,
    /// Bytes behind the footer of a fixed image are cut off.
    BytesCut,
    /// The disk's size in the footer is put right.
    DiskSize,
    /// A dynamic header that stands elsewhere is used.
    HeaderFound,
    /// A damaged dynamic header is put right.
    HeaderRestored,
    /// A parent locator that leads nowhere is removed.
    LocatorRemoved,
    /// A block that the file ends in is completed with zeroes.
    BlockCompleted,
    /// A table entry that led nowhere leads to a block that nothing else refers to.
    EntryRestored,
    /// A table entry that leads nowhere is cleared.
    EntryCleared,
    /// A block that lies over another one gets a copy of its own.
    BlockCopied,
    /// Space that looks like a block, of which nothing tells which it is.
    BlockUnknown,
    /// Bits of a bitmap are set where it hid data.
    BitmapRestored,
    /// Bytes in sectors that bitmaps call absent, in many blocks: they stay.
    StaleSectors,
}

impl RepairCode {
    /// The stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::FooterChosen => "footer-chosen",
            Self::FooterRebuilt => "footer-rebuilt",
            Self::FooterWritten => "footer-written",
            Self::FooterCopyWritten => "footer-copy-written",
            Self::BytesCut => "bytes-cut",
            Self::DiskSize => "disk-size",
            Self::HeaderFound => "header-found",
            Self::HeaderRestored => "header-restored",
            Self::LocatorRemoved => "locator-removed",
            Self::BlockCompleted => "block-completed",
            Self::EntryRestored => "entry-restored",
            Self::EntryCleared => "entry-cleared",
            Self::BlockCopied => "block-copied",
            Self::BlockUnknown => "block-unknown",
            Self::BitmapRestored => "bitmap-restored",
            Self::StaleSectors => "stale-sectors",
        }
    }
}

impl fmt::Display for RepairCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that a repair found, and what it does about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RepairFinding {
    /// What it is about.
    pub code: RepairCode,
    /// How sure it is.
    pub certainty: Certainty,
    /// Where in the file, in bytes, if it has a place.
    pub offset: Option<u64>,
    /// What was found and what is done.
    pub message: String,
}

/// A range of the disk whose content is not certain after the repair.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The range, in bytes of the disk; whole sectors.
    pub range: ByteRange,
    /// What it reads after the repair, and why that is not certain.
    pub reason: String,
    /// What was there is not in the image any more: it reads zero, or what the parent has.
    pub lost: bool,
}

/// The sectors in ranges that are in the order of the disk and may share some.
pub(super) fn sectors<'a>(doubts: impl Iterator<Item = &'a Doubt>) -> u64 {
    let (mut bytes, mut counted) = (0, 0);
    for doubt in doubts {
        let from = doubt.range.start.max(counted);
        bytes += doubt.range.end().saturating_sub(from);
        counted = counted.max(doubt.range.end());
    }
    bytes / SECTOR_SIZE
}
