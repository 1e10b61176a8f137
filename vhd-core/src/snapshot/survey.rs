//! What each file of a tree holds, and what would be gained without it.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::manifest::{ImageFile, Manifest, Node};
use super::place::Place;
use super::tree::plain;
use crate::format::UniqueId;
use crate::image::{Image, ReadSpan};
use crate::storage::StorageError;
use crate::units::{VirtualOffset, u64_from};

/// Bytes in a block as the system counts the space that a file takes.
const HOST_BLOCK: u64 = 512;

/// A disk's snapshots, as they are found.
#[derive(Debug)]
pub struct Survey {
    /// The base.
    pub disk: PathBuf,
    /// The manifest; one without snapshots for a disk that has none.
    pub manifest: Manifest,
    /// What each node's file holds, Now last.
    pub layers: Vec<Layer>,
}

/// A snapshot, or the present state.
#[derive(Debug)]
pub struct Layer {
    /// Which.
    pub node: Node,
    /// Its file.
    pub path: PathBuf,
    /// Bytes of the disk that are stored in this file and not below it.
    pub stored_bytes: u64,
    /// Bytes that the file takes on its file system.
    pub host_bytes: u64,
    /// How many depend on it directly.
    pub dependants: u64,
    /// Bytes on the file system that deleting it gives back at once. 0 where its content must stay or move.
    pub freed_by_delete: u64,
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
    let snapshots = manifest.snapshots.iter().map(|snapshot| Node::Snapshot(snapshot.id));
    let layers: Result<Vec<Layer>, SnapshotError> = snapshots
        .chain([Node::Now])
        .filter_map(|node| Some((node, manifest.file_of(node)?)))
        .map(|(node, file)| layer(&place, &manifest, node, file))
        .collect();
    Ok(Survey {
        disk: place.disk(),
        layers: layers?,
        manifest,
    })
}

fn layer(place: &Place, manifest: &Manifest, node: Node, file: &ImageFile) -> Result<Layer, SnapshotError> {
    let path = place.current_path(manifest, file);
    let image = place.look_at(path.file_name().and_then(|name| name.to_str()).unwrap_or(&file.name))?;
    let metadata = fs::metadata(&path).map_err(|source| StorageError::at(&path, "query", source))?;
    let host_bytes = metadata.blocks() * HOST_BLOCK;
    let dependants = match node {
        Node::Snapshot(id) => u64_from(manifest.dependants(id).len()),
        Node::Now => 0,
    };
    let goes = matches!(node, Node::Snapshot(_)) && dependants == 0;
    Ok(Layer {
        node,
        stored_bytes: stored_bytes(&image, &path)?,
        path,
        host_bytes,
        dependants,
        freed_by_delete: if goes { host_bytes } else { 0 },
    })
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

impl Survey {
    /// What is known of a snapshot's file.
    #[must_use]
    pub fn layer_of(&self, id: UniqueId) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.node == Node::Snapshot(id))
    }

    /// What is known of the active leaf.
    #[must_use]
    pub fn now(&self) -> Option<&Layer> {
        self.layers.iter().find(|layer| layer.node == Node::Now)
    }
}
