//! The rules for an image that Azure takes.

use std::fmt;
use std::io;
use std::sync::Arc;

use vhd_partition::Gpt;

use super::{MAXIMUM, MINIMUM, UNIT};
use crate::device::{Disk, LayeredDevice};
use crate::format::{DiskType, FOOTER_SIZE, Footer, Geometry, OdditySeverity};
use crate::image::{FooterSource, Footers, Image, OpenError, OpenMode};
use crate::partition::{DiskReader, Scheme, read_table};
use crate::storage::StorageFile;
use crate::units::{SECTOR_SIZE, u64_from};

/// What VHDX files begin with.
const VHDX: &[u8; 8] = image_formats::vhdx::SIGNATURE;
/// Programs whose images qemu reads by their geometry.
const SIZED_BY_GEOMETRY: [[u8; 4]; 2] = [*b"vpc ", *b"qemu"];
/// A geometry that no program takes for the size.
const UNSIZED: Geometry = Geometry {
    cylinders: 65_535,
    heads: 16,
    sectors_per_track: 255,
};

/// A rule: scripts go by its code, which never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule {
    /// The file is a VHD, not a VHDX.
    NotVhdx,
    /// A valid footer is in the last 512 bytes.
    FooterValid,
    /// The fields of the footer are as Windows writes them.
    FooterFields,
    /// The image is fixed, neither dynamic nor differencing.
    TypeFixed,
    /// The size is a whole number of MiB.
    SizeMib,
    /// The disk has 20 MiB at least.
    SizeMinimum,
    /// The disk is not larger than the format allows.
    SizeMaximum,
    /// The file has the bytes of the disk and the footer, and no others.
    FileLength,
    /// Every program takes the footer's size for that of the disk.
    CreatorSize,
    /// The backup of a GPT is at the end of the disk.
    GptBackupLocation,
}

impl Rule {
    /// Every rule, in the order of a report.
    pub const ALL: [Self; 10] = [
        Self::NotVhdx,
        Self::FooterValid,
        Self::FooterFields,
        Self::TypeFixed,
        Self::SizeMib,
        Self::SizeMinimum,
        Self::SizeMaximum,
        Self::FileLength,
        Self::CreatorSize,
        Self::GptBackupLocation,
    ];

    /// The stable name.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::NotVhdx => "not-vhdx",
            Self::FooterValid => "footer-valid",
            Self::FooterFields => "footer-fields",
            Self::TypeFixed => "type-fixed",
            Self::SizeMib => "size-mib",
            Self::SizeMinimum => "size-minimum",
            Self::SizeMaximum => "size-maximum",
            Self::FileLength => "file-length",
            Self::CreatorSize => "creator-size",
            Self::GptBackupLocation => "gpt-backup-location",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// Whether a rule is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is.
    Pass,
    /// It is not.
    Fail,
    /// Not to be told while another one is broken.
    Unknown,
}

/// What was found about one rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The rule.
    pub rule: Rule,
    /// Whether it is kept.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
}

/// Looks at every rule.
///
/// # Errors
/// Only if the file can't be read.
pub fn check(file: &Arc<dyn StorageFile>) -> Result<Vec<Outcome>, io::Error> {
    let subject = Subject::read(file)?;
    let outcomes = Rule::ALL.map(|rule| {
        let (verdict, found) = subject.look(rule);
        Outcome { rule, verdict, found }
    });
    Ok(outcomes.into())
}

type Found = (Verdict, String);

fn verdict(kept: bool, found: impl Into<String>) -> Found {
    (if kept { Verdict::Pass } else { Verdict::Fail }, found.into())
}

/// An image, as much of it as can be read.
struct Subject {
    file_len: u64,
    is_vhdx: bool,
    footers: Result<Footers, String>,
    disk: Option<Disk>,
}

impl Subject {
    fn read(file: &Arc<dyn StorageFile>) -> Result<Self, io::Error> {
        let file_len = file.len()?;
        let mut start = [0; VHDX.len()];
        if file_len >= u64_from(start.len()) {
            file.read_exact_at(&mut start, 0)?;
        }
        let footers = match Footers::read(&**file) {
            Err(OpenError::Read { source, .. }) => return Err(source),
            Err(error @ OpenError::Format { .. }) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                Err(format!("{error}: {}", cause.unwrap_or_default()))
            }
            other => other.map_err(|error| error.to_string()),
        };
        let image = Image::open(Arc::clone(file), &OpenMode::read_only()).ok();
        let image = image.filter(|image| !image.is_differencing());
        Ok(Self {
            file_len,
            is_vhdx: start == *VHDX,
            footers,
            disk: image.map(|image| Disk::new(Arc::new(LayeredDevice::new(image, Vec::new())))),
        })
    }

    fn look(&self, rule: Rule) -> Found {
        match rule {
            Rule::NotVhdx => verdict(!self.is_vhdx, if self.is_vhdx { "a VHDX" } else { "no VHDX" }),
            Rule::FooterValid => self.footer_valid(),
            Rule::GptBackupLocation => self.gpt_backup(),
            _ => match &self.footers {
                Ok(footers) => self.look_at_footer(rule, footers),
                Err(_) => (Verdict::Unknown, "no footer to tell by".to_owned()),
            },
        }
    }

    fn footer_valid(&self) -> Found {
        match &self.footers {
            Ok(footers) => match (footers.source, &footers.tail_error) {
                (FooterSource::Tail(offset), _) => verdict(true, format!("at {offset}")),
                (FooterSource::LegacyTail(_), _) => verdict(false, "a footer of 511 bytes"),
                (FooterSource::Copy, Some(error)) => verdict(false, format!("only the copy at the start: {error}")),
                (FooterSource::Copy, None) => verdict(false, "only the copy at the start"),
            },
            Err(error) => verdict(false, error.clone()),
        }
    }

    fn look_at_footer(&self, rule: Rule, footers: &Footers) -> Found {
        let footer = &footers.footer;
        let size = footer.current_size;
        match rule {
            Rule::FooterFields => fields(footers),
            Rule::TypeFixed => verdict(footer.disk_type == DiskType::Fixed, footer.disk_type.to_string()),
            Rule::SizeMib => verdict(size.is_multiple_of(UNIT), format!("{size} bytes, {} over", size % UNIT)),
            Rule::SizeMinimum => verdict(size >= MINIMUM, format!("{size} of at least {MINIMUM} bytes")),
            Rule::SizeMaximum => verdict(size <= MAXIMUM, format!("{size} of at most {MAXIMUM} bytes")),
            Rule::FileLength => {
                let expected = size + u64_from(FOOTER_SIZE);
                let found = format!("{} bytes, a disk of {size} bytes needs {expected}", self.file_len);
                verdict(self.file_len == expected, found)
            }
            Rule::CreatorSize => creator_size(footer),
            Rule::NotVhdx | Rule::FooterValid | Rule::GptBackupLocation => (Verdict::Unknown, String::new()),
        }
    }

    fn gpt_backup(&self) -> Found {
        let Some(disk) = &self.disk else {
            return (Verdict::Unknown, "the disk can't be read by itself".to_owned());
        };
        match read_table(disk) {
            Ok(Some(table)) if table.scheme == Scheme::Gpt => gpt_at_end(disk),
            Ok(_) => verdict(true, "no GPT"),
            Err(error) => verdict(false, error.to_string()),
        }
    }
}

/// Both headers are there, and name one another; the backup is in the last sector.
fn gpt_at_end(disk: &Disk) -> Found {
    let last = disk.size() / SECTOR_SIZE - 1;
    let named = match Gpt::primary(&DiskReader(disk)) {
        Ok(gpt) => gpt.header().other_lba(),
        Err(error) => return verdict(false, error.to_string()),
    };
    if named != last {
        return verdict(
            false,
            format!("the backup is in sector {named}, the last one is {last}"),
        );
    }
    match Gpt::at(&DiskReader(disk), SECTOR_SIZE, last) {
        Ok(backup) if backup.header().other_lba() == 1 => verdict(true, format!("in sector {last}")),
        Ok(backup) => verdict(
            false,
            format!(
                "the backup names sector {} as the first header's",
                backup.header().other_lba()
            ),
        ),
        Err(error) => verdict(false, error.to_string()),
    }
}

/// Sizes and geometry have rules of their own.
fn fields(footers: &Footers) -> Found {
    let odd = match Footer::decode_with_oddities(&footers.raw) {
        Ok((_, oddities)) => oddities,
        Err(error) => return verdict(false, error.to_string()),
    };
    let odd = odd
        .into_iter()
        .filter(|oddity| oddity.severity() == OdditySeverity::Warning && !matches!(oddity.code(), "geometry-formula"));
    let odd: Vec<String> = odd.map(|oddity| format!("{}: {oddity}", oddity.code())).collect();
    match odd.is_empty() {
        true => verdict(true, "as Windows writes them"),
        false => verdict(false, odd.join("; ")),
    }
}

fn creator_size(footer: &Footer) -> Found {
    let creator = footer.creator_application;
    let (size, geometry) = (footer.current_size, footer.geometry.size_bytes());
    let by_geometry = SIZED_BY_GEOMETRY.contains(&creator) && footer.geometry != UNSIZED;
    let name = creator.escape_ascii();
    match by_geometry && geometry != size {
        true => verdict(
            false,
            format!("creator `{name}`: qemu takes the geometry, {geometry} bytes, for the size"),
        ),
        false => verdict(true, format!("creator `{name}`, {size} bytes")),
    }
}
