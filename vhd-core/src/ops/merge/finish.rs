//! The end of a merge: children are pointed to the target, then the layers go, then the record.

use std::path::Path;

use super::child_file::ChildFile;
use super::dependants;
use super::holder::{Holder, LiveLeaf};
use super::journal::Journal;
use super::known::Known;
use super::plan::{open_target, other_disk};
use super::{MergeError, MergePlan, MergeReport};
use crate::ErrorKind;
use crate::chain::{OpenedDisk, link_to_disk};
use crate::device::Layer;
use crate::format::UniqueId;
use crate::image::Footers;
use crate::ops::verify::record_path;
use crate::storage::{Access, HostFile, Sharing, remove_file};

/// What is left to be done once everything is in the target. Each step may have been done already.
pub(super) struct Finish<'a> {
    plan: &'a MergePlan,
    journal: Journal,
    /// The carried children that are open already.
    carried: Vec<ChildFile>,
    /// The layers that go, under their locks: nobody writes to one before it is gone.
    sources: Vec<Layer>,
    holder: &'a Holder<'a>,
}

impl<'a> Finish<'a> {
    pub(super) fn new(
        plan: &'a MergePlan,
        journal: Journal,
        carried: Vec<ChildFile>,
        sources: Vec<Layer>,
        holder: &'a Holder<'a>,
    ) -> Self {
        Self {
            plan,
            journal,
            carried,
            sources,
            holder,
        }
    }

    pub(super) fn run(mut self, report: &mut MergeReport) -> Result<(), MergeError> {
        match self.plan.complete {
            // All children were pointed before (INV-21), or there were none. INV-38: nothing proves the rest but their
            // markers.
            true => {
                let layers = self.journal.paths().skip(usize::from(self.plan.child_gone));
                let named = layers.chain(&self.journal.carried);
                self.journal.prove(named)?;
            }
            false => {
                self.find_new_children()?;
                // INV-21: children first. At every moment every image that is left has its parents.
                self.point_children(report)?;
            }
        }
        // INV-73: nobody here reads a layer any more when it goes.
        self.holder.join(&self.journal)?;
        self.remove_layers(report)?;
        // Digests of what is gone, of what the target held before, and of children that hold more than before.
        for path in self.journal.paths().chain(&self.journal.carried) {
            remove_file(&record_path(path))?;
        }
        // Now the space of the files is freed, which takes its time. The record goes after it: as long as the command
        // runs, it can be run again.
        drop(self.sources);
        self.journal.close()
    }

    /// The child before its parent: what is left of the range can be read while it is there.
    fn remove_layers(&self, report: &mut MergeReport) -> Result<(), MergeError> {
        let layers = self.journal.layers.iter().enumerate();
        // Another image may have the name of a child that is gone.
        for (_, layer) in layers.filter(|(depth, _)| *depth > 0 || !self.plan.child_gone) {
            if remove_layer(&layer.known)? {
                report.removed.push(layer.known.path.clone());
            }
        }
        Ok(())
    }

    /// Children that were made while the copying went on are pointed to the target too.
    fn find_new_children(&mut self) -> Result<(), MergeError> {
        let all = dependants::search(&self.plan.layers, &[]);
        let ignores = self.plan.request.open.ignores_children();
        if !ignores {
            all.refuse_damaged()?;
            all.refuse_unknown()?;
        }
        let mut found = dependants::find(&self.plan.layers, &all, &[], &self.journal.dependants())?;
        found.others.retain(|other| !self.journal.carried.contains(&other.path));
        if !found.others.is_empty() && !ignores {
            return Err(MergeError::HasChildren {
                dependants: found.others,
            });
        }
        if found.children != self.journal.children {
            self.journal.children = found.children;
            self.journal.announce()?;
        }
        Ok(())
    }

    fn point_children(&mut self, report: &mut MergeReport) -> Result<(), MergeError> {
        let Journal { layers, target, .. } = &self.journal;
        let child = [layers[0].known.id];
        let others: Vec<UniqueId> = layers[1..].iter().map(|layer| layer.known.id).collect();
        let all = [(&self.journal.children, &child[..]), (&self.journal.carried, &others)];
        if all.iter().all(|(paths, _)| paths.is_empty()) {
            return Ok(());
        }
        let opened = open_target(&self.plan.request.open, target)?;
        for (paths, parents) in all {
            for path in paths {
                if let Some(leaf) = self.holder.leaf_at(path) {
                    if point_leaf(path, &leaf, parents, target, &opened)? {
                        report.repointed.push(path.clone());
                    }
                    continue;
                }
                let file = self.carried.iter().position(|file| file.path() == path);
                let file = file.map_or_else(
                    || ChildFile::open(path, self.holder),
                    |at| Ok(self.carried.swap_remove(at)),
                );
                if point(path, file, parents, target, &opened)? {
                    report.repointed.push(path.clone());
                }
            }
        }
        Ok(())
    }
}

/// Points a child of one of `parents` to the target, in one step. One that is over the target gets the time stamp of
/// the target as it is now. `false` if it was there before, or is somebody else's child now.
fn point(
    path: &Path,
    file: Result<ChildFile, MergeError>,
    parents: &[UniqueId],
    target: &Known,
    opened: &OpenedDisk,
) -> Result<bool, MergeError> {
    if !path.exists() {
        return Ok(false);
    }
    let link = link_to_disk(path, &target.path, opened)?;
    let file = match file {
        // A machine may run on one that was pointed before the merge died.
        Err(error) if error.kind() == ErrorKind::Locked && dependants::parent_id(path)? == Some(target.id) => {
            return Ok(false);
        }
        file => file?,
    };
    let Some(parent) = file.parent_id() else {
        return Ok(false);
    };
    let moves = parents.contains(&parent);
    if moves || parent == target.id {
        file.point_to(link)?;
    }
    Ok(moves)
}

/// The same for the leaf of a disk in use, while requests are held.
fn point_leaf(
    path: &Path,
    leaf: &LiveLeaf<'_>,
    parents: &[UniqueId],
    target: &Known,
    opened: &OpenedDisk,
) -> Result<bool, MergeError> {
    let parent = leaf.parent_id();
    let moves = parent.is_some_and(|parent| parents.contains(&parent));
    if moves || parent == Some(target.id) {
        leaf.point_to(path, link_to_disk(path, &target.path, opened)?)?;
    }
    Ok(moves)
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
