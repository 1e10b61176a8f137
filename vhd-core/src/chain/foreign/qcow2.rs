//! The chain of a qcow2: a child names its backing file by a path, and knows it by nothing else. So only what is a qcow2
//! itself is followed by itself; a raw backing file must be named by the user, as for a VHD.

use std::path::Path;
use std::sync::Arc;

use image_formats::qcow2::Image;
use image_formats::{Layer as _, RawLayer};

use super::super::detect::foreign_format;
use super::super::{Candidate, ChainError, ImageFormat, ParentOutcome};
use super::chain::Read;
use super::{ForeignFacts, ForeignLayer, ForeignParent, foreign_error, shared};
use crate::format::{DiskType, UniqueId};
use crate::image::{ParentPath, PathSource};
use crate::storage::{HostFile, StorageFile};

/// The image in a file.
pub(super) fn read(file: Arc<dyn StorageFile>, path: &Path) -> Result<Read, ChainError> {
    let image = Image::open(shared(&file)).map_err(|source| foreign_error(path, source))?;
    let header = image.header();
    let mut oddities = Vec::new();
    if header.snapshots > 0 {
        oddities.push(format!(
            "its {} internal snapshots are not read: this is its present state",
            header.snapshots
        ));
    }
    let facts = facts(&image);
    let layer = Arc::new(image);
    Ok((ForeignLayer { file, layer, facts }, oddities))
}

fn facts(image: &Image) -> ForeignFacts {
    let header = image.header();
    ForeignFacts {
        format: ImageFormat::Qcow2,
        disk_type: match header.backing_file {
            Some(_) => DiskType::Differencing,
            None => DiskType::Dynamic,
        },
        id: UniqueId::NIL,
        disk_id: None,
        creator: None,
        disk_size: header.disk_size,
        block_size: header.cluster_size,
        blocks: header.disk_size.div_ceil(header.cluster_size),
        allocated_blocks: None,
        logical_sector: 512,
        physical_sector: 512,
        replayed: 0,
        parent: header.backing_file.as_ref().map(|path| ForeignParent {
            format: ImageFormat::Qcow2,
            id: UniqueId::NIL,
            second_id: None,
            paths: vec![ParentPath {
                source: PathSource::Key("backing_file"),
                path: path.clone(),
            }],
        }),
    }
}

/// The format of an open file, if it can be the backing file: a qcow2 in a place that the image names, or what the user
/// named under the name of the backing file.
pub(super) fn identify(
    file: &HostFile,
    candidate: &Candidate,
    parent: &ForeignParent,
) -> Result<ImageFormat, ParentOutcome> {
    if candidate.named && !parent.paths.iter().any(|named| names(&named.path, &candidate.path)) {
        return Err(ParentOutcome::OtherName);
    }
    if candidate.named && candidate.as_raw {
        return Ok(ImageFormat::Raw);
    }
    let found = foreign_format(file).map_err(|error| ParentOutcome::Unreadable(error.to_string()))?;
    match found {
        Some(format) if format.readable() == Some(ImageFormat::Qcow2) => Ok(ImageFormat::Qcow2),
        Some(format) => Err(ParentOutcome::Foreign(format)),
        None if candidate.named => Ok(ImageFormat::Raw),
        None => Err(ParentOutcome::RawUnnamed),
    }
}

/// Whether a path ends with the name that another one ends with.
fn names(named: &str, path: &Path) -> bool {
    Path::new(named)
        .file_name()
        .is_some_and(|name| Some(name) == path.file_name())
}

/// A raw backing file.
pub(super) fn raw(file: Arc<dyn StorageFile>, path: &Path) -> Result<Read, ChainError> {
    let layer = RawLayer::new(shared(&file)).map_err(|source| foreign_error(path, source))?;
    let facts = ForeignFacts {
        format: ImageFormat::Raw,
        disk_type: DiskType::Fixed,
        id: UniqueId::NIL,
        disk_id: None,
        creator: None,
        disk_size: layer.disk_size(),
        block_size: 512,
        blocks: layer.disk_size() / 512,
        allocated_blocks: None,
        logical_sector: 512,
        physical_sector: 512,
        replayed: 0,
        parent: None,
    };
    let layer = Arc::new(layer);
    Ok((ForeignLayer { file, layer, facts }, Vec::new()))
}
