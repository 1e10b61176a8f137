//! The digest of a disk's content, whatever the format it is stored in.

use sha2::{Digest, Sha256};

use super::ordered::for_each_chunk;
use super::{OpsError, Progress};
use crate::device::Disk;

/// The SHA-256 of all bytes of the disk, zeroes included.
pub fn sha256(disk: &Disk, progress: &dyn Progress) -> Result<[u8; 32], OpsError> {
    let mut hasher = Sha256::new();
    for_each_chunk(disk, progress, |chunk| {
        hasher.update(chunk);
        Ok(())
    })?;
    Ok(hasher.finalize().into())
}
