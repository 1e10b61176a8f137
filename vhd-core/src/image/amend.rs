//! Changing what footers and header say, so that at every moment all of the old or all of the new counts.
//!
//! A footer is one sector and says where the header is: whoever rewrites it in place switches between two
//! whole headers in one atomic step (INV-18). So a header is changed in two switches, without a journal:
//!
//! ```text
//!   ... | footer |                                       the old header counts, at home
//!   ... | footer | [locators] header' | footer |         stage: the new header behind the end, the old footer again
//!   ... |        | [locators] header' | FOOTER'|         switch to it, the copy follows
//!                                                        rewrite the header at home, which nothing refers to now
//!   ... |        | [locators] header' | FOOTER"|         switch back home, the copy follows
//!   ... | footer"|                                       cut what was staged off
//! ```
//!
//! Between any two steps every program that reads VHD sees a valid image: there is nothing to recover.

use vhd_block::DeviceError;

use super::create::{LocatorTexts, locator_space, name_parent, place_locators};
use super::error::{IoContext, OpenError};
use super::footers::Footers;
use super::open::space_end;
use super::validate::metadata_regions;
use super::{CreateError, Image, LocatorData, ParentLink};
use crate::ErrorKind;
use crate::format::{DynamicHeader, FOOTER_SIZE, Footer, HEADER_SIZE};
use crate::storage::StorageFile;
use crate::units::{SECTOR_SIZE, u64_from};

/// What the footers and the header of an image are to say. [`Image::amendment`] has what they say now.
#[derive(Clone, Debug)]
pub struct Amendment {
    /// The footer. Where the header is, is not for the caller to say: `data_offset` is ignored.
    pub footer: Footer,
    /// The header; `None` exactly for fixed images. The table that it leads to is in the file already, and so
    /// is every block of the size that the footer says.
    pub header: Option<DynamicHeader>,
    /// Another parent for a differencing image: replaces what the header says of one.
    pub parent: Option<ParentLink>,
}

/// Why footers and header could not be changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AmendError {
    /// The parent's name can't be stored.
    #[error(transparent)]
    Parent(#[from] CreateError),
    /// The footers can't be read.
    #[error(transparent)]
    Footers(#[from] OpenError),
    /// The image can't be written.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The footer of a fixed image is not on a sector of its own, and so can't be changed in one step.
    #[error(
        "the footer at {offset:#x} lies across two sectors: it can't be changed without a moment in which it is lost"
    )]
    FooterAcrossSectors {
        /// Where it is in the file.
        offset: u64,
    },
}

impl AmendError {
    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Parent(error) => error.kind(),
            Self::Footers(error) => error.kind(),
            Self::Device(error) => error.kind().into(),
            Self::FooterAcrossSectors { .. } => ErrorKind::Unsupported,
        }
    }
}

impl Image {
    /// What footers and header say now.
    #[must_use]
    pub fn amendment(&self) -> Amendment {
        Amendment {
            footer: self.footer().clone(),
            header: self.header().cloned(),
            parent: None,
        }
    }

    /// Flushes and closes the image and makes its footers and header say what `amendment` does, durably. A crash
    /// at any moment leaves all of the old or all of the new; doing it again is harmless.
    ///
    /// # Errors
    /// [`AmendError`]. After a failure to write, the old or the new counts.
    pub fn amend(mut self, amendment: &Amendment) -> Result<(), AmendError> {
        if !self.is_writable() {
            return Err(DeviceError::ReadOnly.into());
        }
        self.close_once()?;
        let file_len = self.file_len()?;
        // What was written since the image was opened may have moved the footer.
        let footers = Footers::read(&**self.file())?;
        let amender = Amender {
            image: &self,
            file: &**self.file(),
            tail: space_end(&footers, file_len),
            raw: footers.raw,
            file_len,
        };
        let tail = amender.tail;
        let same_header = amendment.parent.is_none() && amendment.header.as_ref() == self.header();
        let on_a_sector = tail.is_multiple_of(SECTOR_SIZE);
        match &amendment.header {
            Some(header) if !same_header || !on_a_sector => amender.replace_header(amendment, header),
            None if !on_a_sector => Err(AmendError::FooterAcrossSectors { offset: tail }),
            _ => Ok(amender.switch(&amendment.footer, self.footer().data_offset, tail)?),
        }
    }
}

struct Amender<'a> {
    image: &'a Image,
    file: &'a dyn StorageFile,
    /// Where the tail footer is.
    tail: u64,
    /// Its bytes.
    raw: [u8; FOOTER_SIZE],
    file_len: u64,
}

/// The new header in its two places, and the places of what goes with it.
struct Staging {
    /// Where the header goes for good.
    home: u64,
    home_header: DynamicHeader,
    home_locators: LocatorData,
    /// Where it stands meanwhile.
    offset: u64,
    header: DynamicHeader,
    locators: LocatorData,
    /// Where the footer is meanwhile.
    footer: u64,
    /// Where it is in the end.
    last_footer: u64,
}

impl Amender<'_> {
    fn replace_header(&self, amendment: &Amendment, header: &DynamicHeader) -> Result<(), AmendError> {
        let mut header = header.clone();
        let texts = match &amendment.parent {
            None => None,
            Some(parent) => Some(name_parent(&mut header, parent)?),
        };
        let staging = self.staging(&header, texts);
        self.stage(&staging)?;
        self.switch(&amendment.footer, Some(staging.offset), staging.footer)?;
        self.rewrite_home(&staging)?;
        self.switch(&amendment.footer, Some(staging.home), staging.footer)?;
        Ok(self.cut(&amendment.footer, &staging)?)
    }

    fn staging(&self, header: &DynamicHeader, texts: Option<LocatorTexts>) -> Staging {
        let first_free = self.tail.next_multiple_of(SECTOR_SIZE);
        let mut behind = (first_free + u64_from(FOOTER_SIZE)).max(self.file_len.next_multiple_of(SECTOR_SIZE));
        let (mut home_header, mut staged_header) = (header.clone(), header.clone());
        let (mut home_locators, mut locators) = (LocatorData::new(), LocatorData::new());
        let mut last_footer = first_free;
        if let Some(texts) = texts {
            let space: u64 = texts.iter().map(|(_, text)| locator_space(text)).sum();
            match self.home_of_locators(&texts) {
                Some(places) => {
                    home_locators = place_locators(&mut home_header, texts.clone(), &places);
                    let staged = behind + u64_from(HEADER_SIZE);
                    locators = place_locators(&mut staged_header, texts, &[staged]);
                }
                None => {
                    // Too long for the space of the old ones: they stay where they are staged.
                    locators = place_locators(&mut staged_header, texts, &[behind]);
                    home_header.locators = staged_header.locators;
                    behind += space;
                    last_footer = behind;
                }
            }
        }
        // Not by what the header claims: that may be anywhere.
        let staged_ends = locators.iter().map(|(offset, text)| offset + locator_space(text));
        let footer = staged_ends.fold(behind + u64_from(HEADER_SIZE), u64::max);
        Staging {
            home: self.home_of_header(),
            home_header,
            home_locators,
            offset: behind,
            header: staged_header,
            locators,
            footer,
            last_footer,
        }
    }

    /// Where the header is; where every writer puts it if a crash left it elsewhere and nothing else is there.
    fn home_of_header(&self) -> u64 {
        let present = self.image.footer().data_offset.unwrap_or(u64_from(FOOTER_SIZE));
        let (start, end) = (u64_from(FOOTER_SIZE), u64_from(FOOTER_SIZE + HEADER_SIZE));
        let Some(header) = self.image.header() else {
            return present;
        };
        let taken = metadata_regions(header, present)
            .into_iter()
            .filter(|region| region.start != present)
            .any(|region| region.start < end && region.end > start);
        let block_there = self.image.first_block_offset().is_some_and(|offset| offset < end);
        if taken || block_there { present } else { start }
    }

    /// The places of the old locators, if the new texts fit there and nothing else is there.
    fn home_of_locators(&self, texts: &LocatorTexts) -> Option<Vec<u64>> {
        let header = self.image.header()?;
        let header_offset = self.image.footer().data_offset?;
        let old = [header.locators[0]?, header.locators[1]?];
        let regions = metadata_regions(header, header_offset);
        let fits = old.iter().zip(texts).all(|(old, (_, text))| {
            let (start, end) = (old.offset, old.offset.saturating_add(locator_space(text)));
            let shared = regions.iter().filter(|region| region.start < end && region.end > start);
            u64::from(old.length).next_multiple_of(SECTOR_SIZE) >= locator_space(text)
                && start.is_multiple_of(SECTOR_SIZE)
                && end <= self.tail
                && shared.count() == 1
        });
        fits.then(|| old.iter().map(|locator| locator.offset).collect())
    }

    /// The new header behind the end, and behind it the footer as it is: a file that ends here or there reads the same.
    fn stage(&self, staging: &Staging) -> Result<(), DeviceError> {
        self.write("stage a parent locator", &staging.locators)?;
        self.write_at("stage the header", &staging.header.encode(), staging.offset)?;
        self.write_at("write the footer", &self.raw, staging.footer)?;
        // INV-18: the header is durable before a footer leads to it, and so is the footer that is to be rewritten in place.
        self.sync()
    }

    /// Makes both footers say `footer`, with the header at `data_offset`; the one at the end is at `tail`.
    fn switch(&self, footer: &Footer, data_offset: Option<u64>, tail: u64) -> Result<(), DeviceError> {
        if let Some((_, writer)) = self.image.writer() {
            writer.check_fence()?;
        }
        let bytes = self.encode(footer, data_offset);
        self.write_at("write the footer", &bytes, tail)?;
        self.sync()?;
        if self.image.header().is_some() {
            // INV-03: the footer at the end is durable before its copy changes.
            self.write_at("write the footer copy", &bytes, 0)?;
            self.sync()?;
        }
        Ok(())
    }

    fn rewrite_home(&self, staging: &Staging) -> Result<(), DeviceError> {
        self.write("write a parent locator", &staging.home_locators)?;
        self.write_at("write the header", &staging.home_header.encode(), staging.home)?;
        if staging.last_footer > self.tail + u64_from(FOOTER_SIZE) {
            self.write_at("clear a former footer", &[0; FOOTER_SIZE], self.tail)?;
        }
        // INV-18: before a footer leads home again.
        self.sync()
    }

    /// Ends the file where it ended, or behind the locators that stay.
    fn cut(&self, footer: &Footer, staging: &Staging) -> Result<(), DeviceError> {
        let end = staging.last_footer;
        self.write_at("write the footer", &self.encode(footer, Some(staging.home)), end)?;
        // INV-03: the footer at the new end is durable before the one at the old end goes.
        self.sync()?;
        self.file
            .set_len(end + u64_from(FOOTER_SIZE))
            .io_context("truncate", end)?;
        self.sync()
    }

    fn encode(&self, footer: &Footer, data_offset: Option<u64>) -> [u8; FOOTER_SIZE] {
        let footer = Footer {
            data_offset,
            ..footer.clone()
        };
        footer.encode_over(&self.raw)
    }

    fn write(&self, operation: &'static str, pieces: &LocatorData) -> Result<(), DeviceError> {
        pieces
            .iter()
            .try_for_each(|(offset, bytes)| self.write_at(operation, bytes, *offset))
    }

    fn write_at(&self, operation: &'static str, bytes: &[u8], offset: u64) -> Result<(), DeviceError> {
        self.file.write_all_at(bytes, offset).io_context(operation, offset)
    }

    fn sync(&self) -> Result<(), DeviceError> {
        self.file.sync().io_context("sync", 0)
    }
}
