//! Finding the footer: at the end of the file, else its copy at the start.

use super::error::OpenError;
use crate::format::{DiskType, FOOTER_SIZE, Footer, FormatError, LEGACY_FOOTER_SIZE, has_footer_cookie};
use crate::storage::StorageFile;
use crate::units::{FileOffset, SECTOR_SIZE, u64_from};

/// Where the footer in use was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FooterSource {
    /// The last 512 bytes.
    Tail(FileOffset),
    /// The last 511 bytes, as Virtual PC wrote it before 2004.
    LegacyTail(FileOffset),
    /// The copy in the first 512 bytes: there is no valid footer at the end.
    Copy,
}

/// Both footers of a file as they were found.
#[derive(Debug)]
pub struct Footers {
    /// The footer in use.
    pub footer: Footer,
    /// Its bytes as they were found (a legacy one completed): what a new tail footer repeats, reserved bytes included.
    pub raw: [u8; FOOTER_SIZE],
    /// Where it was found.
    pub source: FooterSource,
    /// What the copy at the start holds; `None` for a fixed image, which has none.
    pub copy: Option<Result<Footer, FormatError>>,
    /// What is wrong with the end of the file where the copy is in use.
    pub tail_error: Option<FormatError>,
}

impl Footers {
    /// Reads both footers. The one at the end wins; the copy counts for images that have one
    /// (specification, "Hard Disk Footer Format").
    ///
    /// # Errors
    /// The error of the end if neither is valid and either has the cookie, else [`OpenError::NoFooter`].
    pub fn read(file: &dyn StorageFile) -> Result<Self, OpenError> {
        let file_len = file.len().map_err(|source| OpenError::Read {
            structure: "file length",
            offset: 0,
            source,
        })?;
        if file_len < u64_from(LEGACY_FOOTER_SIZE) {
            return Err(OpenError::NoFooter { file_len });
        }
        let tail = Candidate::at_end(file, file_len)?;
        let copy = Candidate::at_start(file, file_len)?;
        let copy_raw = copy.raw;
        let tail_offset = tail.offset();
        match (tail.decoded, copy.decoded) {
            (Ok(footer), copy) => {
                let copy = (footer.disk_type != DiskType::Fixed).then_some(copy);
                Ok(Self {
                    footer,
                    raw: tail.raw,
                    source: tail.source,
                    copy,
                    tail_error: None,
                })
            }
            (Err(error), Ok(footer)) if footer.disk_type != DiskType::Fixed => {
                let copy = Some(Ok(footer.clone()));
                Ok(Self {
                    footer,
                    raw: copy_raw,
                    source: FooterSource::Copy,
                    copy,
                    tail_error: Some(error),
                })
            }
            (Err(tail_error), copy_result) => Err(match (tail.has_cookie, copy.has_cookie, copy_result) {
                (false, true, Err(source)) => OpenError::Format {
                    structure: "footer copy",
                    offset: 0,
                    source,
                },
                (false, ..) => OpenError::NoFooter { file_len },
                (true, ..) => OpenError::Format {
                    structure: "footer",
                    offset: tail_offset,
                    source: tail_error,
                },
            }),
        }
    }

    /// Whether both footers are there and say the same.
    #[must_use]
    pub fn agree(&self) -> bool {
        match (&self.copy, self.source) {
            (_, FooterSource::Copy) => false,
            (None, _) => true,
            (Some(copy), _) => copy.as_ref() == Ok(&self.footer),
        }
    }

    /// Restores the copy at the start where it is damaged or not current, from the footer at the end.
    ///
    /// INV-03: the footer in use is not touched.
    pub(super) fn restore_copy(&self, file: &dyn StorageFile) -> Result<(), OpenError> {
        if self.source != FooterSource::Copy && self.copy.is_some() && !self.agree() {
            self.write(file, "footer copy", 0)?;
        }
        Ok(())
    }

    /// Restores the footer at the end where it is missing, from the copy, so that the image has two again: a file that grows
    /// has only its copy until the new tail footer is durable. Where the tail footer is then.
    ///
    /// INV-03: the footer in use is not touched.
    pub(super) fn restore_tail(&self, file: &dyn StorageFile, file_len: u64) -> Result<Option<FileOffset>, OpenError> {
        match self.source {
            FooterSource::Copy => {
                let end = file_len.next_multiple_of(SECTOR_SIZE);
                self.write(file, "footer", end)?;
                Ok(Some(FileOffset(end)))
            }
            FooterSource::Tail(offset) => Ok(Some(offset)),
            FooterSource::LegacyTail(_) => Ok(None),
        }
    }

    fn write(&self, file: &dyn StorageFile, structure: &'static str, offset: u64) -> Result<(), OpenError> {
        let written = file.write_all_at(&self.raw, offset).and_then(|()| file.sync());
        written.map_err(|source| OpenError::Restore {
            structure,
            offset,
            source,
        })
    }
}

struct Candidate {
    source: FooterSource,
    raw: [u8; FOOTER_SIZE],
    has_cookie: bool,
    decoded: Result<Footer, FormatError>,
}

impl Candidate {
    fn at_end(file: &dyn StorageFile, file_len: u64) -> Result<Self, OpenError> {
        let legacy = file_len - u64_from(LEGACY_FOOTER_SIZE);
        let Some(offset) = file_len.checked_sub(u64_from(FOOTER_SIZE)) else {
            return Self::read(
                file,
                FooterSource::LegacyTail(FileOffset(legacy)),
                legacy,
                LEGACY_FOOTER_SIZE,
            );
        };
        let whole = Self::read(file, FooterSource::Tail(FileOffset(offset)), offset, FOOTER_SIZE)?;
        if whole.has_cookie {
            return Ok(whole);
        }
        let short = Self::read(
            file,
            FooterSource::LegacyTail(FileOffset(legacy)),
            legacy,
            LEGACY_FOOTER_SIZE,
        )?;
        Ok(if short.has_cookie { short } else { whole })
    }

    fn at_start(file: &dyn StorageFile, file_len: u64) -> Result<Self, OpenError> {
        let len = FOOTER_SIZE.min(crate::units::usize_from(file_len));
        Self::read(file, FooterSource::Copy, 0, len)
    }

    fn read(file: &dyn StorageFile, source: FooterSource, offset: u64, len: usize) -> Result<Self, OpenError> {
        let mut raw = [0; FOOTER_SIZE];
        let bytes = &mut raw[..len];
        file.read_exact_at(bytes, offset).map_err(|source| OpenError::Read {
            structure: "footer",
            offset,
            source,
        })?;
        let (has_cookie, decoded) = (has_footer_cookie(bytes), Footer::decode(bytes));
        Ok(Self {
            source,
            raw,
            has_cookie,
            decoded,
        })
    }

    fn offset(&self) -> u64 {
        match self.source {
            FooterSource::Tail(offset) | FooterSource::LegacyTail(offset) => offset.0,
            FooterSource::Copy => 0,
        }
    }
}
