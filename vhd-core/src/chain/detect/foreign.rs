//! Other programs' formats.

use std::fmt;
use std::io;

use super::ImageFormat;
use super::content::DiskContent;
use super::known::{KNOWN, Known};
use super::sample::Sample;

/// A format that another program made: a container, a compressed file, an archive, a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForeignFormat {
    pub(super) id: &'static str,
    pub(super) name: &'static str,
    pub(super) class: ForeignClass,
}

/// What kind of file a foreign format is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ForeignClass {
    /// The image of a hard disk.
    DiskImage,
    /// The image of an optical disc.
    OpticalDisc,
    /// What a backup or imaging program wrote.
    Backup,
    /// One compressed file.
    Compressed,
    /// Files in one, compressed or not.
    Archive,
    /// A text, a picture, a program, a database.
    Other,
}

impl ForeignFormat {
    /// The stable name, for scripts: `qcow2`, `vhdx`, `gzip`.
    #[must_use]
    pub const fn id(&self) -> &'static str {
        self.id
    }

    /// The name in sentences, without an article: `qcow2 image`.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// The name before the word "file": `qcow2`, `VHDX`.
    #[must_use]
    pub fn label(&self) -> &'static str {
        let suffixes = [" image", " file", " archive"];
        suffixes
            .iter()
            .find_map(|suffix| self.name.strip_suffix(suffix))
            .unwrap_or(self.name)
    }

    /// What kind of file it is for.
    #[must_use]
    pub const fn class(&self) -> ForeignClass {
        self.class
    }

    /// The format, if images in it are read here.
    #[must_use]
    pub fn readable(&self) -> Option<ImageFormat> {
        [ImageFormat::Vhdx, ImageFormat::Qcow2, ImageFormat::Vmdk]
            .into_iter()
            .find(|format| format.name() == self.id)
    }

    /// The row of a format that is read here.
    pub(crate) fn of(format: ImageFormat) -> Option<Self> {
        let known = KNOWN.iter().find(|known| known.format.id == format.name());
        known.map(|known| known.format)
    }

    /// What makes a disk of it.
    pub(crate) const fn next_step(&self) -> &'static str {
        match self.class {
            ForeignClass::DiskImage => "convert it to raw first (qemu-img convert -O raw)",
            ForeignClass::OpticalDisc => "an optical disc is no hard disk",
            ForeignClass::Backup => "restore it with the program that wrote it",
            ForeignClass::Compressed => "decompress it first",
            ForeignClass::Archive => "extract it first",
            ForeignClass::Other => "it is no disk",
        }
    }

    /// The format that a file of this extension is expected to have, if it is the extension of a disk image.
    pub(crate) fn of_disk_extension(extension: &str) -> Option<Self> {
        let is_of = |known: &&Known| {
            known
                .extensions
                .iter()
                .any(|other| other.eq_ignore_ascii_case(extension))
        };
        let known = KNOWN.iter().find(is_of);
        known.map(|known| known.format)
    }
}

impl fmt::Display for ForeignFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // By sound: "an RPM package", "a UDF image".
        let article = match self.id {
            "rpm" | "xz" | "lzma" | "xfsdump" | "ntfsclone" => "an",
            _ if self.name.starts_with(['a', 'e', 'i', 'o', 'A', 'E', 'I', 'O']) => "an",
            _ => "a",
        };
        write!(f, "{article} {}", self.name)
    }
}

/// The format of a file, if it is a foreign one.
pub(super) fn recognise(sample: &Sample<'_>) -> io::Result<Option<ForeignFormat>> {
    for known in KNOWN {
        // What a boot loader, a partition table or a file system shares with an optical disc is decided by them.
        if known.format.class == ForeignClass::OpticalDisc && DiskContent::of(sample).is_some() {
            continue;
        }
        for mark in known.marks {
            if mark.matches(sample)? {
                return Ok(Some(known.format));
            }
        }
    }
    Ok(None)
}
