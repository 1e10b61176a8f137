//! The backup of a GPT follows the end of its disk.

use std::sync::Arc;

use vhd_partition::{Relocation, relocate};

use super::ResizeError;
use super::family::Family;
use crate::device::Disk;
use crate::image::OpenMode;
use crate::partition::{DiskReader, PartitionError};
use crate::units::u64_from;

/// Whether the disk has a GPT that does not end at `size`.
pub(super) fn must_move(disk: &Disk, size: u64) -> Result<bool, ResizeError> {
    match plan(disk, size)? {
        None => Ok(false),
        Some(relocation) => differs(disk, &relocation),
    }
}

/// Writes the GPT of the family's image so that it ends at `size`, durably; whether that changed anything. What was
/// the backup becomes zero, behind `size` too.
pub(super) fn move_backup(family: &Family, size: u64) -> Result<bool, ResizeError> {
    let device = Arc::new(family.device(family.image, &OpenMode::read_write())?);
    let disk = Disk::new(Arc::clone(&device) as _);
    let Some(relocation) = plan(&disk, size)? else {
        return Ok(false);
    };
    let moved = differs(&disk, &relocation)?;
    if moved {
        for patch in relocation.patches() {
            disk.write_at(&patch.bytes, patch.offset)?;
            disk.flush()?;
        }
    }
    drop(disk);
    if let Some(device) = Arc::into_inner(device) {
        device.close()?;
    }
    Ok(moved)
}

fn plan(disk: &Disk, size: u64) -> Result<Option<Relocation>, PartitionError> {
    Ok(relocate(&DiskReader(disk), size)?)
}

fn differs(disk: &Disk, relocation: &Relocation) -> Result<bool, ResizeError> {
    for patch in relocation.patches() {
        let mut found = vec![0; patch.bytes.len()];
        // Behind the end of a disk that is yet to grow nothing is right.
        if patch.offset + u64_from(patch.bytes.len()) > disk.size() {
            return Ok(true);
        }
        disk.read_at(&mut found, patch.offset)?;
        if found != patch.bytes {
            return Ok(true);
        }
    }
    Ok(false)
}
