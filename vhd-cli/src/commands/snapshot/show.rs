//! What snapshots there are.

use std::fmt;

use serde::Serialize;
use vhd_core::snapshot::{Layer, Manifest, Pending, Snapshot, Survey, survey};
use vhd_core::units::u64_from;

use super::ShowArgs;
use super::draw::Drawing;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::human;
use crate::output::{self, path_text};

pub(super) const LIST: &str = "snapshot list";
pub(super) const TREE: &str = "snapshot tree";

/// The snapshots of a disk.
#[derive(Serialize)]
pub(super) struct ShownTree {
    pub(super) disk: String,
    /// The oldest first, those that are deleted and still needed too.
    pub(super) snapshots: Vec<ShownSnapshot>,
    pub(super) now: ShownNow,
    /// An interrupted command, which the next one that changes the tree brings to its end.
    pub(super) pending: Option<&'static str>,
}

/// A snapshot.
#[derive(Serialize)]
pub(super) struct ShownSnapshot {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) created: Option<String>,
    /// The id of the snapshot that it was made from.
    pub(super) parent: Option<String>,
    pub(super) deleted: bool,
    pub(super) dependants: u64,
    #[serde(flatten)]
    pub(super) file: ShownFile,
    /// Bytes on the file system that deleting it gives back at once; 0 where its content must stay or move.
    pub(super) freed_by_delete: u64,
}

/// The present state.
#[derive(Serialize)]
pub(super) struct ShownNow {
    pub(super) parent: Option<String>,
    #[serde(flatten)]
    pub(super) file: ShownFile,
}

/// A file, and what it holds.
#[derive(Serialize)]
pub(super) struct ShownFile {
    pub(super) file: String,
    /// Bytes of the disk that are stored in this file and not below it.
    pub(super) stored_bytes: u64,
    /// Bytes that the file takes on its file system.
    pub(super) host_bytes: u64,
}

/// The same as a list.
#[derive(Serialize)]
#[serde(transparent)]
struct List(ShownTree);

/// The same as a drawing.
#[derive(Serialize)]
#[serde(transparent)]
struct Tree(ShownTree);

pub(super) fn list(args: &ShowArgs) -> Result<Exit, Failure> {
    output::report(args.report, LIST, &List(ShownTree::of(&survey(&args.disk)?)))?;
    Ok(Exit::Ok)
}

pub(super) fn tree(args: &ShowArgs) -> Result<Exit, Failure> {
    output::report(args.report, TREE, &Tree(ShownTree::of(&survey(&args.disk)?)))?;
    Ok(Exit::Ok)
}

impl ShownTree {
    fn of(survey: &Survey) -> Self {
        let manifest = &survey.manifest;
        let mut snapshots: Vec<(&Snapshot, &Layer)> = manifest.snapshots.iter().zip(&survey.snapshots).collect();
        snapshots.sort_by_key(|(snapshot, _)| snapshot.created);
        let shown = snapshots
            .into_iter()
            .map(|(snapshot, layer)| ShownSnapshot::of(manifest, snapshot, layer));
        Self {
            disk: path_text(&survey.disk),
            snapshots: shown.collect(),
            now: ShownNow {
                parent: manifest.active.parent.map(|id| id.to_string()),
                file: ShownFile::of(&survey.now),
            },
            pending: manifest.pending.as_ref().map(pending_name),
        }
    }
}

fn pending_name(pending: &Pending) -> &'static str {
    match pending {
        Pending::Leaf { .. } => "a new file is being made",
        Pending::Remove { .. } => "a file is being removed",
        Pending::Switch { .. } => "the disk in use goes on in a new file",
        Pending::Merge { .. } => "a deleted snapshot is being merged",
    }
}

impl ShownSnapshot {
    fn of(manifest: &Manifest, snapshot: &Snapshot, layer: &Layer) -> Self {
        let dependants = u64_from(manifest.dependants(snapshot.id).len());
        Self {
            name: snapshot.name.clone(),
            id: snapshot.id.to_string(),
            created: human::unix_utc(snapshot.created),
            parent: snapshot.parent.map(|id| id.to_string()),
            deleted: snapshot.deleted,
            dependants,
            file: ShownFile::of(layer),
            freed_by_delete: if dependants == 0 { layer.host_bytes } else { 0 },
        }
    }
}

impl ShownFile {
    fn of(layer: &Layer) -> Self {
        Self {
            file: path_text(&layer.path),
            stored_bytes: layer.stored_bytes,
            host_bytes: layer.host_bytes,
        }
    }
}

impl fmt::Display for List {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tree = &self.0;
        let listed = tree.snapshots.iter().filter(|snapshot| !snapshot.deleted);
        let width = listed
            .clone()
            .map(|one| one.name.chars().count())
            .max()
            .unwrap_or(0)
            .max(3);
        for one in listed {
            let (name, created) = (&one.name, one.created.as_deref().unwrap_or("-"));
            let (holds, file) = (human::binary(one.file.stored_bytes), &one.file.file);
            writeln!(f, "{name:width$}  {created:20}  {holds:>12}  {file}")?;
        }
        let (holds, file) = (human::binary(tree.now.file.stored_bytes), &tree.now.file.file);
        writeln!(f, "{:width$}  {:20}  {holds:>12}  {file}", "Now", "-")?;
        tree.write_pending(f)
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.0.disk)?;
        Drawing::of(&self.0).fmt(f)?;
        self.0.write_pending(f)
    }
}

impl ShownTree {
    fn write_pending(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pending {
            None => Ok(()),
            Some(pending) => writeln!(f, "! interrupted or in progress: {pending}"),
        }
    }
}
