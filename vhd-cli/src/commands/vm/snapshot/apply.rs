//! Going back to a snapshot of a machine: all of its disks, or none of them. Nobody has them in use meanwhile.
//!
//! The present state of each disk is kept as a snapshot of its own until all of them are at their new place: until then the
//! operation can be undone without a loss, from then on it can only be completed (INV-89).

use std::fs::File;
use std::path::PathBuf;

use hypervisor::StateFile;
use vhd_core::ErrorKind;
use vhd_core::format::UniqueId;
use vhd_core::snapshot::Unsaved;
use vhd_core::storage::{Access, HostFile, Sharing};

use super::delete::drop_from;
use super::manifest::{Part, Pending, Snapshot};
use super::parts::{LivePart, size_of, snapshot_in};
use super::store::Store;
use crate::codes::Kind;
use crate::commands::vm::record::{Record, SavedDisk};
use crate::commands::vm::run::failed;
use crate::commands::vm::save::state_failed;
use crate::failure::Failure;
use crate::output;

/// A snapshot that can be gone back to, as far as that can be known before.
pub(crate) struct Kept {
    snapshot: Snapshot,
    file: PathBuf,
    pub(crate) state: StateFile,
    pub(crate) record: Record,
}

/// Where a disk is that was put back: its active file.
pub(super) struct PutBack {
    leaf: PathBuf,
    identity: UniqueId,
}

impl Store {
    /// Looks at a snapshot: whether this host can go on with it, whether its memory and all of its disks are what they were.
    /// Nothing is changed.
    pub(crate) fn look_at(&self, name: &str, running: &[LivePart]) -> Result<Kept, Failure> {
        let snapshot = self.find(name)?.clone();
        let about = |failure: Failure| failure.about(format_args!("the snapshot \"{name}\""));
        let file = self.memory_of(snapshot.id);
        let opened = File::open(&file).map_err(|error| Failure::io("open", &file, &error))?;
        let state = StateFile::open(opened).map_err(|error| about(state_failed(error)))?;
        let record = state
            .owner()
            .map_err(state_failed)
            .and_then(Record::parse)
            .map_err(about)?;
        state.verify().map_err(|error| about(failed(&record.kernel, error)))?;
        let kept = Kept {
            snapshot,
            file,
            state,
            record,
        };
        for disk in &kept.record.disks {
            match kept.part(disk) {
                Some(part) => self.look_at_part(part, disk, running).map_err(about)?,
                None => disk.require_unchanged().map_err(about)?,
            }
        }
        Ok(kept)
    }

    fn look_at_part(&self, part: &Part, disk: &SavedDisk, running: &[LivePart]) -> Result<(), Failure> {
        let tree = self.tree(&part.base, running)?;
        let size = size_of(&tree, snapshot_in(&tree, part)?)?;
        disk.require_size(size)?;
        if running.iter().all(|live| live.base != part.base) {
            // Whoever has it in use would keep it from being put back.
            HostFile::open(
                &tree.path(&tree.manifest().active.file),
                Access::ReadWrite,
                Sharing::Exclusive,
            )?;
        }
        Ok(())
    }

    /// Refuses if the disks of a snapshot hold something that no snapshot has.
    pub(crate) fn require_saved(&self, kept: &Kept) -> Result<(), Failure> {
        for part in &kept.snapshot.disks {
            let bytes = self.tree(&part.base, &[])?.unsaved_bytes()?;
            if bytes > 0 {
                let message = format!(
                    "the present state of {} has {bytes} bytes that no snapshot has: --discard-current loses them, and `vhd \
                     snapshot create` keeps them",
                    part.base.display()
                );
                return Err(Failure::new(Kind::Library(ErrorKind::SnapshotsUnsaved), message));
            }
        }
        Ok(())
    }

    /// Puts the disks back, and says in the record where they are.
    pub(crate) fn apply(&mut self, kept: &mut Kept) -> Result<(), Failure> {
        let put_back = self.put_back(&kept.snapshot)?;
        for (part, put_back) in kept.snapshot.disks.iter().zip(put_back) {
            let disks = kept.record.disks.iter_mut();
            for disk in disks.filter(|disk| disk.slot == part.slot) {
                disk.goes_on_in(&put_back.leaf, put_back.identity);
            }
        }
        Ok(())
    }

    /// Puts all disks back, or none.
    pub(super) fn put_back(&mut self, snapshot: &Snapshot) -> Result<Vec<PutBack>, Failure> {
        let name = format!("going back {}", UniqueId::random());
        self.pend(snapshot, &name, false, "going back announced")?;
        let put_back = snapshot.disks.iter().map(|part| self.put_one_back(part, &name));
        let put_back = match put_back.collect::<Result<Vec<_>, _>>() {
            Ok(put_back) => put_back,
            Err(failure) => {
                if let Err(left) = self.undo_application(&snapshot.disks, &name) {
                    output::warning(format_args!(
                        "the next command puts the disks back as before: {}",
                        left.message()
                    ));
                }
                return Err(failure);
            }
        };
        // INV-89: from here on the present states may go.
        self.pend(snapshot, &name, true, "all disks put back")?;
        self.finish_application(&snapshot.disks, &name)?;
        Ok(put_back)
    }

    fn put_one_back(&self, part: &Part, name: &str) -> Result<PutBack, Failure> {
        let mut tree = self.tree(&part.base, &[])?;
        let target = snapshot_in(&tree, part)?.name.clone();
        let applied = tree.apply(&target, Unsaved::Snapshot(name))?;
        Ok(PutBack {
            leaf: applied.active,
            identity: tree.manifest().active.file.id,
        })
    }

    fn pend(&mut self, snapshot: &Snapshot, name: &str, is_applied: bool, step: &str) -> Result<(), Failure> {
        let pending = Pending::Apply {
            snapshot: snapshot.id,
            disks: snapshot.disks.clone(),
            kept: name.to_owned(),
            is_applied,
        };
        self.write(self.manifest.with(Some(pending)), step)
    }

    /// The present states that were kept for an undo go.
    pub(super) fn finish_application(&mut self, disks: &[Part], name: &str) -> Result<(), Failure> {
        for part in disks {
            if let Some(mut tree) = self.tree_if_there(part, &[])? {
                drop_from(&mut tree, false, |it| it.name == name)?;
            }
        }
        self.forget_pending()
    }

    /// Disks that were put back are as before. What somebody wrote to one of them since is not lost: then it is refused.
    pub(super) fn undo_application(&mut self, disks: &[Part], name: &str) -> Result<(), Failure> {
        for part in disks {
            let Some(mut tree) = self.tree_if_there(part, &[])? else {
                continue;
            };
            if tree.manifest().named(name).is_some() {
                tree.apply(name, Unsaved::Refuse)?;
            }
            drop_from(&mut tree, false, |it| it.name == name)?;
        }
        self.forget_pending()
    }
}

impl Kept {
    /// Whether a disk of the machine was put back, and not only read.
    pub(crate) fn has_part(&self, disk: &SavedDisk) -> bool {
        self.part(disk).is_some()
    }

    fn part(&self, disk: &SavedDisk) -> Option<&Part> {
        self.snapshot.disks.iter().find(|part| part.slot == disk.slot)
    }

    /// The file with its memory, for messages.
    pub(crate) fn file(&self) -> &std::path::Path {
        &self.file
    }

    pub(crate) fn name(&self) -> &str {
        &self.snapshot.name
    }
}
