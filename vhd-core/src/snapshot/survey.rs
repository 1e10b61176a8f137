//! What each file of a tree holds, and what would be gained without it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::SnapshotError;
use super::manifest::{ImageFile, Manifest};
use super::place::Place;
use crate::chain::dependants::Child;
use crate::chain::image_error;
use crate::image::{Image, OpenMode, ReadSpan};
use crate::storage::{Access, HostFile, Sharing, StorageError};
use crate::units::VirtualOffset;

/// Bytes in a block as the system counts the space that a file takes.
const HOST_BLOCK: u64 = 512;

/// A disk's snapshots, as they are found.
#[derive(Debug)]
#[non_exhaustive]
pub struct Survey {
    /// The base.
    pub disk: PathBuf,
    /// The manifest; one without snapshots for a disk that has none.
    pub manifest: Manifest,
    /// What the file of each of the manifest's snapshots holds, in their order.
    pub snapshots: Vec<Layer>,
    /// What the active leaf holds.
    pub now: Layer,
}

/// The file of a snapshot, or of the present state.
#[derive(Debug)]
pub struct Layer {
    /// The file.
    pub path: PathBuf,
    /// Bytes of the disk that are stored in this file and not below it.
    pub stored_bytes: u64,
    /// Bytes that the file takes on its file system.
    pub host_bytes: u64,
}

/// Looks at the snapshots of the disk that `disk` is the base or another file of. Nothing is locked or changed.
///
/// # Errors
/// [`SnapshotError`].
pub fn survey(disk: &Path) -> Result<Survey, SnapshotError> {
    let (place, manifest) = Place::find(disk)?;
    let manifest = match manifest {
        Some(manifest) => manifest,
        None => plain(&place)?,
    };
    let snapshots = manifest.snapshots.iter();
    let snapshots: Result<_, SnapshotError> = snapshots.map(|one| layer(&place, &manifest, &one.file)).collect();
    Ok(Survey {
        disk: place.disk(),
        snapshots: snapshots?,
        now: layer(&place, &manifest, &manifest.active.file)?,
        manifest,
    })
}

fn layer(place: &Place, manifest: &Manifest, file: &ImageFile) -> Result<Layer, SnapshotError> {
    let path = place.current_path(manifest, file);
    let image = look_at(&path)?;
    let metadata = fs::metadata(&path).map_err(|source| StorageError::at(&path, "query", source))?;
    Ok(Layer {
        stored_bytes: stored_bytes(&image, &path)?,
        host_bytes: metadata.blocks() * HOST_BLOCK,
        path,
    })
}

/// The image in a file, for a look: nothing is locked.
pub(super) fn look_at(path: &Path) -> Result<Image, SnapshotError> {
    let file = Arc::new(HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?);
    let image = Image::open(Arc::clone(&file) as _, &OpenMode::ancestor());
    image.map_err(|source| image_error(&*file, path, source).into())
}

/// Bytes of the disk that are stored in an image itself: of a differencing image the sectors that its bitmaps
/// claim, of a dynamic one its blocks, of a fixed one all.
pub(super) fn stored_bytes(image: &Image, path: &Path) -> Result<u64, SnapshotError> {
    let (mut offset, mut stored) = (0, 0);
    while offset < image.disk_size() {
        let span = image.resolve_read(VirtualOffset(offset), image.disk_size() - offset);
        let span = span.map_err(|source| SnapshotError::Device {
            path: path.to_owned(),
            source,
        })?;
        if matches!(span, ReadSpan::Data { .. }) {
            stored += span.len();
        }
        offset += span.len();
    }
    Ok(stored)
}

/// A disk without a manifest has no snapshots, unless its files say otherwise.
pub(super) fn plain(place: &Place) -> Result<Manifest, SnapshotError> {
    let name = place.base().to_owned();
    let image = look_at(&place.disk())?;
    let file = ImageFile {
        name,
        id: image.unique_id(),
    };
    let stale = |reason: &str| SnapshotError::Stale {
        manifest: place.manifest(),
        reason: reason.to_owned(),
    };
    if place.base_is_leaf() && image.is_differencing() {
        return Err(stale("there is none, and the image is named like a leaf of a tree"));
    }
    let found = place.dependants(&file);
    // Another name of a file that belongs to other snapshots.
    found.refuse_listed()?;
    let own_dir = place.directory().canonicalize().ok();
    let beside = |child: &&Child| child.path.parent().map(Path::to_owned) == own_dir;
    if let Some(child) = found.children().iter().find(beside) {
        let child = child.path.display();
        return Err(stale(&format!("there is none, and {child} is based on the disk")));
    }
    found.refuse_children()?;
    Ok(Manifest::of_plain(file))
}
