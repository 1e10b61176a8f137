//! What a check finds in an image of another program. Nothing is changed, and nothing can be repaired here.

use std::path::Path;
use std::sync::Arc;

use image_formats::vhdx::{DiskType as VhdxType, Image, Oddity};
use image_formats::{BrokenRule, ImageError};

use super::shared;
use crate::chain::ChainError;
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
    let (image, broken) = Image::check(shared(file)).map_err(failed)?;
    let mut report = CheckReport {
        file_size: file.len().map_err(|source| {
            failed(ImageError::Read {
                offset: 0,
                len: 0,
                source,
            })
        })?,
        ..CheckReport::default()
    };
    for rule in broken {
        let offset = Some(rule.offset);
        report.push(FindingCode::Rule(rule.rule), Severity::Corrupt, offset, text(&rule));
    }
    if let Some(image) = image {
        describe(&image, &mut report);
    }
    Ok(report)
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
