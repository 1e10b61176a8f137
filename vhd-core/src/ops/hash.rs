//! The digest of a disk's content, whatever the format it is stored in.

use std::io;

use sha2::{Digest, Sha256};

use super::ordered::for_each_chunk;
use super::{OpsError, Progress};
use crate::device::Disk;
use crate::storage::StorageFile;
use crate::units::{u64_from, usize_from};

/// Bytes of a file that are read at once.
const FILE_STEP: u64 = 1 << 20;

/// The SHA-256 of all bytes of the disk, zeroes included.
pub fn sha256(disk: &Disk, progress: &dyn Progress) -> Result<[u8; 32], OpsError> {
    let mut hasher = Sha256::new();
    for_each_chunk(disk, progress, |chunk| {
        hasher.update(chunk);
        Ok(())
    })?;
    Ok(hasher.finalize().into())
}

/// The SHA-256 of the bytes of a file, whatever they are.
///
/// # Errors
/// Those of reading it.
pub fn sha256_of_file(file: &dyn StorageFile, progress: &dyn Progress) -> io::Result<[u8; 32]> {
    let mut hasher = Sha256::new();
    let len = file.len()?;
    progress.begin(len);
    let mut buffer = vec![0; usize_from(FILE_STEP.min(len))];
    let mut offset = 0;
    while offset < len {
        let step = FILE_STEP.min(len - offset);
        let piece = &mut buffer[..usize_from(step)];
        file.read_exact_at(piece, offset)?;
        hasher.update(&*piece);
        offset += u64_from(piece.len());
        progress.advance(step);
    }
    Ok(hasher.finalize().into())
}
