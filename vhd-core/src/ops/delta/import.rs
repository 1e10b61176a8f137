//! Using a delta.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::DeltaError;
use crate::chain::{ChainError, ImageFormat, OpenOptions, OpenedDisk, foreign};
use crate::device::{DeviceError, Disk, LayeredDevice, RawDevice};
use crate::error::with_causes;
use crate::format::{DELTA_RECORD_SIZE, DeltaRecord};
use crate::image::{Image, IoContext, OpenMode};
use crate::ops::convert::fill;
use crate::ops::{ConvertOptions, ConvertReport, OpsError, Progress, Target, sha256};
use crate::storage::{StagedFile, StorageFile};
use crate::units::u64_from;

/// A delta and the disk it is to be put on, both open.
pub struct DeltaImport {
    base: OpenedDisk,
    delta: OpenedDisk,
    base_path: PathBuf,
    record: DeltaRecord,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ImportReport {
    /// What was copied.
    pub converted: ConvertReport,
    /// The digests, which were verified.
    pub record: DeltaRecord,
}

impl DeltaImport {
    /// Opens the base at `base`, and the delta over it. `options` has the base's format, and finds its own ancestors.
    ///
    /// # Errors
    /// If the image at `delta` has no digests, or is no child of the base.
    pub fn open(delta: &Path, base: &Path, options: &OpenOptions) -> Result<Self, DeltaError> {
        let options = options.clone().write(false);
        let opened_base = options.open(base)?;
        let over_base = match opened_base.format() {
            ImageFormat::Raw => options.raw_parents([base.to_owned()]),
            ImageFormat::Vhd | ImageFormat::Vhdx | ImageFormat::Qcow2 | ImageFormat::Vmdk => {
                options.parents([base.to_owned()])
            }
        };
        let over_base = over_base.format(Some(ImageFormat::Vhd));
        let opened_delta = over_base.open(delta)?;
        let record = read_record(&opened_delta, delta)?;
        Ok(Self {
            base: opened_base,
            delta: opened_delta,
            base_path: base.to_owned(),
            record: record.ok_or_else(|| DeltaError::NoRecord { path: delta.to_owned() })?,
        })
    }

    /// The base, and the disk that the delta makes of it.
    #[must_use]
    pub fn sources(&self) -> [&OpenedDisk; 2] {
        [&self.base, &self.delta]
    }

    /// Verifies the base, writes the disk that base and delta make to `destination`, and verifies that: it appears
    /// under its name complete and right, or not at all.
    pub fn write(
        &self,
        destination: &Path,
        options: &ConvertOptions,
        progress: &dyn Progress,
    ) -> Result<ImportReport, DeltaError> {
        let found = sha256(&self.base.disk(), progress)?;
        if found != self.record.base_sha256 {
            return Err(DeltaError::BaseDigest {
                path: self.base_path.clone(),
                expected: self.record.base_sha256,
                found,
            });
        }
        let staged = StagedFile::create_beside(destination).map_err(OpsError::from)?;
        let file: Arc<dyn StorageFile> = staged.storage();
        let size = self.delta.disk().size();
        let converted = fill(&self.delta, Arc::clone(&file), destination, size, options, progress)?;
        let found = sha256(&written(file, destination, &options.target)?, progress)?;
        if found != self.record.result_sha256 {
            return Err(DeltaError::ResultDigest {
                expected: self.record.result_sha256,
                found,
            });
        }
        staged
            .publish(options.replace, options.durable)
            .map_err(OpsError::from)?;
        Ok(ImportReport {
            converted,
            record: self.record,
        })
    }
}

/// The digests in a delta.
fn read_record(delta: &OpenedDisk, path: &Path) -> Result<Option<DeltaRecord>, DeltaError> {
    let image = delta.layers().next().and_then(|leaf| leaf.layer.image());
    let Some((image, header)) = image.and_then(|image| Some((image, image.header()?))) else {
        return Ok(None);
    };
    let read = |source| ChainError::Read {
        path: path.to_owned(),
        source,
    };
    let end = image.file().len().map_err(read)?;
    let mut bytes = [0; DELTA_RECORD_SIZE];
    let offset = DeltaRecord::offset(header).filter(|offset| {
        let record_end = offset.checked_add(u64_from(bytes.len()));
        record_end.is_some_and(|record_end| record_end <= end)
    });
    let Some(offset) = offset else { return Ok(None) };
    image.file().read_exact_at(&mut bytes, offset).map_err(read)?;
    let record = DeltaRecord::decode(&bytes);
    Ok(record.filter(|record| image.is_differencing() && record.delta_id == image.unique_id()))
}

/// The disk in a file that has just been written.
fn written(file: Arc<dyn StorageFile>, path: &Path, target: &Target) -> Result<Disk, OpsError> {
    if *target == Target::Raw {
        let device = RawDevice::new(file, false).io_context("query", 0);
        let device = device.map_err(|source| OpsError::Destination {
            path: path.to_owned(),
            source,
        })?;
        return Ok(Disk::new(Arc::new(device)));
    }
    if *target == Target::Qcow2 {
        let layer = foreign::read_alone(file, path).map_err(|error| OpsError::Destination {
            path: path.to_owned(),
            source: DeviceError::Image {
                kind: error.kind().into(),
                message: with_causes(&error),
            },
        })?;
        return Ok(layer.alone());
    }
    let image = Image::open(file, &OpenMode::read_only()).map_err(|source| OpsError::Open {
        path: path.to_owned(),
        source,
    })?;
    Ok(Disk::new(Arc::new(LayeredDevice::new(image, Vec::new()))))
}
