//! Other children of the layers are carried along: they get, before the target changes, what would read otherwise.
//!
//! A child of the target, or of a layer in the middle, does not see what the layers above hold; over the merged target
//! it would. So it takes over what it reads now and the merged image does not, and holds it from then on. That is
//! the first half of a rebase, onto the image that is merged, and like that it changes nothing that anybody
//! reads: it needs no journal, and doing it again is harmless. It is done again by each run, since the machine may
//! have written to the merged image, and others to the child, since the last one.

use std::path::Path;
use std::time::SystemTime;

use super::child_file::{ChildFile, modified};
use super::error::Dependant;
use super::{CarriedChild, MergeError, MergeOptions, MergeRequest};
use crate::chain::OpenedDisk;
use crate::device::LayeredDevice;
use crate::ops::Progress;
use crate::ops::reparent::{RebaseOptions, take_over, taken_at_most};

/// What carrying a child takes at most. `merged` is the image that is merged over the whole range. Nothing is changed.
pub(super) fn survey(
    request: &MergeRequest,
    child: Dependant,
    merged_path: &Path,
    merged: &OpenedDisk,
) -> Result<CarriedChild, MergeError> {
    let opened = open(request, &child.path, merged_path, merged, false)?;
    let device = opened.chain().ok_or_else(|| no_parent(&child.path))?;
    let most = taken_at_most(device, merged).map_err(|source| failed(&child.path, source))?;
    Ok(CarriedChild {
        bytes: most.taken_bytes,
        new_bytes: most.new_blocks * most.block_size,
        path: child.path,
        parent: child.parent,
    })
}

/// The carried children, open for writing over their parents: nobody else uses them.
pub(super) struct Carrying {
    children: Vec<Opened>,
}

struct Opened {
    device: LayeredDevice,
    path: std::path::PathBuf,
    modified: Option<SystemTime>,
}

impl Carrying {
    /// Opens all of them: if one can't be, nothing has been written to any.
    pub(super) fn open(
        request: &MergeRequest,
        children: &[CarriedChild],
        merged_path: &Path,
        merged: &OpenedDisk,
    ) -> Result<Self, MergeError> {
        let children = children.iter().map(|child| {
            let path = child.path.clone();
            let modified = modified(&path);
            let opened = open(request, &path, merged_path, merged, true)?;
            let device = opened.into_device().ok_or_else(|| no_parent(&path))?;
            Ok(Opened { device, path, modified })
        });
        Ok(Self {
            children: children.collect::<Result<_, MergeError>>()?,
        })
    }

    /// Each takes over what it reads and the merged image does not, durably. They stay open, without their parents:
    /// the target is to be written. Answers how many bytes were taken over; it ends early if it is told to stop.
    pub(super) fn take_over(
        self,
        merged: &OpenedDisk,
        options: &MergeOptions<'_>,
        progress: &dyn Progress,
    ) -> Result<(Vec<ChildFile>, u64), MergeError> {
        let options = RebaseOptions {
            cancel: options.cancel,
            threads: options.threads,
            flush_bytes: options.batch_bytes,
        };
        let (mut files, mut bytes) = (Vec::new(), 0);
        for Opened { device, path, modified } in self.children {
            let taken = take_over(device, merged, &options, progress);
            let (image, report) = taken.map_err(|source| failed(&path, source))?;
            files.push(ChildFile::of(&path, image, modified));
            bytes += report.taken_bytes;
        }
        Ok((files, bytes))
    }
}

/// Opens a child over its parents. A disk of another size could not be merged either.
fn open(
    request: &MergeRequest,
    path: &Path,
    merged_path: &Path,
    merged: &OpenedDisk,
    write: bool,
) -> Result<OpenedDisk, MergeError> {
    // What it reads stays the same: its own children are not concerned.
    let opened = request.open.clone().write(write).ignore_children(true).open(path)?;
    let (size, other_size) = (opened.disk().size(), merged.disk().size());
    if size == other_size {
        return Ok(opened);
    }
    Err(MergeError::SizeMismatch {
        path: path.to_owned(),
        size,
        other: merged_path.to_owned(),
        other_size,
    })
}

fn no_parent(path: &Path) -> MergeError {
    MergeError::NoParent { path: path.to_owned() }
}

fn failed(path: &Path, source: crate::ops::reparent::ReparentError) -> MergeError {
    MergeError::Carry {
        path: path.to_owned(),
        source,
    }
}
