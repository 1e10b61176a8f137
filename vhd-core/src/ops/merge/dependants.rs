//! Which images depend on a layer: those that a search finds, those that are named, and those that a record knows.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::Dependant;
use super::known::Known;
use super::{MergeError, MergePlan};
use crate::chain::ChainError;
use crate::chain::dependants::{Dependants as Found, Search};
use crate::format::UniqueId;
use crate::image::{Image, OpenMode};
use crate::storage::{Access, FileIdentity, HostFile, Sharing};

/// Who depends on the layers of a merge.
pub(super) struct Dependants {
    /// The children of the image that goes: they are pointed to the target.
    pub(super) children: Vec<PathBuf>,
    /// The children of the other layers.
    pub(super) others: Vec<Dependant>,
}

impl Dependants {
    pub(super) fn paths(&self) -> impl Iterator<Item = &Path> {
        let others = self.others.iter().map(|other| &*other.path);
        self.children.iter().map(|child| &**child).chain(others)
    }
}

/// Whom an unfinished merge knows of.
#[derive(Clone, Copy, Default)]
pub(super) struct Recorded<'a> {
    pub(super) children: &'a [PathBuf],
    /// Children of other layers, which are carried along.
    pub(super) carried: &'a [PathBuf],
    /// Children may have been pointed to the target already. Those over it that are not carried are such.
    pub(super) finishing: bool,
}

/// Looks for all who rely on `layers`; `chain` are all files of the chain.
pub(super) fn search(layers: &[Known], chain: &[PathBuf]) -> Found {
    let search = layers
        .iter()
        .fold(Search::new(), |search, layer| search.image(&layer.path, layer.id));
    search.beside(chain.iter().cloned()).run()
}

/// Sorts the children of `layers`, the child first and the target last: those that were `found`, and those `named` that
/// the caller knows of.
pub(super) fn find(
    layers: &[Known],
    found: &Found,
    named: &[PathBuf],
    recorded: &Recorded<'_>,
) -> Result<Dependants, MergeError> {
    let (child, target) = (&layers[0], &layers[layers.len() - 1]);
    let follows = |parent: UniqueId| parent == child.id || recorded.finishing && parent == target.id;
    let other = |id: UniqueId| layers[1..].iter().find(|layer| layer.id == id && !id.is_nil());
    let mut known = Files::new(layers);
    let (mut children, mut others) = (Vec::new(), Vec::new());
    for path in recorded.carried {
        if let Some(layer) = recorded_parent(path)?.and_then(other) {
            known.take_other(path, layer, &mut others);
        }
    }
    for path in recorded.children {
        if recorded_parent(path)?.is_some_and(follows) {
            known.take(path, &mut children);
        }
    }
    for path in named {
        if known.knows(path) {
            continue;
        }
        let parent = parent_id(path)?;
        if parent == Some(child.id) {
            known.take(path, &mut children);
        } else if let Some(layer) = parent.and_then(other) {
            known.take_other(path, layer, &mut others);
        } else {
            return Err(MergeError::NotChild {
                path: path.clone(),
                parent: child.path.clone(),
                id: child.id,
            });
        }
    }
    for child in found.children() {
        let layer = &layers[child.image];
        if child.image == 0 || recorded.finishing && child.image + 1 == layers.len() {
            known.take(&child.path, &mut children);
        } else {
            known.take_other(&child.path, layer, &mut others);
        }
    }
    children.sort();
    others.sort();
    Ok(Dependants { children, others })
}

/// INV-46: nobody has come to rely on a layer since the merge was planned. Asked when the target is held, which keeps
/// newcomers away: whoever makes a child has its parent locked meanwhile.
pub(super) fn refuse_newcomers(plan: &MergePlan) -> Result<(), MergeError> {
    if plan.request.open.ignores_children() {
        return Ok(());
    }
    let found = search(&plan.layers, &[]);
    let mut dependants = find(&plan.layers, &found, &[], &Recorded::default())?.others;
    dependants.retain(|other| plan.carried.iter().all(|carried| carried.path != other.path));
    match dependants.is_empty() {
        true => Ok(()),
        false => Err(MergeError::HasChildren { dependants }),
    }
}

/// The identity of the parent of one that is recorded. One that is gone is no business of the merge any more.
fn recorded_parent(path: &Path) -> Result<Option<UniqueId>, MergeError> {
    match path.exists() {
        true => parent_id(path),
        false => Ok(None),
    }
}

/// The files that are known, under whatever name.
struct Files {
    seen: HashSet<FileIdentity>,
}

impl Files {
    fn new(layers: &[Known]) -> Self {
        let identities = layers
            .iter()
            .filter_map(|layer| FileIdentity::of_path(&layer.path).ok());
        Self {
            seen: identities.collect(),
        }
    }

    fn knows(&self, path: &Path) -> bool {
        FileIdentity::of_path(path).is_ok_and(|identity| self.seen.contains(&identity))
    }

    fn is_new(&mut self, path: &Path) -> bool {
        FileIdentity::of_path(path).is_ok_and(|identity| self.seen.insert(identity))
    }

    fn take(&mut self, path: &Path, children: &mut Vec<PathBuf>) {
        if self.is_new(path) {
            children.push(full(path));
        }
    }

    fn take_other(&mut self, path: &Path, parent: &Known, others: &mut Vec<Dependant>) {
        if self.is_new(path) {
            let (path, parent) = (full(path), parent.path.clone());
            others.push(Dependant { path, parent });
        }
    }
}

fn full(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The identity of the parent that the image at `path` names; `None` for an image without one.
pub(super) fn parent_id(path: &Path) -> Result<Option<UniqueId>, MergeError> {
    let file = Arc::new(HostFile::open(path, Access::ReadOnly, Sharing::Unlocked)?);
    let image = Image::open(file, &OpenMode::ancestor()).map_err(|source| ChainError::Image {
        path: path.to_owned(),
        source,
    })?;
    let header = image.header().filter(|_| image.is_differencing());
    Ok(header.map(|header| header.parent_id))
}
