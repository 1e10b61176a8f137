//! Opening a chain whose files were opened elsewhere. No path is looked at.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use super::builder::ChainBuilder;
use super::open::OpenOptions;
use super::opened::OpenedDisk;
use super::{ChainError, ImageFormat, require_vhd};
use crate::storage::{HostFile, StorageError};

/// What a file is called that has no path here.
pub(super) fn name(number: usize) -> PathBuf {
    format!("descriptor {number}").into()
}

/// There are descriptors behind the base, the last of `layers`.
pub(super) fn left_over(layers: usize) -> ChainError {
    ChainError::DescriptorLeftOver {
        base: name(layers - 1),
        left: name(layers),
    }
}

/// Opens the leaf in the first of them, and its parents in the others.
pub(super) fn open(options: &OpenOptions, files: Vec<OwnedFd>) -> Result<OpenedDisk, ChainError> {
    let path = name(0);
    let mut files = VecDeque::from(files);
    let Some(leaf) = files.pop_front() else {
        let reason = "it is not in the list of descriptors, which is empty";
        return Err(StorageError::Descriptor { path, reason }.into());
    };
    // INV-35, INV-37: nobody is asked here. The caller says that he has.
    if options.is_writing() && !options.ignores_children() {
        return Err(ChainError::DependantsUnknown { path });
    }
    let leaf = HostFile::of_descriptor(leaf, &path, options.access)?;
    let file = Arc::new(leaf.locked(&path, options.access, options.sharing)?);
    let format = match options.format {
        Some(format) => format,
        None => ImageFormat::detect(&*file, &path)?,
    };
    match (format, options.format) {
        (ImageFormat::Raw, Some(_)) if !files.is_empty() => Err(left_over(1)),
        (ImageFormat::Raw, Some(_)) => options.open_raw(&path, file),
        // A fixed image without its footer looks like this in the middle of a resize, and only a path leads to the record.
        (ImageFormat::Raw, None) => Err(require_vhd(&*file, &path)
            .err()
            .unwrap_or(ChainError::RawWrite { path })),
        // Its parents are found by paths alone.
        (ImageFormat::Vhdx | ImageFormat::Qcow2 | ImageFormat::Vmdk, _) => {
            let refused = options.clone().foreign(false).require_reading(format, &path);
            Err(refused.err().unwrap_or(ChainError::RawWrite { path }))
        }
        (ImageFormat::Vhd, _) => {
            let mut paths = Vec::new();
            let builder = ChainBuilder::new(options, &mut paths).given(files);
            builder.build(&path, Arc::clone(&file) as _, Some(&file))
        }
    }
}
