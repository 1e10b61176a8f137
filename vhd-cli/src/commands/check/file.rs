//! The check of one file, whatever its parents are: what is broken in it, and what a repair would do.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use vhd_core::chain::{ChainError, ImageFormat, foreign, require_vhd};
use vhd_core::check::{CheckReport, Severity, check};
use vhd_core::ops::repair::{Facts, RepairPlan};
use vhd_core::storage::{Access, HostFile, Sharing, StorageFile};

use crate::failure::Failure;
use crate::human;

/// Checks the image at `path`, whatever its parents are.
pub(crate) fn check_file(path: &Path, sharing: Sharing) -> Result<Checked, Failure> {
    let file = Arc::new(HostFile::open(path, Access::ReadOnly, sharing)?);
    match require_vhd(&*file, path) {
        Ok(()) => {}
        Err(ChainError::ReadOnlyFormat { format, .. }) => {
            let format = format.readable().unwrap_or(ImageFormat::Raw);
            return check_foreign(&(file as _), path, format);
        }
        Err(error) => return Err(error.into()),
    }
    let report = check_storage(&*file, path)?;
    let outlook = report
        .worst()
        .filter(|worst| *worst >= Severity::Repairable)
        .map(|_| Outlook::of(file));
    Ok(Checked {
        format: ImageFormat::Vhd,
        report,
        outlook,
    })
}

/// An image of another program.
fn check_foreign(file: &Arc<dyn StorageFile>, path: &Path, format: ImageFormat) -> Result<Checked, Failure> {
    Ok(Checked {
        format,
        report: foreign::check(file, path)?,
        outlook: None,
    })
}

/// What a repair would do.
#[derive(Clone, Copy, Serialize)]
pub(crate) struct Outlook {
    /// The image opens afterwards.
    pub(crate) opens: bool,
    pub(crate) lost_sectors: u64,
    pub(crate) doubtful_sectors: u64,
}

impl Outlook {
    /// By the plan of a repair, which reads the file and changes nothing.
    fn of(file: Arc<HostFile>) -> Self {
        let plan = RepairPlan::new(file, &Facts::default()).ok();
        let (lost_sectors, doubtful_sectors) = plan.as_ref().map_or((0, 0), RepairPlan::sectors_in_doubt);
        Self {
            opens: plan.is_some(),
            lost_sectors,
            doubtful_sectors,
        }
    }

    /// What `vhd repair` would come to, in a few words.
    pub(crate) fn text(self) -> String {
        match (self.opens, human::loss(self.lost_sectors, self.doubtful_sectors)) {
            (false, _) => "vhd repair says what is missing to put it right".to_owned(),
            (true, None) => "after vhd repair it opens, and no data is lost".to_owned(),
            (true, Some(loss)) => format!("after vhd repair it opens again; {loss}, which it lists"),
        }
    }
}

/// A file that was looked at.
pub(crate) struct Checked {
    pub(crate) format: ImageFormat,
    pub(crate) report: CheckReport,
    /// What a repair would do, of a damaged VHD.
    pub(crate) outlook: Option<Outlook>,
}

impl From<CheckReport> for Checked {
    fn from(report: CheckReport) -> Self {
        Self {
            format: ImageFormat::Vhd,
            report,
            outlook: None,
        }
    }
}

pub(super) fn check_storage(file: &dyn StorageFile, path: &Path) -> Result<CheckReport, Failure> {
    check(file).map_err(|error| Failure::io("read", path, &error))
}

/// The stable name of a severity.
pub(crate) fn severity_name(severity: Severity) -> &'static str {
    match severity {
        Severity::Corrupt => "corrupt",
        Severity::Repairable => "repairable",
        Severity::Leak => "leak",
        Severity::Note => "note",
    }
}
