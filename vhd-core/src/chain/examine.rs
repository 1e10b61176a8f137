//! A look at the file in a place where a parent may be.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::error::ParentOutcome;
use super::locate::{Candidate, ParentGate};
use super::unfinished::unfinished_resize;
use crate::format::UniqueId;
use crate::image::{Footers, OpenError};
use crate::storage::{Access, HostFile, Sharing};

/// What the parent is that was found.
pub(super) enum Examined {
    Vhd,
    Raw,
}

/// Whether the file at a candidate's path is the parent. No lock is taken for a look.
pub(super) fn examine(
    child: &Path,
    candidate: &Candidate,
    wanted: UniqueId,
    gate: &dyn ParentGate,
) -> Result<Examined, ParentOutcome> {
    let path = &candidate.path;
    if !candidate.explicit && !gate.allows(child, path) {
        return Err(ParentOutcome::Denied);
    }
    // An image may name a pipe or a terminal: opening one can block or worse.
    match fs::metadata(path) {
        Ok(metadata) if metadata.is_file() || metadata.file_type().is_block_device() => {}
        Ok(_) => return Err(ParentOutcome::NotAFile),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(ParentOutcome::NotFound),
        Err(error) => return Err(ParentOutcome::Unreadable(error.to_string())),
    }
    let unreadable = |error: &dyn std::error::Error| ParentOutcome::Unreadable(error.to_string());
    let file = HostFile::open(path, Access::ReadOnly, Sharing::Unlocked).map_err(|error| unreadable(&error))?;
    if let Some(error) = unfinished_resize(path, &file) {
        return Err(unreadable(&error));
    }
    match Footers::read(&file) {
        Ok(footers) if footers.footer.unique_id == wanted && !wanted.is_nil() => Ok(Examined::Vhd),
        Ok(footers) => Err(ParentOutcome::OtherDisk(footers.footer.unique_id)),
        Err(OpenError::NoFooter { .. }) if candidate.named && wanted.is_nil() => Ok(Examined::Raw),
        Err(OpenError::NoFooter { .. }) => Err(ParentOutcome::NotVhd),
        Err(error) => Err(unreadable(&error)),
    }
}
