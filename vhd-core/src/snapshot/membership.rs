//! What a manifest says of a file, for those who are about to change that file without the manifest's knowledge.

use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::manifest::Pending;
use super::place::{Place, SUFFIX, is_leaf_name};
use crate::format::UniqueId;
use crate::storage::beside;

/// An image that a manifest lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Member {
    /// The snapshot that it is; `None` for the active leaf, and for a deleted snapshot.
    pub(crate) snapshot: Option<String>,
    /// It is what is written to.
    pub(crate) is_active: bool,
    /// The file that is written to.
    pub(crate) active: PathBuf,
}

/// What a manifest says of the files that were asked about.
#[derive(Debug, Default)]
pub(crate) struct Members {
    /// Each with the number by which it was recognised.
    pub(crate) members: Vec<(usize, Member)>,
    /// A leaf that a command was making when it was killed, and that nothing uses.
    pub(crate) unused: Option<PathBuf>,
    /// A file that the manifest does not refer to any more, and that the next command removes.
    pub(crate) going: Option<PathBuf>,
}

/// Whether a file has the name of a manifest.
pub(crate) fn is_manifest(path: &Path) -> bool {
    base_of(path).is_some()
}

/// The manifest of the disk with this base.
pub(crate) fn manifest_of(base: &Path) -> PathBuf {
    beside(base, SUFFIX)
}

/// Whether a file has the name of a leaf that a snapshot made.
pub(crate) fn is_leaf(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(is_leaf_name)
}

fn base_of(manifest: &Path) -> Option<&str> {
    let name = manifest.file_name()?.to_str()?;
    name.strip_suffix(SUFFIX).filter(|base| !base.is_empty())
}

/// What the manifest at `path` says of the files that `recognise` knows by path and identity.
///
/// # Errors
/// The manifest can't be read, or can't be true.
pub(crate) fn of(
    path: &Path,
    recognise: &mut dyn FnMut(&Path, UniqueId) -> Option<usize>,
) -> Result<Members, SnapshotError> {
    let (Some(dir), Some(base)) = (path.parent(), base_of(path)) else {
        return Ok(Members::default());
    };
    let place = Place::in_directory(dir, base);
    let Some(manifest) = place.read()? else {
        return Ok(Members::default());
    };
    let active = place.current_path(&manifest, &manifest.active.file);
    let mut found = Members::default();
    for file in manifest.files() {
        let at = place.path(&file.name);
        let Some(number) = recognise(&at, file.id) else {
            continue;
        };
        // A merge that was complete but for the manifest: the surviving file is the active leaf.
        let is_active = *file == manifest.active.file || at == active;
        let mut listed = manifest.listed();
        let snapshot = listed.find(|snapshot| snapshot.file == *file && !is_active);
        found.members.push((
            number,
            Member {
                snapshot: snapshot.map(|snapshot| snapshot.name.clone()),
                is_active,
                active: active.clone(),
            },
        ));
    }
    match &manifest.pending {
        Some(Pending::Leaf { file, .. }) => found.unused = Some(place.path(file)),
        Some(Pending::Remove { file }) => found.going = Some(place.path(&file.name)),
        _ => {}
    }
    Ok(found)
}
