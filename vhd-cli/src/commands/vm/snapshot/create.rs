//! Taking a snapshot of a machine: memory, state and disks of one moment, in which the guest is held.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use hypervisor::Saved;
use vhd_core::ErrorKind;
use vhd_core::format::UniqueId;
use vhd_core::snapshot::{WantedSnapshot, check_name, create_together};
use vhd_core::storage::{StagedFile, StorageFile as _};

use super::manifest::{Part, Pending, Snapshot};
use super::parts::LivePart;
use super::store::Store;
use crate::codes::Kind;
use crate::commands::vm::save::state_failed;
use crate::failure::Failure;

/// A snapshot that is being taken: the manifest says so, and its file is there without a name.
pub(crate) struct Announced {
    store: Store,
    snapshot: Snapshot,
    staged: StagedFile,
    running: Vec<LivePart>,
}

impl Store {
    /// INV-87: what a crash may leave is known before it is there.
    pub(crate) fn announce(mut self, name: &str, running: Vec<LivePart>) -> Result<Announced, Failure> {
        check_name(name)?;
        if self.manifest.named(name).is_some() {
            let message = format!("the machine has a snapshot \"{name}\" already");
            return Err(Failure::new(Kind::Library(ErrorKind::SnapshotExists), message));
        }
        let disks = running.iter().map(|live| Part {
            slot: live.slot,
            id: live.id.clone(),
            base: live.base.clone(),
            snapshot: UniqueId::random(),
        });
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let snapshot = Snapshot {
            id: UniqueId::random(),
            name: name.to_owned(),
            created: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            paused_us: 0,
            disks: disks.collect(),
        };
        let pending = Some(Pending::Create {
            snapshot: snapshot.clone(),
        });
        self.write(self.manifest.with(pending), "snapshot announced")?;
        let staged = StagedFile::create_beside(&self.memory_of(snapshot.id))?;
        Ok(Announced {
            store: self,
            snapshot,
            staged,
            running,
        })
    }
}

impl Announced {
    /// The file for memory and state.
    pub(crate) fn file(&self) -> Result<std::fs::File, Failure> {
        let storage = self.staged.storage();
        let file = storage.host_file().expect("it was just created on this host");
        file.try_clone()
            .map_err(|error| Failure::io("write", &self.store.memory_of(self.snapshot.id), &error))
    }

    /// Completes the snapshot, while the machine is held since `held`: its file, then its disks at one instant, then the
    /// manifest, which is the moment from which it is there. `record` says what the machine's disks are.
    pub(crate) fn complete(
        self,
        saved: Saved,
        record: impl FnOnce() -> Result<Vec<u8>, Failure>,
        held: Instant,
    ) -> Result<Taken, Failure> {
        let Self {
            mut store,
            mut snapshot,
            staged,
            running,
        } = self;
        {
            let opened = snapshot.disks.iter().map(|part| store.tree(&part.base, &running));
            let mut trees = opened.collect::<Result<Vec<_>, _>>()?;
            // From here on no other command changes the disks' files.
            saved.complete(&record()?).map_err(state_failed)?;
            staged.publish(false, true)?;
            store.steps.done("memory kept");
            let wanted = trees.iter_mut().zip(&snapshot.disks);
            let mut wanted: Vec<WantedSnapshot<'_, '_>> = wanted
                .map(|(tree, part)| WantedSnapshot {
                    tree,
                    name: &snapshot.name,
                    id: part.snapshot,
                })
                .collect();
            if !wanted.is_empty() {
                create_together(&mut wanted)?;
            }
        }
        snapshot.paused_us = u64::try_from(held.elapsed().as_micros()).unwrap_or(u64::MAX);
        let taken = Taken {
            name: snapshot.name.clone(),
            disks: snapshot.disks.len(),
            paused_us: snapshot.paused_us,
        };
        let mut next = store.manifest.with(None);
        next.snapshots.push(snapshot);
        // INV-88: all parts are durable.
        store.write(next, "snapshot taken")?;
        Ok(taken)
    }
}

/// A snapshot that was taken.
#[derive(Debug, serde::Deserialize, serde::Serialize)]
pub(crate) struct Taken {
    pub(crate) name: String,
    /// How many disks it has.
    pub(crate) disks: usize,
    /// Microseconds that the guest was held.
    pub(crate) paused_us: u64,
}
