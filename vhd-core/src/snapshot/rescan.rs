//! A manifest made from the images alone.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::SnapshotError;
use super::manifest::{ImageFile, Manifest, Snapshot, check_name};
use super::place::{Place, is_leaf_name};
use super::tree::{SnapshotTree, Work};
use crate::ErrorKind;
use crate::chain::forest::{Forest, Limits};
use crate::format::UniqueId;
use crate::ops::merge::is_unfinished;
use crate::storage::StorageError;

/// What a damaged manifest is called when a new one takes its place.
const ASIDE: &str = ".damaged";

/// What a rescan found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Rescanned {
    /// Snapshots whose names are those of their files, because no manifest knew them.
    pub named_by_file: Vec<String>,
    /// Names in the former manifest whose images are not there.
    pub lost: Vec<String>,
    /// Where the former manifest is now, which was damaged.
    pub damaged: Option<PathBuf>,
}

/// Makes the manifest of a disk anew from the images in its directory, and opens the tree. Names, times and
/// deletions are kept for images that the former manifest knows. `active` is the leaf that is written to; without it,
/// it is that of the former manifest, or the only leaf.
///
/// # Errors
/// `ActiveUnknown` when there are several leaves and none is known to be the one; `Stale` when `active` is no leaf of
/// the tree; those of opening the tree.
pub fn rescan<'w>(
    disk: &Path,
    active: Option<&Path>,
    work: Work<'w>,
) -> Result<(SnapshotTree<'w>, Rescanned), SnapshotError> {
    let mut found = Rescanned::default();
    let place = base_of(disk)?;
    finish_pending(&place, work)?;
    let lock = place.lock()?;
    let former = match place.read() {
        Ok(former) => former,
        Err(error) if error.kind() == ErrorKind::RecordDamaged => {
            found.damaged = Some(set_aside(&place)?);
            None
        }
        Err(error) => return Err(error),
    };
    let images = images(&place)?;
    let scan = Scan {
        place: &place,
        former: former.as_ref(),
        images: &images,
    };
    let manifest = scan.manifest(active, &mut found)?;
    let tree = SnapshotTree::replace(place, lock, manifest, work)?;
    Ok((tree, found))
}

/// An interrupted operation may have left the images of a tree that is no tree. What can be finished is.
fn finish_pending(place: &Place, work: Work<'_>) -> Result<(), SnapshotError> {
    if !matches!(place.read(), Ok(Some(Manifest { pending: Some(_), .. }))) {
        return Ok(());
    }
    match SnapshotTree::open(&place.disk(), work) {
        Ok(_) => Ok(()),
        Err(error @ SnapshotError::Stale { .. }) => {
            tracing::warn!(%error, "rescanning nevertheless");
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// The base of a disk whose manifest may be lost: that of the manifest which mentions it, else the first of its
/// ancestors in the directory that is not named like a leaf.
fn base_of(disk: &Path) -> Result<Place, SnapshotError> {
    let own = match Place::find(disk) {
        Ok((place, Some(_))) => return Ok(place),
        Ok((place, None)) => place,
        // Damaged: it is found again below.
        Err(_) => Place::with_base(disk)?,
    };
    let images = images(&own)?;
    let mut at = images.iter().find(|image| image.file.name == own.base());
    let mut seen = HashSet::new();
    while let Some(image) = at {
        let parent = images
            .iter()
            .find(|other| image.parent.as_ref() == Some(&other.file.name));
        match parent {
            Some(parent) if is_leaf_name(&image.file.name) && seen.insert(&image.file.name) => at = Some(parent),
            _ => return Place::with_base(&own.path(&image.file.name)),
        }
    }
    Ok(own)
}

fn set_aside(place: &Place) -> Result<PathBuf, SnapshotError> {
    let path = place.manifest();
    let mut aside = path.clone().into_os_string();
    aside.push(ASIDE);
    let aside = PathBuf::from(aside);
    fs::copy(&path, &aside).map_err(|source| StorageError::at(&aside, "write", source))?;
    Ok(aside)
}

/// An image in the directory.
struct Found {
    file: ImageFile,
    /// The file that its chain goes on with, if that is in the directory.
    parent: Option<String>,
    created: i64,
}

/// The images of the directory that can be read.
fn images(place: &Place) -> Result<Vec<Found>, SnapshotError> {
    let limits = Limits {
        depth: 0,
        ..Limits::default()
    };
    let forest = Forest::scan(place.directory(), limits)?;
    let name_of = |path: &Path| path.file_name().and_then(OsStr::to_str).map(str::to_owned);
    let mut images = Vec::new();
    for (index, member) in forest.members().iter().enumerate() {
        let (Ok(facts), Some(name), false) = (&member.state, name_of(&member.path), member.outside) else {
            continue;
        };
        let parent = forest.link(index).parent().map(|parent| &forest.members()[parent]);
        let parent = parent.filter(|parent| !parent.outside);
        images.push(Found {
            file: ImageFile { name, id: facts.id },
            parent: parent.and_then(|parent| name_of(&parent.path)),
            created: facts.created.to_unix_seconds(),
        });
    }
    Ok(images)
}

struct Scan<'a> {
    place: &'a Place,
    former: Option<&'a Manifest>,
    images: &'a [Found],
}

impl Scan<'_> {
    fn manifest(&self, active: Option<&Path>, found: &mut Rescanned) -> Result<Manifest, SnapshotError> {
        let tree = self.tree()?;
        self.refuse_unfinished(&tree)?;
        let leaf = self.active(&tree, active)?;
        let mut manifest = Manifest::of_plain(leaf.file.clone());
        let frozen: Vec<&Found> = tree.into_iter().filter(|image| image.file != leaf.file).collect();
        for image in &frozen {
            let snapshot = self.snapshot(image, &manifest, found);
            manifest.snapshots.push(snapshot);
        }
        let by_file = |image: &Found| {
            let parent = image.parent.as_ref().filter(|_| image.file.name != self.place.base());
            let mut snapshots = manifest.snapshots.iter();
            snapshots
                .find(|snapshot| Some(&snapshot.file.name) == parent)
                .map(|snapshot| snapshot.id)
        };
        let parents: Vec<Option<UniqueId>> = frozen.into_iter().map(by_file).collect();
        manifest.active.parent = by_file(leaf);
        for (snapshot, parent) in manifest.snapshots.iter_mut().zip(parents) {
            snapshot.parent = parent;
        }
        let kept = |lost: &&Snapshot| manifest.snapshots.iter().all(|kept| kept.id != lost.id);
        let former = self.former.into_iter().flat_map(Manifest::listed);
        found.lost = former.filter(kept).map(|snapshot| snapshot.name.clone()).collect();
        Ok(manifest)
    }

    /// The base and what descends from it, parents before children.
    fn tree(&self) -> Result<Vec<&Found>, SnapshotError> {
        let base = self.images.iter().find(|image| image.file.name == self.place.base());
        let base = base.ok_or_else(|| self.stale(format!("{} can't be read", self.place.base())))?;
        let belongs = |image: &&Found| {
            is_leaf_name(&image.file.name) || self.former.is_some_and(|former| former.mentions(&image.file.name))
        };
        let mut tree = vec![base];
        let mut at = 0;
        while let Some(parent) = tree.get(at).map(|image| &image.file.name) {
            let children = self.images.iter().filter(|image| image.parent.as_ref() == Some(parent));
            tree.extend(
                children
                    .filter(belongs)
                    .filter(|image| image.file.name != base.file.name),
            );
            at += 1;
        }
        Ok(tree)
    }

    /// The target of an unfinished merge is no state that anybody kept.
    fn refuse_unfinished(&self, tree: &[&Found]) -> Result<(), SnapshotError> {
        for image in tree {
            let path = self.place.path(&image.file.name);
            if is_unfinished(&path)? {
                return Err(self.stale(format!("a merge of {} is unfinished: finish it first", path.display())));
            }
        }
        Ok(())
    }

    fn active<'b>(&self, tree: &[&'b Found], active: Option<&Path>) -> Result<&'b Found, SnapshotError> {
        let is_leaf = |image: &&&Found| tree.iter().all(|other| other.parent.as_ref() != Some(&image.file.name));
        let leaves: Vec<&Found> = tree.iter().filter(is_leaf).copied().collect();
        if let Some(path) = active {
            let named = leaves
                .iter()
                .find(|leaf| path.file_name() == Some(leaf.file.name.as_ref()));
            return named
                .copied()
                .ok_or_else(|| self.stale(format!("{} is no leaf of the tree", path.display())));
        }
        let former = self.former.map(|former| &former.active.file);
        if let Some(leaf) = leaves.iter().find(|leaf| Some(&leaf.file) == former) {
            return Ok(leaf);
        }
        match leaves.as_slice() {
            [only] => Ok(only),
            _ => Err(SnapshotError::ActiveUnknown {
                leaves: leaves.iter().map(|leaf| self.place.path(&leaf.file.name)).collect(),
            }),
        }
    }

    /// A frozen image as a snapshot, whose parent is not set.
    fn snapshot(&self, image: &Found, manifest: &Manifest, found: &mut Rescanned) -> Snapshot {
        let former = self.former.into_iter().flat_map(|former| &former.snapshots);
        let known = former.clone().find(|snapshot| snapshot.file.id == image.file.id);
        if let Some(known) = known {
            return Snapshot {
                file: image.file.clone(),
                parent: None,
                ..known.clone()
            };
        }
        let taken = |name: &str| {
            let all = manifest.snapshots.iter().chain(former.clone());
            all.into_iter().any(|other| other.name == name)
        };
        let name = name_from(&image.file.name, taken);
        found.named_by_file.push(name.clone());
        Snapshot {
            id: UniqueId::random(),
            name,
            created: image.created,
            file: image.file.clone(),
            parent: None,
            deleted: false,
        }
    }

    fn stale(&self, reason: String) -> SnapshotError {
        SnapshotError::Stale {
            manifest: self.place.manifest(),
            reason,
        }
    }
}

/// A name for a snapshot that no manifest knows.
fn name_from(file: &str, taken: impl Fn(&str) -> bool) -> String {
    let stem = Path::new(file)
        .file_stem()
        .and_then(OsStr::to_str)
        .unwrap_or("snapshot");
    let usable: String = stem
        .replace('@', "_")
        .chars()
        .filter(|c| !c.is_control())
        .take(90)
        .collect();
    let first = if check_name(&usable).is_ok() {
        usable
    } else {
        "snapshot".to_owned()
    };
    let numbered = (2..).map(|number: u32| format!("{first}-{number}"));
    let mut names = std::iter::once(first.clone()).chain(numbered);
    names.find(|name| !taken(name)).unwrap_or(first)
}
