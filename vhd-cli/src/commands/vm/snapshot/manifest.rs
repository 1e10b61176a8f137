//! What the snapshots of a machine are called, what each consists of, and the operation in progress.
//!
//! The manifest is the journal too: an operation says in `pending` what it is about to do before it does it (INV-87).

use std::collections::HashSet;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vhd_core::format::UniqueId;
use vhd_core::record::{Checked, RecordKind, check_path};
use vhd_core::snapshot::check_name;

/// The record that the manifest is.
pub(super) const KIND: RecordKind = RecordKind {
    name: "machine-snapshots",
    version: 1,
};

/// The snapshots of a machine.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest {
    /// The oldest first.
    pub(super) snapshots: Vec<Snapshot>,
    /// The operation in progress, or interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pending: Option<Pending>,
}

/// A state of a machine that was kept.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Snapshot {
    /// Tells it from all others; its file of memory is called by it.
    pub(super) id: UniqueId,
    /// Unique.
    pub(super) name: String,
    /// Seconds since 1970-01-01 00:00:00 UTC.
    pub(super) created: i64,
    /// Microseconds that the guest was held for it, up to its completion.
    pub(super) paused_us: u64,
    /// The disks that the guest could write to.
    pub(super) disks: Vec<Part>,
}

/// The state of a disk, as a snapshot in the tree of the disk.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    /// Where the disk is in the machine.
    pub(super) slot: usize,
    /// What the guest sees as its serial number.
    pub(super) id: String,
    /// The base of the tree.
    pub(super) base: PathBuf,
    /// The snapshot in it, whatever it is called there.
    pub(super) snapshot: UniqueId,
}

/// An operation that has begun.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(tag = "operation", rename_all = "kebab-case", deny_unknown_fields)]
pub(super) enum Pending {
    /// A snapshot is taken. It is undone.
    Create {
        /// As it would be.
        snapshot: Snapshot,
    },
    /// A snapshot goes, which is not listed any more. It is completed.
    Delete {
        /// As it was.
        snapshot: Snapshot,
    },
    /// The disks go back to a snapshot.
    Apply {
        /// Where to.
        snapshot: UniqueId,
        /// The disks: those of the snapshot.
        disks: Vec<Part>,
        /// What their present states are called as long as the operation can be undone.
        kept: String,
        /// All of them are at the snapshot: it is completed. Otherwise it is undone.
        is_applied: bool,
    },
}

impl Manifest {
    /// The snapshot of this name.
    pub(super) fn named(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.name == name)
    }

    /// The same snapshots, and this in progress.
    pub(super) fn with(&self, pending: Option<Pending>) -> Self {
        Self {
            snapshots: self.snapshots.clone(),
            pending,
        }
    }

    /// There is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.snapshots.is_empty() && self.pending.is_none()
    }
}

impl Pending {
    /// What it is, for people and programs.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create",
            Self::Delete { .. } => "delete",
            Self::Apply { .. } => "apply",
        }
    }
}

/// A manifest from a file may say anything, and snapshots of disks are removed by what it says.
impl Checked for Manifest {
    fn check(&self) -> Result<(), String> {
        let (mut ids, mut names) = (HashSet::new(), HashSet::new());
        for snapshot in &self.snapshots {
            if !ids.insert(snapshot.id) {
                return Err(format!("two snapshots have the id {}", snapshot.id));
            }
            if !names.insert(&snapshot.name) {
                return Err(format!("two snapshots are called \"{}\"", snapshot.name));
            }
            check_snapshot(snapshot)?;
        }
        match &self.pending {
            None => Ok(()),
            Some(Pending::Create { snapshot } | Pending::Delete { snapshot }) if ids.contains(&snapshot.id) => Err(
                format!("the snapshot {} is there, and being taken or deleted", snapshot.id),
            ),
            Some(Pending::Create { snapshot } | Pending::Delete { snapshot }) => check_snapshot(snapshot),
            Some(Pending::Apply {
                snapshot, disks, kept, ..
            }) => {
                check_name(kept).map_err(|error| error.to_string())?;
                match self.snapshots.iter().find(|known| known.id == *snapshot) {
                    Some(known) if known.disks == *disks => Ok(()),
                    _ => Err(format!(
                        "it goes back to {snapshot}, which has other disks or is not there"
                    )),
                }
            }
        }
    }
}

fn check_snapshot(snapshot: &Snapshot) -> Result<(), String> {
    check_name(&snapshot.name).map_err(|error| error.to_string())?;
    let mut bases = HashSet::new();
    for part in &snapshot.disks {
        check_path(&part.base)?;
        if !part.base.is_absolute() || !bases.insert(&part.base) {
            return Err(format!(
                "{} is twice a disk, or no path from the root",
                part.base.display()
            ));
        }
    }
    if snapshot.disks.len() > hypervisor::MAX_DISKS {
        return Err(format!("a machine with {} disks", snapshot.disks.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(byte: u8, name: &str) -> Snapshot {
        let part = Part {
            slot: 1,
            id: "disk".to_owned(),
            base: PathBuf::from("/disks/base.vhd"),
            snapshot: UniqueId([byte; 16]),
        };
        Snapshot {
            id: UniqueId([byte; 16]),
            name: name.to_owned(),
            created: 0,
            paused_us: 0,
            disks: vec![part],
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            snapshots: vec![snapshot(1, "one"), snapshot(2, "two")],
            pending: None,
        }
    }

    #[test]
    fn what_can_not_be_is_refused() {
        manifest().check().unwrap();
        let apply = |snapshot, disks, kept: &str| Pending::Apply {
            snapshot,
            disks,
            kept: kept.to_owned(),
            is_applied: false,
        };
        let disks = || snapshot(1, "one").disks;
        let fine = Manifest {
            pending: Some(apply(UniqueId([1; 16]), disks(), "kept")),
            ..manifest()
        };
        fine.check().unwrap();
        let mut wrong = vec![manifest(); 5];
        wrong[0].snapshots[1].id = UniqueId([1; 16]);
        wrong[1].snapshots[1].name = "one".to_owned();
        wrong[2].snapshots[0].name = "a/b".to_owned();
        wrong[3].snapshots[0].disks[0].base = "relative".into();
        let part = disks().remove(0);
        wrong[4].snapshots[0].disks.push(part);
        let pending = [
            Pending::Create {
                snapshot: snapshot(1, "new"),
            },
            Pending::Delete {
                snapshot: snapshot(3, "@"),
            },
            apply(UniqueId([3; 16]), disks(), "kept"),
            apply(UniqueId([1; 16]), Vec::new(), "kept"),
            apply(UniqueId([1; 16]), disks(), "now"),
        ];
        wrong.extend(pending.map(|pending| Manifest {
            pending: Some(pending),
            ..manifest()
        }));
        for manifest in wrong {
            assert!(manifest.check().is_err(), "{manifest:?}");
        }
    }
}
