//! A disk whose snapshots come and go while it is in use becomes larger: `online.rs` is for disks that are opened for this.

use std::path::Path;
use std::sync::Arc;

use super::{Request, Resize, ResizeError, ResizePlan, ResizeReport, tree_in_use};
use crate::device::{BlockDevice as _, LiveDevice};
use crate::ops::Progress;
use crate::storage::{HostFile, StorageError, StorageFile};

/// Says what [`resize_in_use`] would do. Nothing is changed.
///
/// # Errors
/// Those of [`resize_in_use`].
pub fn plan_in_use(request: &Request<'_>, device: &LiveDevice) -> Result<ResizePlan, ResizeError> {
    check(request, device)?;
    if request.tree {
        return tree_in_use::plan(request, device);
    }
    let file = Arc::clone(device.present().leaf().file());
    Ok(prepare(request, file)?.plan)
}

/// Makes a disk larger that this process has in use: one image without parents and children, whose file is the request's, or
/// with `tree` all images of its tree, of which the request names one. Requests to it, and to who reads its layers, are held
/// meanwhile, and none fails.
///
/// # Errors
/// [`ResizeError`]; `InUse` for what can't be done while the disk is in use. It has the size that it had then.
pub fn resize_in_use(
    request: &Request<'_>,
    device: &LiveDevice,
    progress: &dyn Progress,
) -> Result<ResizeReport, ResizeError> {
    check(request, device)?;
    // So that most of what can be refused is refused before anybody has to wait.
    let planned = plan_in_use(request, device)?;
    if planned.files.is_empty() {
        return Ok(ResizeReport {
            plan: planned,
            gpt_moved: false,
        });
    }
    if request.tree {
        return tree_in_use::resize(request, device, progress);
    }
    let mut report = None;
    device.rework_leaf(Box::new(|file| -> Result<(), ResizeError> {
        report = Some(prepare(request, file)?.run(progress)?);
        Ok(())
    }))?;
    report.ok_or_else(|| refused(request.image, "be resized any more"))
}

fn check(request: &Request<'_>, device: &LiveDevice) -> Result<(), ResizeError> {
    let present = device.present();
    if request.size < present.size_bytes() {
        return Err(refused(request.image, "become smaller"));
    }
    if present.layers().len() > 1 && !request.tree {
        let count = present.layers().len();
        return Err(ResizeError::NeedsTree {
            path: request.image.to_owned(),
            reason: format!("it is one of {count} images of a disk that is in use"),
        });
    }
    if !request.tree && !device.writes_to(request.image) {
        return Err(refused(
            request.image,
            "be resized: it is not the file that is written to",
        ));
    }
    if request.fix_gpt {
        return Err(refused(
            request.image,
            "have its partition table moved, of which its users know where it is",
        ));
    }
    Ok(())
}

fn refused(path: &Path, what: &'static str) -> ResizeError {
    ResizeError::InUse {
        path: path.to_owned(),
        what,
    }
}

/// The descriptor is a second one of the same open file: its locks stay as they are.
fn prepare(request: &Request<'_>, storage: Arc<dyn StorageFile>) -> Result<Resize, ResizeError> {
    let at = |source| StorageError::at(request.image, "use", source);
    let file = storage
        .host_file()
        .map(std::fs::File::try_clone)
        .transpose()
        .map_err(at)?;
    let file = file.ok_or_else(|| refused(request.image, "be resized: it is in no file of this host"))?;
    let file = Arc::new(HostFile::from_file(file).map_err(at)?);
    Resize::prepare_held(request, &file, storage)
}
