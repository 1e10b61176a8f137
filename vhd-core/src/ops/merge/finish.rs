//! The end of a merge: children are pointed to the target, then the layers go, then the record.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use super::dependants;
use super::journal::{Journal, Known};
use super::plan::{open_target, other_disk};
use super::{MergeError, MergePlan, MergeReport};
use crate::chain::{OpenedDisk, parent_link};
use crate::image::{Amendment, Footers, Image, OpenMode};
use crate::ops::verify::record_path;
use crate::storage::{Access, HostFile, Sharing, StorageError, remove_file};

/// What is left to be done once everything is in the target. Each step may have been done already.
pub(super) struct Finish<'a> {
    plan: &'a MergePlan,
    journal: Journal,
}

impl<'a> Finish<'a> {
    pub(super) fn new(plan: &'a MergePlan, journal: Journal) -> Self {
        Self { plan, journal }
    }

    pub(super) fn run(mut self, report: &mut MergeReport) -> Result<(), MergeError> {
        if !self.plan.child_gone {
            self.find_new_children()?;
        }
        // INV-21: children first. At every moment every image that is left has its parents.
        if !self.journal.children.is_empty() {
            let opened = open_target(&self.plan.request.open, &self.journal.target, false)?;
            for child in &self.journal.children {
                if self.relink(child, &opened)? {
                    report.repointed.push(child.clone());
                }
            }
        }
        // The child before its parent: what is left of the range can be read while it is there.
        for layer in &self.journal.layers {
            if remove_layer(&layer.known)? {
                report.removed.push(layer.known.path.clone());
            }
        }
        // Digests of what is gone, and of what the target held before.
        let layers = self.journal.layers.iter().map(|layer| &layer.known.path);
        for path in layers.chain([&self.journal.target.path]) {
            remove_file(&record_path(path))?;
        }
        self.journal.remove()
    }

    /// Children that were made while the copying went on are pointed to the target too.
    fn find_new_children(&mut self) -> Result<(), MergeError> {
        let found = dependants::find(&self.plan.layers, &[], &self.journal.children, true)?;
        if !found.others.is_empty() {
            return Err(MergeError::HasChildren {
                dependants: found.others,
            });
        }
        if found.children != self.journal.children {
            self.journal.children = found.children;
            self.journal.write()?;
        }
        Ok(())
    }

    /// Points a child to the target, in one step. `false` if it is not a child of the merged image any more.
    fn relink(&self, path: &Path, target: &OpenedDisk) -> Result<bool, MergeError> {
        if !path.exists() {
            return Ok(false);
        }
        let link = parent_link(path, &self.journal.target.path, target)?;
        let file = match HostFile::open(path, Access::ReadWrite, Sharing::Exclusive) {
            Ok(file) => Arc::new(file),
            // A machine may run on one that was pointed before the merge died.
            Err(StorageError::Locked { .. }) if dependants::parent_id(path)? == Some(self.journal.target.id) => {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        };
        let modified = file.modified().ok();
        let image = Image::open(file, &OpenMode::read_write()).map_err(|source| MergeError::Child {
            path: path.to_owned(),
            source,
        })?;
        let parent = image.header().map(|header| header.parent_id);
        let known = [self.journal.layers[0].known.id, self.journal.target.id];
        if !parent.is_some_and(|parent| known.contains(&parent)) {
            return Ok(false);
        }
        let amendment = Amendment {
            parent: Some(link),
            ..image.amendment()
        };
        image.amend(&amendment).map_err(|source| MergeError::Relink {
            path: path.to_owned(),
            source,
        })?;
        if let Some(modified) = modified {
            keep_modified(path, modified);
        }
        Ok(true)
    }
}

/// Children of a child remember when its file was changed last, and its content was not.
fn keep_modified(path: &Path, modified: SystemTime) {
    let set = File::options()
        .write(true)
        .open(path)
        .and_then(|file| file.set_modified(modified));
    if let Err(error) = set {
        tracing::warn!(path = %path.display(), %error, "its children will find another modification time");
    }
}

/// Removes the file of a layer, if it is there.
fn remove_layer(layer: &Known) -> Result<bool, MergeError> {
    if !layer.path.exists() {
        return Ok(false);
    }
    let file = HostFile::open(&layer.path, Access::ReadOnly, Sharing::Exclusive)?;
    let footers = Footers::read(&file).map_err(|source| MergeError::Child {
        path: layer.path.clone(),
        source,
    })?;
    if footers.footer.unique_id != layer.id {
        return Err(other_disk(&layer.path, layer.id, footers.footer.unique_id));
    }
    Ok(remove_file(&layer.path)?)
}
