//! A look at the file in a place where a parent may be.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use super::ImageFormat;
use super::detect::foreign_format;
use super::error::{ChainError, ParentOutcome};
use super::locate::{AllowAll, Candidate, ParentGate, candidates};
use super::unfinished::unfinished_resize;
use crate::format::UniqueId;
use crate::image::{Footers, Image, OpenError, OpenMode};
use crate::storage::{Access, FileIdentity, HostFile, Sharing};

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
    let file = look_at(child, candidate, gate)?;
    identify(candidate, &file, wanted)
}

/// Opens the file at a candidate's path for a look, if that is allowed.
pub(super) fn look_at(child: &Path, candidate: &Candidate, gate: &dyn ParentGate) -> Result<HostFile, ParentOutcome> {
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
    let file = HostFile::open(path, Access::ReadOnly, Sharing::Unlocked);
    file.map_err(|error| ParentOutcome::Unreadable(error.to_string()))
}

/// Whether an open file is the parent. It is asked again once the file is locked: the one that was looked at may have
/// been replaced, or have become another disk.
pub(super) fn identify(candidate: &Candidate, file: &HostFile, wanted: UniqueId) -> Result<Examined, ParentOutcome> {
    if !(candidate.as_raw && wanted.is_nil())
        && let Some(error) = unfinished_resize(&candidate.path, file)
    {
        return Err(ParentOutcome::Unreadable(error.to_string()));
    }
    identify_content(candidate, file, wanted)
}

/// Whether an open file is the parent, by what is in it alone.
pub(super) fn identify_content(
    candidate: &Candidate,
    file: &HostFile,
    wanted: UniqueId,
) -> Result<Examined, ParentOutcome> {
    let unreadable = |error: &dyn std::error::Error| ParentOutcome::Unreadable(error.to_string());
    let path = &candidate.path;
    if candidate.as_raw && wanted.is_nil() {
        return Ok(Examined::Raw);
    }
    match Footers::read(file) {
        Ok(footers) if footers.footer.unique_id == wanted && !wanted.is_nil() => Ok(Examined::Vhd),
        Ok(footers) => Err(ParentOutcome::OtherDisk(footers.footer.unique_id)),
        Err(OpenError::NoFooter { .. }) if candidate.named && wanted.is_nil() => {
            match ImageFormat::detect(file, path) {
                Ok(ImageFormat::Raw) => Ok(Examined::Raw),
                Ok(ImageFormat::Vhd) => Err(ParentOutcome::NotVhd),
                Ok(ImageFormat::Vhdx | ImageFormat::Qcow2 | ImageFormat::Vmdk) => Err(not_vhd(file)),
                Err(ChainError::Foreign { format, .. }) => Err(ParentOutcome::Foreign(format)),
                Err(error) => Err(unreadable(&error)),
            }
        }
        Err(OpenError::NoFooter { .. }) => Err(not_vhd(file)),
        Err(error) => Err(unreadable(&error)),
    }
}

/// What a file is that is no VHD.
fn not_vhd(file: &HostFile) -> ParentOutcome {
    match foreign_format(file) {
        Ok(Some(format)) => ParentOutcome::Foreign(format),
        _ => ParentOutcome::NotVhd,
    }
}

/// The file to which the places that the differencing image at `child` names lead; `None` if there is none with the
/// identity `wanted`. For a raw parent, which has no identity, the first file that is there.
pub(super) fn leads_to(child: &Path, wanted: UniqueId) -> Option<FileIdentity> {
    let file = HostFile::open(child, Access::ReadOnly, Sharing::Unlocked).ok()?;
    let image = Image::open(Arc::new(file), &OpenMode::ancestor()).ok()?;
    let named = image.parent_paths().ok()?;
    let places = candidates(child, &named, &[], &[]);
    let mut places = places.map(|place| Candidate {
        named: wanted.is_nil(),
        ..place
    });
    let found = places.find(|place| examine(child, place, wanted, &AllowAll).is_ok())?;
    FileIdentity::of_path(&found.path).ok()
}
