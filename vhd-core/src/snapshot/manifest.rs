//! What the snapshots of a disk are called, which file holds which, and which one is written to.
//!
//! The manifest is also the journal: an operation that changes files says in `pending` what it is about to do.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::error::SnapshotError;
use crate::format::UniqueId;
use crate::record::{Checked, RecordKind, check_path};
use crate::units::UnixSeconds;

/// The record that the manifest is.
pub(super) const KIND: RecordKind = RecordKind {
    name: "snapshots",
    version: 1,
};

/// Characters in the longest name.
pub const MAX_NAME: usize = 100;

/// What stands for the present state where a snapshot's name is expected, in any case of its letters.
pub const NOW: &str = "now";

/// The snapshots of one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// In no particular order.
    pub snapshots: Vec<Snapshot>,
    /// What is written to.
    pub active: Active,
    /// The operation in progress, or interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
}

/// An image in the directory of the disk's base.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageFile {
    /// The file's name in the directory.
    pub name: String,
    /// The identity in the image's footer.
    pub id: UniqueId,
}

/// A state that was kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// Tells it from all others, for as long as it is there. Its file may become another one.
    pub id: UniqueId,
    /// Unique among those that are not deleted.
    pub name: String,
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub created: i64,
    /// The image: what it reads is what was kept.
    pub file: ImageFile,
    /// The snapshot that its file is a child of.
    pub parent: Option<UniqueId>,
    /// It was deleted, and its file is still needed by those that depend on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub deleted: bool,
}

/// The leaf that is written to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Active {
    /// The image.
    pub file: ImageFile,
    /// The snapshot that it is a child of; `None` for a disk without snapshots.
    pub parent: Option<UniqueId>,
}

/// An operation that has begun.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Pending {
    /// A new leaf is being made; nothing uses it yet.
    Leaf {
        /// The name that its file gets.
        file: String,
        /// The image that it becomes a child of.
        over: ImageFile,
    },
    /// A file that nothing refers to any more goes.
    Remove {
        /// The file.
        file: ImageFile,
    },
    /// A disk in use goes on in a new leaf. Whether that has begun, only the leaf tells: if it holds data it is in use, else
    /// the snapshot was never taken.
    Switch {
        /// The leaf that is frozen, which is the snapshot's.
        from: ImageFile,
        /// The new leaf, which is the active one in this manifest.
        to: ImageFile,
        /// The snapshot.
        snapshot: UniqueId,
    },
    /// The sectors of a child go into the file of the deleted snapshot below it, and the child's file goes.
    Merge {
        /// What is merged.
        child: ImageFile,
        /// The file that survives.
        into: ImageFile,
    },
}

/// What depends on a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Node {
    /// Another snapshot.
    Snapshot(UniqueId),
    /// The leaf that is written to.
    Now,
}

impl Manifest {
    /// A disk without snapshots.
    #[must_use]
    pub fn of_plain(file: ImageFile) -> Self {
        Self {
            snapshots: Vec::new(),
            active: Active { file, parent: None },
            pending: None,
        }
    }

    /// The snapshot with this id.
    #[must_use]
    pub fn snapshot(&self, id: UniqueId) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.id == id)
    }

    /// The snapshot of this name; a deleted one has none.
    #[must_use]
    pub fn named(&self, name: &str) -> Option<&Snapshot> {
        self.listed().find(|snapshot| snapshot.name == name)
    }

    /// The snapshots that are not deleted.
    pub fn listed(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.iter().filter(|snapshot| !snapshot.deleted)
    }

    /// What is directly based on a snapshot's file, snapshots that are deleted included.
    #[must_use]
    pub fn dependants(&self, id: UniqueId) -> Vec<Node> {
        let snapshots = self.snapshots.iter().filter(|other| other.parent == Some(id));
        let now = (self.active.parent == Some(id)).then_some(Node::Now);
        snapshots.map(|other| Node::Snapshot(other.id)).chain(now).collect()
    }

    /// The image of a node.
    #[must_use]
    pub fn file_of(&self, node: Node) -> Option<&ImageFile> {
        match node {
            Node::Snapshot(id) => self.snapshot(id).map(|snapshot| &snapshot.file),
            Node::Now => Some(&self.active.file),
        }
    }

    /// The nearest snapshot from `id` down that is not deleted.
    #[must_use]
    pub fn nearest_listed(&self, id: Option<UniqueId>) -> Option<&Snapshot> {
        self.line(id).find(|snapshot| !snapshot.deleted)
    }

    /// A snapshot and those below it in the chain of images.
    pub fn line(&self, id: Option<UniqueId>) -> impl Iterator<Item = &Snapshot> {
        std::iter::successors(id.and_then(|id| self.snapshot(id)), |snapshot| {
            self.snapshot(snapshot.parent?)
        })
        // A manifest from a file may have a circle, which `check` finds with this.
        .take(self.snapshots.len() + 1)
    }

    /// A snapshot and all that descend from it.
    #[must_use]
    pub fn descendants(&self, id: UniqueId) -> Vec<UniqueId> {
        let mut children: HashMap<UniqueId, Vec<UniqueId>> = HashMap::new();
        for snapshot in &self.snapshots {
            if let Some(parent) = snapshot.parent {
                children.entry(parent).or_default().push(snapshot.id);
            }
        }
        let (mut found, mut next) = (HashSet::new(), vec![id]);
        while let Some(id) = next.pop() {
            if found.insert(id) {
                next.extend(children.get(&id).into_iter().flatten());
            }
        }
        let ids = self.snapshots.iter().map(|snapshot| snapshot.id);
        ids.filter(|id| found.contains(id)).collect()
    }

    /// How many snapshots the line of each consists of, itself included. Those whose line has no end (a parent is missing,
    /// or its own ancestor) are not in it.
    #[must_use]
    pub fn depths(&self) -> HashMap<UniqueId, usize> {
        let parents: HashMap<UniqueId, Option<UniqueId>> = self
            .snapshots
            .iter()
            .map(|snapshot| (snapshot.id, snapshot.parent))
            .collect();
        let mut depths = HashMap::with_capacity(parents.len());
        // Each snapshot is walked over once: those above a place that is known, or that can't be, are not walked again.
        let mut walked = HashSet::with_capacity(parents.len());
        for start in parents.keys() {
            let (mut line, mut next) = (Vec::new(), Some(*start));
            let below = loop {
                match next {
                    None => break Some(0),
                    Some(id) if depths.contains_key(&id) => break depths.get(&id).copied(),
                    Some(id) if !walked.insert(id) => break None,
                    Some(id) => {
                        let Some(parent) = parents.get(&id) else { break None };
                        line.push(id);
                        next = *parent;
                    }
                }
            };
            if let Some(below) = below {
                let ends = line.into_iter().rev().zip(below + 1..);
                depths.extend(ends);
            }
        }
        depths
    }

    /// All images, that of the active leaf last.
    pub fn files(&self) -> impl Iterator<Item = &ImageFile> {
        let frozen = self.snapshots.iter().map(|snapshot| &snapshot.file);
        frozen.chain([&self.active.file])
    }

    /// Whether a file is one of the tree's.
    #[must_use]
    pub fn mentions(&self, name: &str) -> bool {
        let pending = match &self.pending {
            None => false,
            Some(Pending::Leaf { file, over }) => file == name || over.name == name,
            Some(Pending::Remove { file }) => file.name == name,
            Some(
                Pending::Switch {
                    from: one, to: other, ..
                }
                | Pending::Merge {
                    child: one,
                    into: other,
                },
            ) => one.name == name || other.name == name,
        };
        pending || self.files().any(|file| file.name == name)
    }
}

/// A manifest from a file may say anything, and files are removed by what it says.
impl Checked for Manifest {
    fn check(&self) -> Result<(), String> {
        let (mut ids, mut names, mut files) = (HashSet::new(), HashSet::new(), HashSet::new());
        for file in self.files() {
            plain_name(&file.name)?;
            if !files.insert(&file.name) {
                return Err(format!("{} is the file of two", file.name));
            }
        }
        for snapshot in &self.snapshots {
            if !ids.insert(snapshot.id) {
                return Err(format!("two snapshots have the id {}", snapshot.id));
            }
            if !snapshot.deleted && !names.insert(&snapshot.name) {
                return Err(format!("two snapshots are called \"{}\"", snapshot.name));
            }
            check_name(&snapshot.name).map_err(|error| error.to_string())?;
            check_time(snapshot.created)?;
        }
        let roots = self
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.parent.is_none())
            .count();
        if roots != usize::from(!self.snapshots.is_empty()) || self.active.parent.is_none() != self.snapshots.is_empty()
        {
            return Err("it is not one tree".to_owned());
        }
        let depths = self.depths();
        let mut starts = ids.iter().chain(&self.active.parent);
        if starts.any(|start| !depths.contains_key(start)) {
            return Err("a parent is missing, or its own ancestor".to_owned());
        }
        match &self.pending {
            None => Ok(()),
            Some(Pending::Leaf { file, over }) => plain_name(file).and_then(|()| plain_name(&over.name)),
            Some(Pending::Remove { file }) => plain_name(&file.name),
            Some(Pending::Switch { from, to, snapshot }) => {
                if self.active.file != *to || self.snapshot(*snapshot).is_none_or(|taken| taken.file != *from) {
                    return Err("it switches between files that are not those of the snapshot".to_owned());
                }
                Ok(())
            }
            Some(Pending::Merge { child, into }) => plain_name(&child.name).and_then(|()| plain_name(&into.name)),
        }
    }
}

/// A file's name that leads to no other directory.
fn plain_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(format!("\"{name}\" is no file's name"));
    }
    check_path(Path::new(name))
}

/// Seconds since 1970, as far as a date can be shown.
fn check_time(seconds: i64) -> Result<(), String> {
    let last = u64::from(UnixSeconds::MAX);
    if seconds.unsigned_abs() <= last {
        return Ok(());
    }
    Err(format!("a snapshot of the time {seconds}, expected -{last} to {last}"))
}

/// Whether a snapshot can be called so: 1 to [`MAX_NAME`] characters, no `/`, no `@`, no control character, and
/// not [`NOW`].
///
/// # Errors
/// [`SnapshotError::Name`].
pub fn check_name(name: &str) -> Result<(), SnapshotError> {
    let refused = |reason| {
        Err(SnapshotError::Name {
            name: name.to_owned(),
            reason,
        })
    };
    if name.is_empty() {
        refused("it is empty")
    } else if name.chars().count() > MAX_NAME {
        refused("it has more than 100 characters")
    } else if name.contains(['/', '@']) || name.chars().any(char::is_control) {
        refused("it has a slash, an @ or a control character in it")
    } else if name.eq_ignore_ascii_case(NOW) {
        refused("it stands for the present state")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str) -> ImageFile {
        ImageFile {
            name: name.to_owned(),
            id: UniqueId::random(),
        }
    }

    fn snapshot(byte: u8, parent: Option<u8>) -> Snapshot {
        Snapshot {
            id: UniqueId([byte; 16]),
            name: format!("s{byte}"),
            created: 0,
            file: file(&format!("{byte}.avhd")),
            parent: parent.map(|byte| UniqueId([byte; 16])),
            deleted: false,
        }
    }

    fn tree() -> Manifest {
        Manifest {
            snapshots: vec![snapshot(1, None), snapshot(2, Some(1)), snapshot(3, Some(1))],
            active: Active {
                file: file("now.avhd"),
                parent: Some(UniqueId([2; 16])),
            },
            pending: None,
        }
    }

    #[test]
    fn dependants_and_descendants() {
        let tree = tree();
        tree.check().unwrap();
        let id = |byte| UniqueId([byte; 16]);
        assert_eq!(tree.dependants(id(1)), [Node::Snapshot(id(2)), Node::Snapshot(id(3))]);
        assert_eq!(tree.dependants(id(2)), [Node::Now]);
        assert_eq!(tree.dependants(id(3)), []);
        assert_eq!(tree.descendants(id(1)), [id(1), id(2), id(3)]);
        assert_eq!(tree.descendants(id(3)), [id(3)]);
    }

    #[test]
    fn depths_are_those_of_the_lines() {
        let mut tree = tree();
        tree.snapshots
            .extend([snapshot(7, Some(8)), snapshot(8, Some(7)), snapshot(9, Some(7))]);
        tree.snapshots
            .extend([snapshot(4, Some(3)), snapshot(5, Some(4)), snapshot(6, Some(99))]);
        let depths = tree.depths();
        assert_eq!(depths.len(), 5);
        for (id, depth) in depths {
            assert_eq!(tree.line(Some(id)).count(), depth, "{id}");
        }
    }

    type Change = fn(&mut Manifest);

    #[test]
    fn what_can_not_be_is_refused() {
        let changes: [(&str, Change); 12] = [
            ("time", |m| m.snapshots[0].created = i64::MIN),
            ("circle aside", |m| {
                m.snapshots.extend([snapshot(7, Some(8)), snapshot(8, Some(7))]);
            }),
            ("no tree", |m| m.snapshots[1].parent = None),
            ("circle", |m| m.snapshots[0].parent = Some(UniqueId([2; 16]))),
            ("missing parent", |m| m.snapshots[2].parent = Some(UniqueId([9; 16]))),
            ("leaf without parent", |m| m.active.parent = None),
            ("same file", |m| m.active.file.name = "1.avhd".to_owned()),
            ("same name", |m| m.snapshots[1].name = "s1".to_owned()),
            ("same id", |m| m.snapshots[1].id = UniqueId([1; 16])),
            ("elsewhere", |m| m.snapshots[1].file.name = "../2.avhd".to_owned()),
            ("bad name", |m| m.snapshots[1].name = "a@b".to_owned()),
            ("elsewhere, pending", |m| {
                m.pending = Some(Pending::Remove {
                    file: file("/etc/passwd"),
                });
            }),
        ];
        for (what, change) in changes {
            let mut tree = tree();
            change(&mut tree);
            assert!(tree.check().is_err(), "{what}");
        }
    }

    #[test]
    fn names() {
        for name in ["a", "vor dem Update", "2026-01-01 12:00", "\u{e9}", &"x".repeat(100)] {
            check_name(name).unwrap();
        }
        for name in ["", "a/b", "a@b", "a\nb", "now", "Now", "NOW", &"x".repeat(101)] {
            check_name(name).unwrap_err();
        }
    }
}
