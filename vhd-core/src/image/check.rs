//! Checking an image file against every rule of the format, without changing it.

use std::fmt;
use std::io;

use image_formats::Rule;

use super::block_search::blocks_between;
use super::error::OpenError;
use super::footers::{FooterSource, Footers};
use super::hidden::{Belief, Hidden, Hiding};
use super::open::{read_header, read_table, space_end};
use super::validate::{Region, Space, metadata_regions};
use crate::ErrorKind;
use crate::format::{
    DiskType, DynamicHeader, FOOTER_SIZE, Footer, FormatOddity, LEGACY_FOOTER_SIZE, MAX_LOCATOR_LENGTH, TableEntry,
};
use crate::storage::StorageFile;
use crate::units::{BlockIndex, FileOffset, u64_from};

/// Places in leaked space that a check looks at for blocks: where blocks of 2 MiB follow each other, the first of them is
/// among half as many. A repair looks at all.
const LOOKS: u64 = 1 << 13;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Unusual, and allowed.
    Note,
    /// Space in the file that nothing uses.
    Leak,
    /// Wrong, but nothing is lost: what is right is known.
    Repairable,
    /// The disk's content is not, or not all, certain.
    Corrupt,
}

/// What a finding is about: scripts go by it. The text form never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingCode {
    /// A rule that also keeps the image from being opened.
    Broken(ErrorKind),
    /// The footer at the end is not usable, the copy is.
    FooterDamaged,
    /// The copy at the start is not usable, the footer is.
    FooterCopyDamaged,
    /// Both footers are valid and differ.
    FootersDiffer,
    /// The last block is cut short behind the end of the disk.
    BlockCutShort,
    /// The table has more entries than the disk has blocks.
    TableSurplus,
    /// A parent locator is not inside the file, or too long.
    LocatorLocation,
    /// A differencing image names no parent.
    ParentUnnamed,
    /// Sectors that the bitmap calls absent hold bytes other than zero.
    StaleSectors,
    /// A bitmap has no bit set, and there is data.
    BitmapLost,
    /// Space of at least a block that nothing refers to.
    LeakedSpace,
    /// Such space holds what looks like blocks.
    OrphanBlocks,
    /// Bytes between the disk and the footer of a fixed image.
    TrailingBytes,
    /// A field is unusual.
    Oddity(&'static str),
    /// A rule of another program's format.
    Rule(Rule),
}

impl FindingCode {
    /// The stable name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broken(kind) => kind.name(),
            Self::FooterDamaged => "footer-damaged",
            Self::FooterCopyDamaged => "footer-copy-damaged",
            Self::FootersDiffer => "footers-differ",
            Self::BlockCutShort => "block-cut-short",
            Self::TableSurplus => "table-surplus",
            Self::LocatorLocation => "locator-location",
            Self::ParentUnnamed => "parent-unnamed",
            Self::StaleSectors => "stale-sectors",
            Self::BitmapLost => "bitmap-lost",
            Self::LeakedSpace => "leaked-space",
            Self::OrphanBlocks => "orphan-blocks",
            Self::TrailingBytes => "trailing-bytes",
            Self::Oddity(code) => code,
            Self::Rule(rule) => rule.name(),
        }
    }
}

impl fmt::Display for FindingCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is about.
    pub code: FindingCode,
    /// How bad it is.
    pub severity: Severity,
    /// Where in the file, if it has a place.
    pub offset: Option<u64>,
    /// What was found and what was expected.
    pub message: String,
}

/// What a check of one file found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// The findings, in the order of the structures.
    pub findings: Vec<Finding>,
    /// The type of the image, if it is known.
    pub disk_type: Option<DiskType>,
    /// Bytes on the disk.
    pub disk_size: u64,
    /// Bytes in the file.
    pub file_size: u64,
    /// Blocks of the disk; 0 for a fixed image.
    pub blocks: u64,
    /// Blocks that have space in the file.
    pub allocated_blocks: u64,
    /// Bytes that nothing refers to.
    pub leaked_bytes: u64,
}

impl CheckReport {
    /// The worst severity found; `None` for an image without findings.
    #[must_use]
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    /// Adds a finding.
    pub fn push(&mut self, code: FindingCode, severity: Severity, offset: Option<u64>, message: String) {
        self.findings.push(Finding {
            code,
            severity,
            offset,
            message,
        });
    }

    /// Adds what kept a structure from being used; what keeps the check from being made is no finding.
    fn push_broken(&mut self, error: OpenError) -> Result<(), io::Error> {
        if let OpenError::Read { source, .. } | OpenError::Restore { source, .. } = error {
            return Err(source);
        }
        if error.kind() == ErrorKind::Unsupported {
            // The image may be sound: that can't be told, which is not a finding.
            return Err(io::Error::new(io::ErrorKind::Unsupported, error));
        }
        let message = match std::error::Error::source(&error) {
            Some(rule) => format!("{error}: {rule}"),
            None => error.to_string(),
        };
        self.push(
            FindingCode::Broken(error.kind()),
            Severity::Corrupt,
            error.offset(),
            message,
        );
        Ok(())
    }
}

/// Checks the image in `file`, its parents excluded.
///
/// # Errors
/// Only if the file can't be read: whatever is wrong with its content is a finding.
pub fn check(file: &dyn StorageFile) -> Result<CheckReport, io::Error> {
    let mut report = CheckReport {
        file_size: file.len()?,
        ..CheckReport::default()
    };
    let footers = match Footers::read(file) {
        Ok(footers) => footers,
        Err(error) => {
            report.push_broken(error)?;
            return Ok(report);
        }
    };
    report.disk_type = Some(footers.footer.disk_type);
    report.disk_size = footers.footer.current_size;
    check_footers(&footers, &mut report);
    match footers.footer.disk_type {
        DiskType::Fixed => check_fixed(&footers, &mut report),
        DiskType::Dynamic | DiskType::Differencing => check_sparse(file, &footers, &mut report)?,
    }
    Ok(report)
}

fn check_footers(footers: &Footers, report: &mut CheckReport) {
    let end = Some(report.file_size.saturating_sub(u64_from(FOOTER_SIZE)));
    if let (FooterSource::Copy, Some(error)) = (footers.source, &footers.tail_error) {
        let message = format!("the footer at the end is not usable, its copy is: {error}");
        report.push(FindingCode::FooterDamaged, Severity::Repairable, end, message);
    }
    if let Some(Err(error)) = &footers.copy {
        let message = format!("the footer copy is not usable, the footer is: {error}");
        report.push(FindingCode::FooterCopyDamaged, Severity::Repairable, Some(0), message);
    } else if footers.source != FooterSource::Copy && !footers.agree() {
        let message = "the footer and its copy are both valid and differ".to_owned();
        report.push(FindingCode::FootersDiffer, Severity::Repairable, Some(0), message);
    }
    let raw = match footers.source {
        FooterSource::LegacyTail(_) => &footers.raw[..LEGACY_FOOTER_SIZE],
        _ => &footers.raw[..],
    };
    if let Ok((_, oddities)) = Footer::decode_with_oddities(raw) {
        for oddity in oddities {
            push_oddity(&oddity, report);
        }
    }
}

fn push_oddity(oddity: &FormatOddity, report: &mut CheckReport) {
    report.push(
        FindingCode::Oddity(oddity.code()),
        Severity::Note,
        None,
        oddity.to_string(),
    );
}

fn check_fixed(footers: &Footers, report: &mut CheckReport) {
    let needed = footers.footer.current_size + u64_from(LEGACY_FOOTER_SIZE);
    if report.file_size < needed {
        let message = format!(
            "the file has {} bytes; its disk of {} bytes and the footer need {needed}",
            report.file_size, footers.footer.current_size
        );
        report.push(
            FindingCode::Broken(ErrorKind::FileTooShort),
            Severity::Corrupt,
            None,
            message,
        );
    }
    let extra = space_end(footers, report.file_size).saturating_sub(footers.footer.current_size);
    if extra > 0 {
        let message = format!(
            "{extra} bytes between the disk and its footer; if that is the footer of an image inside a disk that was \
             cut, vhd repair --size --type puts it right"
        );
        report.push(
            FindingCode::TrailingBytes,
            Severity::Note,
            Some(footers.footer.current_size),
            message,
        );
    }
}

fn check_sparse(file: &dyn StorageFile, footers: &Footers, report: &mut CheckReport) -> Result<(), io::Error> {
    let footer = &footers.footer;
    let (header_offset, header) = match read_header(file, footer, report.file_size) {
        Ok(header) => header,
        Err(error) => return report.push_broken(error),
    };
    check_locators(&header, footer, report);
    let entries = match read_table(file, &header, footer, header_offset, report.file_size) {
        Ok(entries) => entries,
        Err(error) => return report.push_broken(error),
    };
    report.blocks = u64_from(entries.len());
    if u64::from(header.max_table_entries) > report.blocks {
        let message = format!(
            "the table has {} entries, the disk {} blocks",
            header.max_table_entries, report.blocks
        );
        report.push(
            FindingCode::TableSurplus,
            Severity::Note,
            Some(header.table_offset),
            message,
        );
    }
    let regions = metadata_regions(&header, header_offset);
    let end = space_end(footers, report.file_size);
    let space = Space {
        layout: header.layout,
        disk_size: footer.current_size,
        regions: &regions,
        end,
    };
    let mut violations = Vec::new();
    let collected = space.violations(&entries, &mut |error| {
        violations.push(error);
        Ok(())
    });
    debug_assert!(collected.is_ok());
    let sound = violations.is_empty();
    for violation in violations {
        report.push_broken(violation)?;
    }
    let blocks = placed_blocks(&entries);
    report.allocated_blocks = u64_from(blocks.len());
    check_space(file, &space, &blocks, report)?;
    if sound {
        check_hidden_sectors(file, footer, &space, &blocks, report)?;
    }
    Ok(())
}

fn check_locators(header: &DynamicHeader, footer: &Footer, report: &mut CheckReport) {
    for locator in header.locators.iter().flatten() {
        let inside = locator.end().is_some_and(|end| end <= report.file_size);
        if !inside || locator.length > MAX_LOCATOR_LENGTH {
            let message = format!(
                "the {} locator at {:#x}+{:#x} is not inside the file of {:#x} bytes or too long",
                locator.code, locator.offset, locator.length, report.file_size
            );
            report.push(
                FindingCode::LocatorLocation,
                Severity::Repairable,
                Some(locator.offset),
                message,
            );
        }
    }
    let named = header.locators.iter().any(Option::is_some) || !header.parent_name.is_empty();
    if footer.disk_type == DiskType::Differencing && !named {
        let message = "a differencing image that names no parent".to_owned();
        report.push(FindingCode::ParentUnnamed, Severity::Note, None, message);
    }
}

/// The blocks that have space, in the order of the file.
fn placed_blocks(entries: &[TableEntry]) -> Vec<(FileOffset, BlockIndex)> {
    let placed = (0..).map(BlockIndex).zip(entries);
    let mut blocks: Vec<_> = placed
        .filter_map(|(block, entry)| Some((entry.bitmap_offset()?, block)))
        .collect();
    blocks.sort_unstable();
    blocks
}

/// Looks for blocks that are cut short and for space that nothing refers to. Gaps are legal and common; one
/// that could hold a whole block was one.
fn check_space(
    file: &dyn StorageFile,
    space: &Space<'_>,
    blocks: &[(FileOffset, BlockIndex)],
    report: &mut CheckReport,
) -> Result<(), io::Error> {
    let stored = space.layout.stored_bytes();
    // A block of which bytes of the disk are missing is another matter, and was reported before.
    let cut_short = |&&(offset, block): &&(FileOffset, BlockIndex)| {
        offset.0 + stored > space.end && space.end_of(block, offset) <= space.end
    };
    for (offset, block) in blocks.iter().filter(cut_short) {
        let message = format!(
            "block {block} needs {stored} bytes, of which the file has {}",
            space.end - offset.0
        );
        report.push(
            FindingCode::BlockCutShort,
            Severity::Repairable,
            Some(offset.0),
            message,
        );
    }
    let block_regions = blocks.iter().map(|(offset, _)| Region {
        structure: "block",
        start: offset.0,
        end: offset.0 + stored,
    });
    let mut regions: Vec<Region> = space.regions.iter().copied().chain(block_regions).collect();
    regions.push(Region {
        structure: "end",
        start: space.end,
        end: u64::MAX,
    });
    regions.sort_unstable_by_key(|region| region.start);
    let (mut used, mut looks) = (0, LOOKS);
    for region in regions {
        let gap = region.start.saturating_sub(used);
        if gap >= stored {
            report.leaked_bytes += gap;
            let message = format!("{gap} bytes that nothing refers to");
            report.push(FindingCode::LeakedSpace, Severity::Leak, Some(used), message);
            let found = blocks_between(file, space.layout, (used, region.start.min(space.end)), &mut looks)?;
            if let Some(first) = found.first() {
                let message = format!(
                    "what looks like {} blocks stands there, and no entry of the table leads to them: if the table is \
                     damaged, they are data (vhd repair lists them)",
                    found.len()
                );
                report.push(FindingCode::OrphanBlocks, Severity::Leak, Some(*first), message);
            }
        }
        used = used.max(region.end);
    }
    Ok(())
}

/// Looks for bytes other than zero in sectors that the bitmap calls absent. Programs that ignore the bitmap
/// (and there are some) read them; they are hidden in a dynamic image by the bitmap alone.
fn check_hidden_sectors(
    file: &dyn StorageFile,
    footer: &Footer,
    space: &Space<'_>,
    blocks: &[(FileOffset, BlockIndex)],
    report: &mut CheckReport,
) -> Result<(), io::Error> {
    let hidden = Hidden::find(file, footer, space, blocks)?;
    for hiding in &hidden.blocks {
        let Hiding {
            block, offset, sectors, ..
        } = *hiding;
        let absent = format!("block {block}: {sectors} sectors that the bitmap calls absent are not zero");
        let (code, severity, message) = match hidden.belief(hiding) {
            Belief::Lost => (
                FindingCode::BitmapLost,
                Severity::Corrupt,
                format!("{absent}, and it has no bit set: the bitmap is lost, the data is there"),
            ),
            Belief::Unmarked { .. } => (
                FindingCode::StaleSectors,
                Severity::Repairable,
                format!("{absent}, and other blocks have no such sectors"),
            ),
            Belief::LeftOver => (FindingCode::StaleSectors, Severity::Note, absent),
        };
        report.push(code, severity, Some(offset.0), message);
    }
    Ok(())
}
