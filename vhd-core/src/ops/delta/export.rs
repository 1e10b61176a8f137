//! Making a delta.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;

use super::DeltaError;
use super::layout::Layout;
use super::write::{Parts, SparseStream};
use crate::chain::OpenedDisk;
use crate::device::Disk;
use crate::format::{DeltaRecord, DiskType, DynamicHeader, Footer, Timestamp, UniqueId};
use crate::image::{IoContext, LocatorData, ParentLink, differencing_header};
use crate::ops::{DiffMode, OpsError, Progress, diff, sha256};
use crate::storage::StagedFile;
use crate::units::u64_from;

/// A delta that is ready to be written.
pub struct DeltaExport {
    image: Disk,
    footer: Footer,
    header: DynamicHeader,
    locators: LocatorData,
    record: DeltaRecord,
    layout: Layout,
}

/// What a delta is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExportReport {
    /// The identity of the delta.
    pub id: UniqueId,
    /// Bytes of the disk.
    pub disk_size: u64,
    /// The SHA-256 of the base.
    pub base_sha256: [u8; 32],
    /// The SHA-256 of the disk that was exported.
    pub image_sha256: [u8; 32],
    /// Bytes in sectors that differ: what the delta holds.
    pub different_bytes: u64,
    /// Blocks with such sectors.
    pub blocks: u64,
    /// Bytes of the delta's file.
    pub file_bytes: u64,
}

impl DeltaExport {
    /// Finds out what `image` has that `base` has not, in blocks of `block_size` bytes. `link` is the way to the base.
    ///
    /// Both disks are read whole, for their digests.
    pub fn new(
        image: &OpenedDisk,
        base: &OpenedDisk,
        link: &ParentLink,
        block_size: u64,
        progress: &dyn Progress,
    ) -> Result<Self, DeltaError> {
        let (size, base_size) = (image.disk().size(), base.disk().size());
        if size != base_size {
            return Err(DeltaError::SizeMismatch {
                image_size: size,
                base_size,
            });
        }
        let created = differencing_header(size, block_size, link);
        let (header, locators) = created.map_err(|source| OpsError::Create {
            path: "the delta".into(),
            source,
        })?;
        let mut ranges = Vec::new();
        diff(image, base, DiffMode::Content, progress, &mut |range| {
            ranges.push(range);
            ControlFlow::Continue(())
        })?;
        let layout = Layout::new(&header, ranges)?;
        let footer = Footer::new(DiskType::Differencing, size, UniqueId::random(), Timestamp::now());
        let record = DeltaRecord {
            delta_id: footer.unique_id,
            base_sha256: sha256(&base.disk(), progress)?,
            result_sha256: sha256(&image.disk(), progress)?,
            disk_size: size,
        };
        Ok(Self {
            image: image.disk(),
            footer,
            header,
            locators,
            record,
            layout,
        })
    }

    /// What the delta is.
    #[must_use]
    pub fn report(&self) -> ExportReport {
        ExportReport {
            id: self.footer.unique_id,
            disk_size: self.record.disk_size,
            base_sha256: self.record.base_sha256,
            image_sha256: self.record.result_sha256,
            different_bytes: self.layout.held_bytes(),
            blocks: u64_from(self.layout.blocks.len()),
            file_bytes: self.layout.footer_at + u64_from(self.footer.encode().len()),
        }
    }

    /// Writes the delta in one pass.
    pub fn stream(&self, out: &mut dyn Write, progress: &dyn Progress) -> Result<(), DeltaError> {
        Ok(self.parts().write(out, progress)?)
    }

    /// Writes the delta to `destination`, which appears under its name complete or not at all.
    pub fn write(
        &self,
        destination: &Path,
        replace: bool,
        durable: bool,
        progress: &dyn Progress,
    ) -> Result<(), DeltaError> {
        let staged = StagedFile::create_beside(destination).map_err(OpsError::from)?;
        let mut out = SparseStream::new(staged.storage());
        self.parts().write(&mut out, progress).map_err(|error| match error {
            OpsError::Output(source) => OpsError::Destination {
                path: destination.to_owned(),
                source: Err::<(), _>(source).io_context("write", 0).expect_err("an error"),
            },
            error => error,
        })?;
        staged.publish(replace, durable).map_err(OpsError::from)?;
        Ok(())
    }

    fn parts(&self) -> Parts<'_> {
        Parts {
            image: &self.image,
            footer: &self.footer,
            header: &self.header,
            locators: &self.locators,
            record: &self.record,
            layout: &self.layout,
        }
    }
}
