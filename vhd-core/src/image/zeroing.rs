//! Zeroes and discards in the file of a disk, with the options of a request.

use vhd_block::{DeviceError, ZeroOptions};

use super::IoContext;
use crate::storage::{StorageFile, clear_range, is_hole_already, zero_range_kept};

/// Makes a range of a file zero in the way the options allow.
pub(crate) fn zero_file_range(
    file: &dyn StorageFile,
    offset: u64,
    len: u64,
    options: ZeroOptions,
) -> Result<(), DeviceError> {
    if len == 0 {
        return Ok(());
    }
    let result = match (options.fast_only, options.may_unmap) {
        (true, true) => file.punch_hole(offset, len),
        (true, false) => file.zero_range(offset, len),
        (false, true) => clear_range(file, offset, len),
        (false, false) => zero_range_kept(file, offset, len),
    };
    match result {
        Err(error) if options.fast_only && error.kind() == std::io::ErrorKind::Unsupported => Err(DeviceError::NotFast),
        Err(error) if options.may_unmap && is_hole_already(&error, file, offset, len) => Ok(()),
        other => other.io_context("zero", offset),
    }
}

/// Frees the space of a range of a file where the file system can; elsewhere the bytes stay.
pub(crate) fn discard_file_range(file: &dyn StorageFile, offset: u64, len: u64) -> Result<(), DeviceError> {
    match file.punch_hole(offset, len) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(()),
        Err(error) if is_hole_already(&error, file, offset, len) => Ok(()),
        _ if len == 0 => Ok(()),
        other => other.io_context("punch a hole", offset),
    }
}
