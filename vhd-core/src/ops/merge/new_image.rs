//! The same content as a new image: nothing is changed, and nothing has to be resumed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::copy::{CopyMode, LayerCopy};
use super::plan::{Range, open_target, visit_held};
use super::{Known, MergeError, MergeOptions, MergeReport, MergeRequest};
use crate::chain::{OpenedDisk, parent_link};
use crate::device::{Disk, Layer, LayeredDevice};
use crate::format::{DEFAULT_BLOCK_SIZE, MAX_BLOCK_SIZE, MIN_CREATE_BLOCK_SIZE, UniqueId};
use crate::image::{CreateError, Image, OpenMode, create_differencing, create_dynamic};
use crate::ops::Progress;
use crate::storage::{StagedFile, StorageFile, UnsyncedFile};

/// What becomes one new image.
#[derive(Clone)]
pub struct NewImagePlan {
    request: MergeRequest,
    /// What becomes one, the child first.
    layers: Vec<Known>,
    /// What is below them.
    parent: Option<Known>,
    block_size: u64,
    disk_bytes: u64,
    held_bytes: u64,
    warnings: Vec<String>,
}

impl NewImagePlan {
    /// The files that become one, the child's first.
    pub fn merged(&self) -> impl Iterator<Item = &Path> {
        self.layers.iter().map(|layer| layer.path.as_path())
    }

    /// The parent of the new image: a differencing one. `None` for a dynamic one.
    #[must_use]
    pub fn parent(&self) -> Option<&Path> {
        self.parent.as_ref().map(|parent| parent.path.as_path())
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.disk_bytes
    }

    /// Bytes in the new image's blocks.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        self.block_size
    }

    /// Bytes that the images hold, each sector counted once: the most that is read and written.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held_bytes
    }

    /// What is odd about the images.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Plans a new image that reads like the request's child: the child and its parent as one, or everything down to
/// `into`. Its parent is that of the lowest of them.
///
/// # Errors
/// [`MergeError`].
pub fn plan_to_new(request: &MergeRequest) -> Result<NewImagePlan, MergeError> {
    let opened = request.open.clone().write(false).open(&request.child)?;
    let range = Range::of(&opened, request)?;
    range.check_sizes()?;
    let layers = opened.chain().map_or(&[][..], |device| device.layers());
    let (sources, below) = layers.split_at(range.layers.len());
    let mut held_bytes = 0;
    let disk_bytes = opened.disk().size();
    visit_held(sources, disk_bytes, |range| held_bytes += range.len).map_err(|source| MergeError::Device {
        path: request.child.clone(),
        source,
    })?;
    Ok(NewImagePlan {
        parent: below.first().map(|layer| Known {
            path: opened.paths()[range.layers.len()].clone(),
            id: layer.unique_id(),
        }),
        block_size: block_size_of(&sources[sources.len() - 1]),
        warnings: opened.warnings().iter().map(ToString::to_string).collect(),
        request: request.clone(),
        layers: range.layers,
        disk_bytes,
        held_bytes,
    })
}

/// Blocks as large as those of the lowest image, where an image can be created with such.
fn block_size_of(lowest: &Layer) -> u64 {
    let header = lowest.image().and_then(|image| image.header());
    let creatable = u64::from(MIN_CREATE_BLOCK_SIZE)..=u64::from(MAX_BLOCK_SIZE);
    let inherited = header.map(|header| header.layout.block_size());
    inherited
        .filter(|size| creatable.contains(size))
        .unwrap_or(u64::from(DEFAULT_BLOCK_SIZE))
}

/// Writes the new image to `output`, where it appears complete and durable, or not at all. With `replace` it takes the
/// place of a file of that name.
///
/// # Errors
/// [`MergeError`]; `Cancelled` when it was told to stop.
pub fn merge_to_new(
    plan: &NewImagePlan,
    output: &Path,
    replace: bool,
    options: &MergeOptions<'_>,
    progress: &dyn Progress,
) -> Result<MergeReport, MergeError> {
    let opened = plan.request.open.clone().write(false).open(&plan.request.child)?;
    if Range::of(&opened, &plan.request)?.layers != plan.layers {
        return Err(MergeError::Changed {
            path: plan.request.child.clone(),
            what: "its chain changed since the merge was planned".to_owned(),
        });
    }
    let staged = StagedFile::create_beside(output)?;
    // No one sees the file before it is complete: the order of its writes does not matter.
    let file: Arc<dyn StorageFile> = Arc::new(UnsyncedFile(staged.storage()));
    create(plan, output, &*file)?;
    let report = fill(plan, output, file, opened, options, progress)?;
    staged.publish(replace, true)?;
    Ok(report)
}

fn create(plan: &NewImagePlan, output: &Path, file: &dyn StorageFile) -> Result<UniqueId, MergeError> {
    let failed = |source: CreateError| MergeError::Create {
        path: output.to_owned(),
        source,
    };
    match &plan.parent {
        None => create_dynamic(file, plan.disk_bytes, plan.block_size).map_err(failed),
        Some(parent) => {
            let opened = open_target(&plan.request.open, parent)?;
            let link = parent_link(output, &parent.path, &opened)?;
            create_differencing(file, plan.disk_bytes, plan.block_size, &link).map_err(failed)
        }
    }
}

fn fill(
    plan: &NewImagePlan,
    output: &Path,
    file: Arc<dyn StorageFile>,
    opened: OpenedDisk,
    options: &MergeOptions<'_>,
    progress: &dyn Progress,
) -> Result<MergeReport, MergeError> {
    let written = |source| MergeError::Device {
        path: output.to_owned(),
        source,
    };
    let image = Image::open(file, &OpenMode::read_write()).map_err(|source| MergeError::Child {
        path: output.to_owned(),
        source,
    })?;
    let device = opened.into_device().ok_or_else(|| MergeError::NoParent {
        path: plan.request.child.clone(),
    })?;
    let mut sources = device.into_layers();
    let below = sources.split_off(plan.layers.len());
    let device = Arc::new(LayeredDevice::new(image, below));
    let disk = Disk::new(Arc::clone(&device) as _);
    let paths: Vec<PathBuf> = plan.merged().map(PathBuf::from).collect();
    progress.begin(plan.held_bytes);
    let copy = LayerCopy {
        sources: &sources,
        paths: &paths,
        target: &disk,
        target_path: output,
        mode: CopyMode::Write,
        options,
        progress,
    };
    let (end, copied) = copy.run(0, &mut |_| Ok(()))?;
    if end < disk.size() {
        return Err(MergeError::Cancelled {
            path: output.to_owned(),
        });
    }
    drop(disk);
    if let Some(device) = Arc::into_inner(device) {
        device.close().map_err(written)?;
    }
    Ok(MergeReport {
        target: output.to_owned(),
        read_bytes: copied.read,
        copied_bytes: copied.written,
        zeroed_bytes: copied.zeroed,
        ..MergeReport::default()
    })
}
