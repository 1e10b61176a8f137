//! What a check finds in an image of another program. Nothing is changed, and nothing can be repaired here.

use std::path::Path;
use std::sync::Arc;

use image_formats::vhdx::{DiskType as VhdxType, Image, Oddity};
use image_formats::{BrokenRule, ImageError, qcow2, vmdk};

use super::shared;
use crate::chain::detect::foreign_format;
use crate::chain::{ChainError, ImageFormat};
use crate::check::{CheckReport, FindingCode, Severity};
use crate::format::DiskType;
use crate::storage::StorageFile;

/// Checks the image in a file against the rules of its format.
///
/// # Errors
/// If the file can't be read, or needs what the reader does not know.
pub fn check(file: &Arc<dyn StorageFile>, path: &Path) -> Result<CheckReport, ChainError> {
    let failed = |source| ChainError::ForeignImage {
        path: path.to_owned(),
        source,
    };
    let read = |source| {
        failed(ImageError::Read {
            offset: 0,
            len: 0,
            source,
        })
    };
    let found = foreign_format(&**file).map_err(read)?;
    match found.and_then(|format| format.readable()) {
        Some(ImageFormat::Qcow2) => return check_qcow2(file, failed),
        Some(ImageFormat::Vmdk) => return check_vmdk(file, failed),
        _ => {}
    }
    let (image, broken) = Image::check(shared(file)).map_err(failed)?;
    let mut report = CheckReport {
        file_size: file.len().map_err(read)?,
        ..CheckReport::default()
    };
    broken.iter().for_each(|rule| push(&mut report, rule));
    if let Some(image) = image {
        describe(&image, &mut report);
    }
    Ok(report)
}

/// All tables of a qcow2. Its reference counts are not looked at: they say nothing of what it reads.
fn check_qcow2(
    file: &Arc<dyn StorageFile>,
    failed: impl Fn(ImageError) -> ChainError,
) -> Result<CheckReport, ChainError> {
    let mut report = CheckReport::default();
    let image = match qcow2::Image::open(shared(file)) {
        Ok(image) => image,
        Err(ImageError::Broken(rule)) => {
            push(&mut report, &rule);
            return Ok(report);
        }
        Err(error) => return Err(failed(error)),
    };
    let header = image.header();
    let (allocated, broken) = image.survey().map_err(failed)?;
    report.disk_type = Some(match header.backing_file {
        Some(_) => DiskType::Differencing,
        None => DiskType::Dynamic,
    });
    report.disk_size = header.disk_size;
    report.blocks = header.disk_size.div_ceil(header.cluster_size);
    report.allocated_blocks = allocated;
    broken.iter().for_each(|rule| push(&mut report, rule));
    Ok(report)
}

/// All tables of a VMDK.
fn check_vmdk(
    file: &Arc<dyn StorageFile>,
    failed: impl Fn(ImageError) -> ChainError,
) -> Result<CheckReport, ChainError> {
    let mut report = CheckReport::default();
    let image = match vmdk::Image::open(shared(file)) {
        Ok(image) => image,
        Err(ImageError::Broken(rule)) => {
            push(&mut report, &rule);
            return Ok(report);
        }
        Err(error) => return Err(failed(error)),
    };
    let (allocated, broken) = image.survey().map_err(failed)?;
    report.disk_type = Some(DiskType::Dynamic);
    report.disk_size = image.header().disk_size;
    report.blocks = report.disk_size.div_ceil(image.header().grain_size);
    report.allocated_blocks = allocated;
    broken.iter().for_each(|rule| push(&mut report, rule));
    Ok(report)
}

fn push(report: &mut CheckReport, rule: &BrokenRule) {
    report.push(
        FindingCode::Rule(rule.rule),
        Severity::Corrupt,
        Some(rule.offset),
        text(rule),
    );
}

fn text(rule: &BrokenRule) -> String {
    format!("{}: found {}, expected {}", rule.rule, rule.found, rule.expected)
}

fn describe(image: &Image, report: &mut CheckReport) {
    let usage = image.usage();
    report.disk_type = Some(match image.metadata().disk_type {
        VhdxType::Fixed => DiskType::Fixed,
        VhdxType::Dynamic => DiskType::Dynamic,
        VhdxType::Differencing => DiskType::Differencing,
    });
    report.disk_size = image.metadata().disk_size;
    report.blocks = usage.blocks;
    report.allocated_blocks = usage.allocated_blocks;
    for oddity in image.oddities() {
        let (severity, offset) = match oddity {
            Oddity::Header(rule) | Oddity::RegionTable(rule) => (Severity::Repairable, Some(rule.offset)),
            Oddity::LogReplayed(_) => (Severity::Repairable, None),
            _ => (Severity::Note, None),
        };
        report.push(FindingCode::Oddity(oddity.name()), severity, offset, oddity.to_string());
    }
}
