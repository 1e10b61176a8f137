//! Detecting the format of a file: VHD, raw, or something that is neither.
//!
//! Every command and every way into a chain asks here. Any bytes can be a raw disk, so raw is what is left when
//! nothing speaks against it: no trace of a VHD, no magic number of another container, no name that promises a VHD.
//!
//! ```text
//! foreign.rs   is it another program's format?   known.rs      the table of these formats
//! sample.rs    the bytes that are looked at      marks.rs      the tests that are more than a magic number
//! footer.rs    a footer that is not at the end   content.rs    what a raw disk begins with
//! ```

mod content;
mod footer;
mod foreign;
mod known;
mod marks;
mod sample;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::path::Path;

pub use foreign::{ForeignClass, ForeignFormat};

use super::ChainError;
use crate::format::{DiskType, FOOTER_SIZE, HEADER_SIZE, has_header_cookie};
use crate::image::{FooterSource, Footers, OpenError};
use crate::storage::StorageFile;
use crate::units::{SECTOR_SIZE, u64_from};
use content::DiskContent;
use sample::Sample;

/// The formats a disk image can have here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    /// The bytes of the disk and nothing else.
    Raw,
    /// A virtual hard disk image.
    Vhd,
    /// A VHDX image, for reading.
    Vhdx,
    /// A qcow2 image, for reading.
    Qcow2,
    /// A VMDK image, for reading.
    Vmdk,
}

/// What a file was found to be.
enum Verdict {
    /// It has a footer or a header, damaged or not: opening it says what is wrong.
    Vhd,
    /// Nothing speaks against a raw disk.
    Raw,
    /// Another program's format.
    Foreign(ForeignFormat),
    /// Less than one sector.
    TooSmall { file_len: u64 },
    /// A footer with other bytes behind it.
    FooterInside { offset: u64, file_len: u64 },
}

impl ImageFormat {
    /// Detects the format of a file by its content, and by its name where the content could be anything.
    ///
    /// A file with a footer at either end is a VHD, even a damaged one, and so is a file with a dynamic header alone:
    /// opening it says what is wrong.
    ///
    /// # Errors
    /// [`ChainError::Foreign`] for another program's format; [`ChainError::Ambiguous`] for a footer that is not at the
    /// end; [`ChainError::FooterLost`] for a file that is named like a VHD and has no trace of one;
    /// [`ChainError::TooSmall`] for less than a sector.
    pub fn detect(file: &dyn StorageFile, path: &Path) -> Result<Self, ChainError> {
        match examine(file, footer::Reach::Far).map_err(|source| read_error(path, source))? {
            Verdict::Raw if promises_vhd(path) => Err(footer_lost(file, path)?),
            verdict => verdict.format(path),
        }
    }

    /// The same for a disk on a server, whose name says nothing of its content, and where every byte that is looked at
    /// crosses the network.
    ///
    /// # Errors
    /// As [`detect`](Self::detect), but for [`ChainError::FooterLost`].
    pub(super) fn detect_remote(file: &dyn StorageFile, name: &Path) -> Result<Self, ChainError> {
        let verdict = examine(file, footer::Reach::Near).map_err(|source| read_error(name, source))?;
        verdict.format(name)
    }
}

impl ImageFormat {
    /// The stable name, as `--from` takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "vmdk",
        }
    }

    /// What people call it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Vhd => "VHD",
            Self::Vhdx => "VHDX",
            Self::Qcow2 => "qcow2",
            Self::Vmdk => "VMDK",
        }
    }
}

impl Verdict {
    fn format(self, path: &Path) -> Result<ImageFormat, ChainError> {
        let path = path.to_owned();
        Err(match self {
            Self::Vhd => return Ok(ImageFormat::Vhd),
            Self::Raw => return Ok(ImageFormat::Raw),
            Self::Foreign(format) => match format.readable() {
                Some(format) => return Ok(format),
                None => ChainError::Foreign { path, format },
            },
            Self::TooSmall { file_len } => ChainError::TooSmall { path, file_len },
            Self::FooterInside { offset, file_len } => ChainError::Ambiguous { path, offset, file_len },
        })
    }
}

/// Refuses a file that is no VHD and does not claim to be one, for what works on VHD images only. A file with any trace
/// of a VHD, or named like one, is left to the caller, who says what is wrong with it.
///
/// # Errors
/// [`ChainError::Foreign`], [`ChainError::ReadOnlyFormat`], [`ChainError::TooSmall`], or [`ChainError::NotVhd`] for what could be a raw disk.
pub fn require_vhd(file: &dyn StorageFile, path: &Path) -> Result<(), ChainError> {
    match examine(file, footer::Reach::Far).map_err(|source| read_error(path, source))? {
        Verdict::Raw if !promises_vhd(path) => Err(ChainError::NotVhd {
            path: path.to_owned(),
            content: content_of(file, path)?,
        }),
        Verdict::Vhd | Verdict::Raw | Verdict::FooterInside { .. } => Ok(()),
        Verdict::Foreign(format) if format.readable().is_some() => Err(ChainError::ReadOnlyFormat {
            path: path.to_owned(),
            format,
        }),
        verdict => verdict.format(path).map(drop),
    }
}

/// The error for a file that can't be opened as a VHD: that it is none, if that is what is wrong.
pub(crate) fn image_error(file: &dyn StorageFile, path: &Path, source: OpenError) -> ChainError {
    let is_other = matches!(
        source,
        OpenError::NoFooter { .. } | OpenError::Format { .. } | OpenError::FileTooShort { .. }
    );
    match is_other.then(|| require_vhd(file, path)) {
        Some(Err(error)) => error,
        _ => ChainError::Image {
            path: path.to_owned(),
            source,
        },
    }
}

/// The other program's format that a file is in, if it is in one.
pub(super) fn foreign_format(file: &dyn StorageFile) -> io::Result<Option<ForeignFormat>> {
    Ok(match examine(file, footer::Reach::Near)? {
        Verdict::Foreign(format) => Some(format),
        _ => None,
    })
}

/// Whether a file is an image by its content alone: a VHD, damaged or not, or one of another program that is read here.
pub(super) fn is_image_by_content(file: &dyn StorageFile) -> io::Result<bool> {
    Ok(match examine(file, footer::Reach::Near)? {
        Verdict::Vhd => true,
        Verdict::Foreign(format) => format.readable().is_some(),
        Verdict::Raw | Verdict::TooSmall { .. } | Verdict::FooterInside { .. } => false,
    })
}

/// The one place that decides. Names are not looked at.
fn examine(file: &dyn StorageFile, reach: footer::Reach) -> io::Result<Verdict> {
    let footers = match Footers::read(file) {
        Ok(footers) if is_at_its_place(&footers) => return Ok(Verdict::Vhd),
        Err(OpenError::Read { source, .. }) => return Err(source),
        footers => footers,
    };
    let file_len = file.len()?;
    if has_header_at_usual_place(file, file_len)? {
        return Ok(Verdict::Vhd);
    }
    let sample = Sample::read(file)?;
    // Before the footer of a fixed image that is not where that disk ends: a container may end with a disk that does.
    if let Some(format) = foreign::recognise(&sample)? {
        return Ok(Verdict::Foreign(format));
    }
    if !matches!(footers, Err(OpenError::NoFooter { .. })) {
        return Ok(Verdict::Vhd);
    }
    if file_len < SECTOR_SIZE {
        return Ok(Verdict::TooSmall { file_len });
    }
    Ok(match footer::find_inside(&sample, reach)? {
        Some(offset) => Verdict::FooterInside { offset, file_len },
        None => Verdict::Raw,
    })
}

/// Whether a valid footer is where every writer puts it: then the file is that image, whatever its disk begins with.
fn is_at_its_place(footers: &Footers) -> bool {
    match (footers.source, footers.footer.disk_type) {
        (FooterSource::Tail(offset) | FooterSource::LegacyTail(offset), DiskType::Fixed) => {
            footers.footer.current_size == offset.0
        }
        // Of the others the start of the file is theirs.
        _ => footers.source == FooterSource::Copy || matches!(footers.copy, Some(Ok(_))),
    }
}

/// Whether a dynamic header stands where every writer puts it, behind the footer copy.
fn has_header_at_usual_place(file: &dyn StorageFile, file_len: u64) -> io::Result<bool> {
    let mut bytes = [0; HEADER_SIZE];
    let offset = u64_from(FOOTER_SIZE);
    if file_len < offset + u64_from(HEADER_SIZE) {
        return Ok(false);
    }
    file.read_exact_at(&mut bytes, offset)?;
    Ok(has_header_cookie(&bytes))
}

/// The extensions that promise a VHD, or the format that came after it.
const PROMISING: [&str; 5] = ["vhd", "avhd", "vud", "vhdx", "avhdx"];

/// Whether the name of a file promises a VHD: its own, or that of the file that a link leads to (`/dev/stdin` too).
fn promises_vhd(path: &Path) -> bool {
    has_promising_name(path) || path.canonicalize().is_ok_and(|target| has_promising_name(&target))
}

fn has_promising_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| PROMISING.iter().any(|known| extension.eq_ignore_ascii_case(known)))
}

fn footer_lost(file: &dyn StorageFile, path: &Path) -> Result<ChainError, ChainError> {
    Ok(ChainError::FooterLost {
        path: path.to_owned(),
        file_len: file.len().map_err(|source| read_error(path, source))?,
        content: content_of(file, path)?,
    })
}

fn content_of(file: &dyn StorageFile, path: &Path) -> Result<String, ChainError> {
    let sample = Sample::read(file).map_err(|source| read_error(path, source))?;
    Ok(Beginning(DiskContent::of(&sample), sample.head_is_zero()).to_string())
}

fn read_error(path: &Path, source: io::Error) -> ChainError {
    ChainError::Read {
        path: path.to_owned(),
        source,
    }
}

/// What a file begins with, for a message.
struct Beginning(Option<DiskContent>, bool);

impl fmt::Display for Beginning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self(Some(content), _) => f.write_str(content.name()),
            Self(None, true) => f.write_str("zeroes"),
            Self(None, false) => f.write_str("data of no known kind"),
        }
    }
}
