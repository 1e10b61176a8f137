//! What can be wrong with a chain, and what is worth a warning.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::dependants::{DependantsError, Doubt};
use super::detect::{ForeignFormat, ImageFormat};
use image_formats::ImageError;

use crate::ErrorKind;
use crate::format::{FormatError, Timestamp, UniqueId};
use crate::image::OpenError;
use crate::job::{JobError, JobKind};
use crate::storage::{StorageError, io_kind};

/// Why a disk can't be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// A file can't be opened or locked.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A file could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// An image breaks a rule of the format.
    #[error("{} is not a usable VHD", path.display())]
    Image {
        /// The file.
        path: PathBuf,
        /// The rule.
        #[source]
        source: OpenError,
    },
    /// A footer with other bytes behind it: the file was cut, or something was appended to it.
    #[error(
        "{} looks like a VHD with bytes behind its footer: the cookie `conectix` stands at {offset:#x}, and the file of \
         {file_len:#x} bytes would have it 512 bytes before its end: try `vhd repair {}`, or name the format to say what \
         it is (`--from raw` takes all of it as a raw disk)",
        path.display(), path.display()
    )]
    Ambiguous {
        /// The file.
        path: PathBuf,
        /// Where the cookie was found.
        offset: u64,
        /// Bytes in the file.
        file_len: u64,
    },
    /// The file is in another program's format.
    #[error(
        "{} is {format}, not a VHD: {}; where a disk is read, `--from raw` takes the bytes as one",
        path.display(), format.next_step()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// The format.
        format: ForeignFormat,
    },
    /// The file is in a format that is read, where a VHD is needed, or a disk that can be written.
    #[error(
        "{} is {format}: that format is read and never written, and nothing can be based on it; `vhd convert {} \
         NEW.vhd --to dynamic` makes a VHD of it; servers and mounts take it with `--read-only`",
        path.display(), path.display()
    )]
    ReadOnlyFormat {
        /// The file.
        path: PathBuf,
        /// The format.
        format: ForeignFormat,
    },
    /// An image of another program is damaged, or needs what its reader does not know.
    #[error("{} can't be read", path.display())]
    ForeignImage {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        #[source]
        source: ImageError,
    },
    /// The file is named like a VHD, and could be a raw disk by its content.
    #[error(
        "{} is named like a VHD and has no footer: none in the last 512 of its {file_len} bytes, no copy at 0x0, no \
         dynamic header at 0x200; it begins with {content}: was it cut, or not copied to its end? `vhd repair {}` says \
         what can be restored; `--from raw` takes it as a raw disk",
        path.display(), path.display()
    )]
    FooterLost {
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        file_len: u64,
        /// What the file begins with.
        content: String,
    },
    /// The file is empty, or smaller than the smallest disk.
    #[error("{} is no disk: {}", path.display(), Small(*file_len))]
    TooSmall {
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        file_len: u64,
    },
    /// A file that could be a raw disk, where only a VHD will do.
    #[error(
        "{} is not a VHD: it has neither a footer nor a dynamic header, and begins with {content}",
        path.display()
    )]
    NotVhd {
        /// The file.
        path: PathBuf,
        /// What the file begins with.
        content: String,
    },
    /// A raw disk would be written that was not said to be one.
    #[error(
        "{} is not a VHD, and what is not a VHD is written only where its format is said: `--from raw` opens it as a raw \
         disk for writing",
        path.display()
    )]
    RawWrite {
        /// The file.
        path: PathBuf,
    },
    /// The disk of a server holds an image, and nothing says whether that or its bytes are meant.
    #[error(
        "the disk {} holds a {} image: `--from {}` reads the disk in the image, `--from raw` the bytes of the image",
        name.display(), format.label(), format.name()
    )]
    ExportHoldsImage {
        /// The name of the disk.
        name: PathBuf,
        /// The format of the image.
        format: ImageFormat,
    },
    /// The list of descriptors ends before the base.
    #[error(
        "{} is a differencing image, and the list of descriptors ends with it: its parent {wanted} has to be {}",
        child.display(), missing.display()
    )]
    DescriptorMissing {
        /// The image whose parent is missing.
        child: PathBuf,
        /// The parent's identity; nil if the parent is a raw file.
        wanted: UniqueId,
        /// What the parent would be called.
        missing: PathBuf,
    },
    /// The list of descriptors goes on behind the base.
    #[error("{} is not part of the chain: {} has no parent", left.display(), base.display())]
    DescriptorLeftOver {
        /// The last image of the chain.
        base: PathBuf,
        /// The first descriptor that is too many.
        left: PathBuf,
    },
    /// A leaf without a path was to be opened for writing.
    #[error(
        "{} is not opened for writing: without its path nothing tells whether other images, a snapshot or an open job \
         rely on it; look where the path is known, then set `ignore_children`",
        path.display()
    )]
    DependantsUnknown {
        /// What the leaf is called.
        path: PathBuf,
    },
    /// An unfinished job keeps the image from being written.
    #[error(transparent)]
    Job(#[from] JobError),
    /// No file with the parent's identity was found.
    #[error("the parent {wanted} of {} was not found{}", child.display(), Tried(tried))]
    ParentMissing {
        /// The image whose parent is missing.
        child: PathBuf,
        /// The parent's identity; nil if the parent is a raw file.
        wanted: UniqueId,
        /// What was tried, in order.
        tried: Vec<TriedParent>,
    },
    /// Files were found in the parent's place, but all are other disks.
    #[error("no file in the parent's place is the parent {wanted} of {}{}", child.display(), Tried(tried))]
    ParentMismatch {
        /// The image whose parent was looked for.
        child: PathBuf,
        /// The parent's identity.
        wanted: UniqueId,
        /// What was tried, in order.
        tried: Vec<TriedParent>,
    },
    /// The chain comes back to itself.
    #[error("the parents of {} form a circle: {} is its own ancestor", child.display(), path.display())]
    Cycle {
        /// The image whose parent was looked for.
        child: PathBuf,
        /// The file that is in the chain already.
        path: PathBuf,
    },
    /// More layers than are followed.
    #[error("{} is a chain of more than {limit} layers", path.display())]
    TooDeep {
        /// The leaf.
        path: PathBuf,
        /// How many layers are followed.
        limit: usize,
    },
    /// The block tables of the layers take more memory than a chain may have.
    #[error(
        "the block tables of the chain down to {} take {bytes} bytes of memory, and {maximum} is the most; convert a layer \
         further down, or merge some",
        path.display()
    )]
    TablesTooLarge {
        /// The layer with which it was too much.
        path: PathBuf,
        /// Bytes of memory for the tables so far.
        bytes: u64,
        /// The most.
        maximum: u64,
    },
    /// A fixed image was being resized, and has no footer until that is finished.
    #[error(
        "{} has no footer, because a resize of it was interrupted ({}): finish it with vhd resize {} {}",
        path.display(), record.display(), path.display(), size.map_or("SIZE".to_owned(), |size| size.to_string())
    )]
    ResizeUnfinished {
        /// The image.
        path: PathBuf,
        /// What says how far the resize was.
        record: PathBuf,
        /// Bytes that the disk is to have; `None` if the record can't be read.
        size: Option<u64>,
    },
    /// Other images rely on the one that was to be opened for writing, or that can't be known.
    #[error(transparent)]
    Dependants(#[from] DependantsError),
    /// A file is another one than was looked at before under this name.
    #[error("{} was replaced by another file while the job was prepared: run it again", path.display())]
    Replaced {
        /// The file.
        path: PathBuf,
    },
    /// A child of another size than its parent is not written.
    #[error(
        "{} has {child_size} bytes and its parent {} has {parent_size}: such a child is readable but not writable",
        child.display(),
        parent.display()
    )]
    SizeMismatch {
        /// The child.
        child: PathBuf,
        /// Bytes on its disk.
        child_size: u64,
        /// The parent.
        parent: PathBuf,
        /// Bytes on its disk.
        parent_size: u64,
    },
}

impl ChainError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Storage(error) => error.kind(),
            Self::Read { source, .. } => io_kind(source),
            Self::Image { source, .. } => source.kind(),
            Self::Ambiguous { .. } => ErrorKind::Ambiguous,
            Self::Foreign { .. } => ErrorKind::ForeignFormat,
            Self::FooterLost { .. } => ErrorKind::FooterLost,
            Self::TooSmall { .. } => ErrorKind::TooSmall,
            Self::NotVhd { .. } => ErrorKind::NotVhd,
            Self::RawWrite { .. } => ErrorKind::RawWrite,
            Self::ExportHoldsImage { .. } => ErrorKind::ExportHoldsVhd,
            Self::ReadOnlyFormat { .. } => ErrorKind::ReadOnlyFormat,
            Self::ForeignImage { source, .. } => source.kind().into(),
            Self::Job(error) => error.kind(),
            Self::DescriptorLeftOver { .. } | Self::DependantsUnknown { .. } => ErrorKind::Descriptor,
            Self::DescriptorMissing { .. } | Self::ParentMissing { .. } => ErrorKind::ParentMissing,
            Self::ParentMismatch { .. } => ErrorKind::ParentMismatch,
            Self::Cycle { .. } => ErrorKind::ChainCycle,
            Self::TooDeep { .. } => ErrorKind::ChainTooDeep,
            Self::TablesTooLarge { .. } => ErrorKind::TablesTooLarge,
            Self::ResizeUnfinished { .. } => ErrorKind::ResizeUnfinished,
            Self::Dependants(error) => error.kind(),
            Self::Replaced { .. } => ErrorKind::Changed,
            Self::SizeMismatch { .. } => ErrorKind::SizeMismatch,
        }
    }
}

/// How small a file is that is no disk.
struct Small(u64);

impl fmt::Display for Small {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => f.write_str("the file is empty"),
            len => write!(f, "the file has {len} bytes, less than one sector of 512"),
        }
    }
}

/// A path at which a parent was looked for.
#[derive(Debug)]
#[non_exhaustive]
pub struct TriedParent {
    /// The path on this machine.
    pub path: PathBuf,
    /// What said that the parent might be there.
    pub reason: String,
    /// What was found.
    pub outcome: ParentOutcome,
}

/// What was found where a parent was looked for.
#[derive(Debug)]
#[non_exhaustive]
pub enum ParentOutcome {
    /// Nothing.
    NotFound,
    /// Something that is no regular file or block device.
    NotAFile,
    /// The caller's policy forbids to look.
    Denied,
    /// Another disk.
    OtherDisk(UniqueId),
    /// A file of which the content changed, or that never was the parent: its data write GUID.
    OtherContent(UniqueId),
    /// A file that is no VHD.
    NotVhd,
    /// A file that is no VHDX.
    NotVhdx,
    /// A file that the user named, and that has another name than the backing file.
    OtherName,
    /// A raw file, which the user did not name.
    RawUnnamed,
    /// A file in another program's format.
    Foreign(ForeignFormat),
    /// A file that can't be read.
    Unreadable(String),
}

impl fmt::Display for ParentOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such file"),
            Self::NotAFile => f.write_str("not a file"),
            Self::Denied => f.write_str("not looked at: only explicitly named parents are allowed"),
            Self::OtherDisk(id) => write!(f, "another disk, {id}"),
            Self::OtherContent(id) => {
                write!(
                    f,
                    "another disk, or changed since the child was made: its data write GUID is {id}"
                )
            }
            Self::NotVhd => f.write_str("not a VHD"),
            Self::NotVhdx => f.write_str("not a VHDX"),
            Self::OtherName => f.write_str("not looked at: the backing file has another name"),
            Self::RawUnnamed => f.write_str("a raw file, or no image: a raw backing file must be named with --parent"),
            Self::Foreign(format) => write!(f, "{format}, not a VHD"),
            Self::Unreadable(reason) => write!(f, "unreadable: {reason}"),
        }
    }
}

struct Tried<'a>(&'a [TriedParent]);

impl fmt::Display for Tried<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("; the image names no place to look");
        }
        f.write_str("; tried:")?;
        for TriedParent { path, reason, outcome } in self.0 {
            write!(f, "\n  {} ({reason}): {outcome}", path.display())?;
        }
        Ok(())
    }
}

/// What is odd about a chain that can be read all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainWarning {
    /// The parent's file was modified after the child was made, or was copied.
    #[error(
        "the parent {} was modified at {found}, and its child {} recorded {recorded}: it was changed or copied since; \
         `vhd verify` compares its content with a record of it, if there is one",
        parent.display(), child.display()
    )]
    ParentTimestamp {
        /// The child.
        child: PathBuf,
        /// The parent.
        parent: PathBuf,
        /// What the child recorded.
        recorded: Timestamp,
        /// The parent file's modification time.
        found: Timestamp,
    },
    /// An unfinished job changes the image: by itself it is neither what it was nor what it is going to be.
    #[error(
        "{} belongs to an unfinished {kind}, recorded in {}: by itself it may be neither what it was nor what it is \
         going to be",
        path.display(), record.display()
    )]
    JobOpen {
        /// The image.
        path: PathBuf,
        /// The job.
        kind: JobKind,
        /// Its record.
        record: PathBuf,
    },
    /// Child and parent differ in size.
    #[error("{} has {child_size} bytes but its parent {} has {parent_size}", child.display(), parent.display())]
    ParentSize {
        /// The child.
        child: PathBuf,
        /// Bytes on its disk.
        child_size: u64,
        /// The parent.
        parent: PathBuf,
        /// Bytes on its disk.
        parent_size: u64,
    },
    /// The footer at the end is not usable; the copy is in use.
    #[error("the footer at the end of {} is not usable ({reason}); using its copy", path.display())]
    FooterRecovered {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: FormatError,
    },
    /// The leaf is open for writing, and not all that is around its directory was looked at for images based on it.
    #[error("the search for images that are based on {} was cut short around its directory: {limit}", path.display())]
    SearchCutShort {
        /// The leaf.
        path: PathBuf,
        /// The limit.
        limit: Doubt,
    },
    /// The copy at the start is not usable; the footer is in use.
    #[error("the footer copy at the start of {} is not usable ({reason})", path.display())]
    FooterCopyDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: FormatError,
    },
    /// A raw disk whose length is no multiple of a sector.
    #[error(
        "the raw disk {} has {file_len} bytes, which is no multiple of 512: was it cut? It is completed with zeroes",
        path.display()
    )]
    OddLength {
        /// The file.
        path: PathBuf,
        /// Bytes in the file.
        file_len: u64,
    },
    /// Something is odd about an image of another program.
    #[error("{}: {oddity}", path.display())]
    ForeignOddity {
        /// The file.
        path: PathBuf,
        /// What it is.
        oddity: String,
    },
    /// The disk has other logical sectors than the disks here.
    #[error(
        "{} has logical sectors of {bytes} bytes: its partition table counts in those, and what is made of it here has \
         sectors of 512",
        path.display()
    )]
    LogicalSectors {
        /// The file.
        path: PathBuf,
        /// Bytes in a logical sector.
        bytes: u32,
    },
    /// Both footers are valid and differ.
    #[error("the footer of {} and its copy differ; using the footer", path.display())]
    FootersDiffer {
        /// The file.
        path: PathBuf,
    },
}
