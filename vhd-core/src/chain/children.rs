//! Images that are based on another one, as far as its directory shows.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::format::UniqueId;
use crate::image::{Image, OpenMode};
use crate::storage::{Access, FileIdentity, HostFile, Sharing};

/// Files that are looked at: a directory of more is not one of images.
const MAX_FILES: usize = 4096;

/// The images beside `path` whose parent has the identity `id`. Files that can't be read are no known children.
#[must_use]
pub fn children_beside(path: &Path, id: UniqueId) -> Vec<PathBuf> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let own = fs::metadata(path).map(|metadata| FileIdentity::of(&metadata)).ok();
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let named = entries.map(|entry| entry.path()).filter(|path| has_image_name(path));
    let mut children: Vec<PathBuf> = named
        .take(MAX_FILES)
        .filter(|other| {
            let identity = fs::metadata(other).map(|metadata| FileIdentity::of(&metadata)).ok();
            identity != own && is_child(other, id)
        })
        .collect();
    children.sort();
    children
}

fn has_image_name(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|name| ["vhd", "avhd"].iter().any(|known| name.eq_ignore_ascii_case(known)))
}

fn is_child(path: &Path, id: UniqueId) -> bool {
    let file = HostFile::open(path, Access::ReadOnly, Sharing::Unlocked).ok();
    let image = file.and_then(|file| Image::open(Arc::new(file), &OpenMode::ancestor()).ok());
    image.is_some_and(|image| image.is_differencing() && image.header().is_some_and(|header| header.parent_id == id))
}
