//! The kinds of failure: what a program branches on. Each error type of the library answers `kind()`.

use vhd_block::ErrorKind as DeviceKind;
pub use vhd_block::with_causes;

/// What went wrong, apart from where. A program maps these to exit codes or errno in one table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Neither the footer nor its copy is there: not a VHD, or one whose both ends are lost.
    FooterMissing,
    /// A footer whose checksum does not match, and no valid copy.
    FooterChecksum,
    /// A disk type other than fixed, dynamic or differencing.
    DiskType,
    /// A disk size that is zero, no multiple of 512, or too large.
    DiskSize,
    /// The dynamic header's position is not inside the file.
    HeaderLocation,
    /// No dynamic header where the footer says it is.
    HeaderMissing,
    /// The dynamic header's checksum does not match.
    HeaderChecksum,
    /// A dynamic header of an unknown version.
    HeaderVersion,
    /// A block size that is no power of two times 512, or out of range.
    BlockSize,
    /// A block allocation table with fewer entries than the disk has blocks.
    TableTooShort,
    /// A block allocation table that is not inside the file.
    TableLocation,
    /// A table entry that points into the image's metadata.
    BlockInMetadata,
    /// A table entry that points past the end of the file.
    BlockPastEnd,
    /// Two table entries whose blocks overlap.
    BlockOverlap,
    /// A fixed image shorter than its disk.
    FileTooShort,
    /// Another program left an unfinished journaled operation (cookie `v_poison`).
    JournalPending,
    /// A document beside an image is not what was written.
    RecordDamaged,
    /// A document beside an image is of a kind or version that this program does not know.
    RecordUnknown,
    /// A resize was interrupted, and has to be finished first.
    ResizeUnfinished,
    /// A virtual machine is saved with the disk: the format forbids to rearrange it.
    SavedState,
    /// Metadata of another program, which would not be true any more.
    ForeignMetadata,
    /// The file's content does not tell whether it is a VHD or raw.
    Ambiguous,
    /// The file is in another program's format.
    ForeignFormat,
    /// The file is in another program's format that is read here, where a VHD is needed or a disk that can be written.
    ReadOnlyFormat,
    /// An image of another program breaks a rule of its format.
    ImageDamaged,
    /// An image of another program needs what its reader does not know.
    ImageFeature,
    /// The file is named like a VHD and has no footer, nor any other trace of one.
    FooterLost,
    /// The file is empty, or smaller than the smallest disk.
    TooSmall,
    /// A raw disk would be written that was not said to be one.
    RawWrite,
    /// A file that could be a raw disk, where only a VHD will do.
    NotVhd,
    /// Damage that leaves nothing to repair the image by.
    NotRepairable,
    /// What the caller says of an image is not what it certainly is.
    FactsContradict,
    /// An undo file that is damaged, or not one of the image as it is now.
    UndoMismatch,

    /// The disk says that it has a partition table that is not usable, or can't be moved.
    PartitionTable,

    /// There are no digests to verify a disk by.
    DigestMissing,
    /// A record of digests is damaged itself.
    DigestDamaged,
    /// A record of digests is of another disk.
    DigestOtherDisk,

    /// No file with the parent's identity was found.
    ParentMissing,
    /// A file was found in the parent's place, but it is another disk.
    ParentMismatch,
    /// The chain of parents comes back to one of its own files.
    ChainCycle,
    /// More layers than the library follows.
    ChainTooDeep,
    /// The block tables of a chain take more memory than the library gives one disk.
    TablesTooLarge,
    /// A child of another size than its parent can't be written.
    SizeMismatch,
    /// A disk is not the one that its digest says.
    DigestMismatch,

    /// Other images are known to be based on the disk, whose content would change.
    HasChildren,

    /// The host file system failed.
    Io,
    /// The file, or a directory on its path, does not exist.
    NotFound,
    /// The host file system is full.
    NoSpace,
    /// Another program holds the image.
    Locked,
    /// It can only be done while nobody uses the disk.
    InUse,
    /// A descriptor of the caller's is not open as it must be, or is not one of the chain.
    Descriptor,
    /// The destination exists.
    Exists,
    /// The file is on a cluster volume, and is changed through that alone.
    OnVolume,
    /// An unfinished job of another kind, or with other arguments, comes first.
    JobPending,
    /// A file is not what it was when the job began that is to go on.
    Changed,
    /// A disk has no snapshot of that name.
    SnapshotMissing,
    /// A disk has a snapshot of that name already.
    SnapshotExists,
    /// Writes that no snapshot holds would be lost.
    SnapshotsUnsaved,
    /// The manifest of a disk's snapshots does not describe the images that are there.
    ManifestStale,
    /// What is to be cut off a disk is in use.
    TailInUse,
    /// The image is tied to others that must have the same size.
    TiedSizes,

    /// A request outside the disk.
    OutOfRange,
    /// A request that is not aligned.
    Misaligned,
    /// A write to something opened for reading.
    ReadOnly,
    /// A request the device can't serve.
    Unsupported,
    /// Zeroes that would have to be written out although the caller forbade it.
    NotFast,
    /// No further block fits what a table entry can address.
    ImageFull,
    /// An earlier flush failed; nothing is written until the image is opened again.
    Poisoned,
    /// The lease that allows to change the metadata is gone.
    FenceLost,
    /// An argument that no image can have (size, block size, name).
    InvalidArgument,
    /// What was written does not read as it must.
    Verification,
    /// A disk without blocks: a fixed or raw one.
    NoBlocks,
    /// It was told to stop.
    Cancelled,
    /// What must not change did.
    ContentChanged,
    /// Something that the file does not tell has to be said by the caller.
    FactsMissing,
    /// Two images are not related as the job needs them.
    NotRelated,

    /// The disk of a server holds a VHD image, and nothing says whether that or its bytes are meant.
    ExportHoldsVhd,

    /// A device failed that is none of this library's: the stable name that it has for that.
    Foreign(&'static str),
}

impl ErrorKind {
    /// Every kind, for tables that must have an entry for each.
    pub const ALL: &[Self] = &[
        Self::FooterMissing,
        Self::FooterChecksum,
        Self::DiskType,
        Self::DiskSize,
        Self::HeaderLocation,
        Self::HeaderMissing,
        Self::HeaderChecksum,
        Self::HeaderVersion,
        Self::BlockSize,
        Self::TableTooShort,
        Self::TableLocation,
        Self::BlockInMetadata,
        Self::BlockPastEnd,
        Self::BlockOverlap,
        Self::FileTooShort,
        Self::JournalPending,
        Self::RecordDamaged,
        Self::RecordUnknown,
        Self::ResizeUnfinished,
        Self::SavedState,
        Self::ForeignMetadata,
        Self::Ambiguous,
        Self::ForeignFormat,
        Self::ReadOnlyFormat,
        Self::ImageDamaged,
        Self::ImageFeature,
        Self::FooterLost,
        Self::TooSmall,
        Self::RawWrite,
        Self::NotVhd,
        Self::NotRepairable,
        Self::FactsContradict,
        Self::UndoMismatch,
        Self::PartitionTable,
        Self::DigestMissing,
        Self::DigestDamaged,
        Self::DigestOtherDisk,
        Self::ParentMissing,
        Self::ParentMismatch,
        Self::ChainCycle,
        Self::ChainTooDeep,
        Self::TablesTooLarge,
        Self::SizeMismatch,
        Self::DigestMismatch,
        Self::HasChildren,
        Self::Io,
        Self::NotFound,
        Self::NoSpace,
        Self::Locked,
        Self::InUse,
        Self::Descriptor,
        Self::Exists,
        Self::OnVolume,
        Self::JobPending,
        Self::Changed,
        Self::SnapshotMissing,
        Self::SnapshotExists,
        Self::SnapshotsUnsaved,
        Self::ManifestStale,
        Self::TailInUse,
        Self::TiedSizes,
        Self::OutOfRange,
        Self::Misaligned,
        Self::ReadOnly,
        Self::Unsupported,
        Self::NotFast,
        Self::ImageFull,
        Self::Poisoned,
        Self::FenceLost,
        Self::InvalidArgument,
        Self::Verification,
        Self::NoBlocks,
        Self::Cancelled,
        Self::ContentChanged,
        Self::FactsMissing,
        Self::NotRelated,
        Self::ExportHoldsVhd,
    ];

    /// The stable name, for scripts and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::FooterMissing => "footer-missing",
            Self::FooterChecksum => "footer-checksum",
            Self::DiskType => "disk-type",
            Self::DiskSize => "disk-size",
            Self::HeaderLocation => "header-location",
            Self::HeaderMissing => "header-missing",
            Self::HeaderChecksum => "header-checksum",
            Self::HeaderVersion => "header-version",
            Self::BlockSize => "block-size",
            Self::TableTooShort => "table-too-short",
            Self::TableLocation => "table-location",
            Self::BlockInMetadata => "block-in-metadata",
            Self::BlockPastEnd => "block-past-end",
            Self::BlockOverlap => "block-overlap",
            Self::FileTooShort => "file-too-short",
            Self::JournalPending => "journal-pending",
            Self::RecordDamaged => "record-damaged",
            Self::RecordUnknown => "record-unknown",
            Self::ResizeUnfinished => "resize-unfinished",
            Self::SavedState => "saved-state",
            Self::ForeignMetadata => "foreign-metadata",
            Self::Ambiguous => "format-ambiguous",
            Self::ForeignFormat => "foreign-format",
            Self::ReadOnlyFormat => "read-only-format",
            Self::ImageDamaged => image_formats::DAMAGED,
            Self::ImageFeature => image_formats::FEATURE,
            Self::FooterLost => "footer-lost",
            Self::TooSmall => "too-small",
            Self::RawWrite => "raw-write",
            Self::NotVhd => "not-vhd",
            Self::NotRepairable => "not-repairable",
            Self::FactsContradict => "facts-contradict",
            Self::UndoMismatch => "undo-mismatch",
            Self::PartitionTable => "partition-table",
            Self::DigestMissing => "digest-missing",
            Self::DigestDamaged => "digest-damaged",
            Self::DigestOtherDisk => "digest-other-disk",
            Self::ParentMissing => DeviceKind::ParentMissing.name(),
            Self::ParentMismatch => "parent-mismatch",
            Self::ChainCycle => "chain-cycle",
            Self::ChainTooDeep => "chain-too-deep",
            Self::TablesTooLarge => "tables-too-large",
            Self::SizeMismatch => "size-mismatch",
            Self::DigestMismatch => "digest-mismatch",
            Self::HasChildren => "has-children",
            Self::Io => DeviceKind::Io.name(),
            Self::NotFound => DeviceKind::NotFound.name(),
            Self::NoSpace => DeviceKind::NoSpace.name(),
            Self::Locked => "locked",
            Self::InUse => "in-use",
            Self::Descriptor => "descriptor",
            Self::Exists => DeviceKind::Exists.name(),
            Self::OnVolume => "on-volume",
            Self::JobPending => "job-pending",
            Self::Changed => "changed-meanwhile",
            Self::SnapshotMissing => "snapshot-missing",
            Self::SnapshotExists => "snapshot-exists",
            Self::SnapshotsUnsaved => "snapshots-unsaved",
            Self::ManifestStale => "manifest-stale",
            Self::TailInUse => "tail-in-use",
            Self::TiedSizes => "tied-sizes",
            Self::OutOfRange => DeviceKind::OutOfRange.name(),
            Self::Misaligned => DeviceKind::Misaligned.name(),
            Self::ReadOnly => DeviceKind::ReadOnly.name(),
            Self::Unsupported => DeviceKind::Unsupported.name(),
            Self::NotFast => DeviceKind::NotFast.name(),
            Self::ImageFull => DeviceKind::ImageFull.name(),
            Self::Poisoned => DeviceKind::Poisoned.name(),
            Self::FenceLost => DeviceKind::FenceLost.name(),
            Self::InvalidArgument => DeviceKind::InvalidArgument.name(),
            Self::Verification => "verification",
            Self::NoBlocks => "no-blocks",
            Self::Cancelled => "cancelled",
            Self::ContentChanged => "content-changed",
            Self::FactsMissing => "facts-missing",
            Self::NotRelated => "not-related",
            Self::ExportHoldsVhd => "export-holds-vhd",
            Self::Foreign(name) => name,
        }
    }
}

impl From<DeviceKind> for ErrorKind {
    fn from(kind: DeviceKind) -> Self {
        let name = kind.name();
        let own = Self::ALL.iter().find(|own| own.name() == name);
        own.copied().unwrap_or(Self::Foreign(name))
    }
}

impl From<ErrorKind> for DeviceKind {
    fn from(kind: ErrorKind) -> Self {
        let name = kind.name();
        let known = Self::ALL.iter().find(|known| known.name() == name);
        known.copied().unwrap_or(match kind {
            // What stands against a resize.
            ErrorKind::TailInUse
            | ErrorKind::TiedSizes
            | ErrorKind::HasChildren
            | ErrorKind::SavedState
            | ErrorKind::ForeignMetadata
            | ErrorKind::PartitionTable
            | ErrorKind::Changed
            | ErrorKind::ResizeUnfinished => Self::Refused(name),
            _ => Self::Failed(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The variants as they stand in this file: a kind that is missing in the list is missing in every table.
    #[test]
    fn the_list_has_every_variant() {
        let source = include_str!("error.rs").lines();
        let variants = source.filter_map(|line| line.strip_prefix("    ")?.strip_suffix(','));
        let variants: Vec<&str> = variants
            .filter(|name| name.chars().all(char::is_alphanumeric))
            .collect();
        let listed: Vec<String> = ErrorKind::ALL.iter().map(|kind| format!("{kind:?}")).collect();
        assert_eq!(variants, listed);
    }

    #[test]
    fn kinds_of_devices_keep_their_names_both_ways() {
        for &kind in DeviceKind::ALL {
            let own = ErrorKind::from(kind);
            assert!(ErrorKind::ALL.contains(&own), "{kind:?}");
            assert_eq!(DeviceKind::from(own), kind);
        }
        for &kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from(DeviceKind::from(kind)), kind);
        }
        let foreign = ErrorKind::from(DeviceKind::Failed("unheard-of"));
        assert_eq!(foreign, ErrorKind::Foreign("unheard-of"));
    }
}
