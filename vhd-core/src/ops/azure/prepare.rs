//! Writing an image for Azure.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use vhd_partition::{Relocation, relocate};

use super::rules::{Verdict, check};
use super::{AzureError, MINIMUM, UNIT};
use crate::chain::OpenedDisk;
use crate::device::{ByteRange, Disk, LayeredDevice};
use crate::format::{DiskType, Footer, Timestamp, UniqueId};
use crate::image::{CreateError, Image, IoContext, OpenMode, check_size};
use crate::ops::convert::fill;
use crate::ops::{ConvertOptions, ConvertReport, OpsError, Progress, compare};
use crate::partition::{DiskReader, PartitionError};
use crate::storage::{StagedFile, StorageFile};

/// The program that qemu, in all its versions, Hyper-V, the Xen tools and Azure take for one whose images are as large
/// as the footer says: Windows 10.
const CREATOR: [u8; 4] = *b"win ";
const CREATOR_VERSION: u32 = 0x000A_0000;

/// What was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PrepareReport {
    /// What was copied.
    pub converted: ConvertReport,
    /// Bytes that were added at the end of the disk.
    pub added_bytes: u64,
    /// A GPT was made to end with the disk.
    pub gpt_moved: bool,
}

/// The size that a disk of `size` bytes is given.
///
/// # Errors
/// If no VHD has that size.
pub fn prepared_size(size: u64) -> Result<u64, CreateError> {
    let rounded = size.max(MINIMUM).checked_next_multiple_of(UNIT).unwrap_or(u64::MAX);
    check_size(rounded)?;
    Ok(rounded)
}

/// Writes the disk as an image that keeps every rule of [`check`] to `destination`, which appears under its name
/// complete and verified or not at all. `options.target` is to be a fixed image.
pub fn prepare(
    source: &OpenedDisk,
    destination: &Path,
    options: &ConvertOptions,
    progress: &dyn Progress,
) -> Result<PrepareReport, AzureError> {
    let disk = source.disk();
    let size = prepared_size(disk.size()).map_err(|source| OpsError::Create {
        path: destination.to_owned(),
        source,
    })?;
    let gpt = relocate(&DiskReader(&disk), size).map_err(PartitionError::from)?;
    let staged = StagedFile::create_beside(destination).map_err(OpsError::from)?;
    let file: Arc<dyn StorageFile> = staged.storage();
    let converted = fill(source, Arc::clone(&file), destination, size, options, progress)?;
    finish(&*file, size, gpt.as_ref()).map_err(|source| OpsError::Destination {
        path: destination.to_owned(),
        source,
    })?;
    verify(&disk, &file, gpt.as_ref(), destination, progress)?;
    staged
        .publish(options.replace, options.durable)
        .map_err(OpsError::from)?;
    Ok(PrepareReport {
        converted,
        added_bytes: size - disk.size(),
        gpt_moved: gpt.is_some(),
    })
}

/// Writes what is not a copy: the ends of a GPT, and the footer.
fn finish(file: &dyn StorageFile, size: u64, gpt: Option<&Relocation>) -> Result<(), crate::device::DeviceError> {
    for patch in gpt.map_or(&[][..], Relocation::patches) {
        file.write_all_at(&patch.bytes, patch.offset)
            .io_context("write the partition table", patch.offset)?;
    }
    let mut footer = Footer::new(DiskType::Fixed, size, UniqueId::random(), Timestamp::now());
    footer.creator_application = CREATOR;
    footer.creator_version = CREATOR_VERSION;
    file.write_all_at(&footer.encode(), size)
        .io_context("write the footer", size)
}

/// The copy keeps every rule, and differs from its source in nothing but the ends of the GPT.
fn verify(
    source: &Disk,
    file: &Arc<dyn StorageFile>,
    gpt: Option<&Relocation>,
    destination: &Path,
    progress: &dyn Progress,
) -> Result<(), AzureError> {
    let wrong = |what: String| AzureError::Verification {
        path: destination.to_owned(),
        what,
    };
    let outcomes = check(file).map_err(|error| wrong(error.to_string()))?;
    if let Some(broken) = outcomes.iter().find(|outcome| outcome.verdict != Verdict::Pass) {
        return Err(wrong(format!("{}: {}", broken.rule, broken.found)));
    }
    let image = Image::open(Arc::clone(file), &OpenMode::read_only());
    let image = image.map_err(|error| wrong(error.to_string()))?;
    let copy = Disk::new(Arc::new(LayeredDevice::new(image, Vec::new())));
    let mut unexpected: Option<ByteRange> = None;
    compare(source, &copy, progress, &mut |range| {
        if gpt.is_some_and(|gpt| gpt.covers(range.start..range.end())) {
            return ControlFlow::Continue(());
        }
        unexpected = Some(range);
        ControlFlow::Break(())
    })?;
    match unexpected {
        None => Ok(()),
        Some(range) => Err(wrong(format!(
            "{:#x}..{:#x} differs from the source",
            range.start,
            range.end()
        ))),
    }
}
