//! Asking the coordinator of a volume, wherever it is.

use std::time::Duration;

use csv_lock::{
    Answer, Ask, Client, CsvError, Disk, HostVolume, KnownVolume, LocalEngine, NodeId, Refusal, SystemClock, UnixNet,
    VolumeFormat, read_format,
};
use uuid::Uuid;
use vhd_core::storage::StorageError;

use super::name::DiskName;
use super::table::table_of;
use super::{Machine, PAUSE};
use crate::failure::Failure;

/// A session of this process with a volume.
pub(crate) struct Session {
    client: Client<SystemClock, UnixNet, LocalEngine>,
}

impl Session {
    /// A new session of a node.
    pub(crate) fn new(machine: &Machine, volume: &KnownVolume, node: NodeId) -> Result<Self, Failure> {
        let format = format_of(volume)?;
        let engine = LocalEngine::open(&volume.dir, &machine.registry_path(), node.clone(), None)?;
        Ok(Self {
            client: Client::new(SystemClock, UnixNet::default(), engine, format, node, Uuid::new_v4()),
        })
    }

    /// Asks; across failovers of the coordinator, for `limit` at most.
    pub(crate) fn ask(&mut self, ask: Ask, limit: Duration) -> Result<Answer, CsvError> {
        self.client.ask(ask, limit)
    }

    /// Who this is.
    pub(crate) fn id(&self) -> &csv_lock::Session {
        self.client.session()
    }

    /// Makes a file of the volume one of its disks, unless it is one.
    pub(crate) fn adopt(&mut self, disk: &DiskName) -> Result<(), Failure> {
        let file = disk.file();
        if file.symlink_metadata().is_err() {
            return Err(StorageError::NotFound { path: file }.into());
        }
        if self.disks(PAUSE)?.iter().any(|(path, _)| *path == disk.path) {
            return Ok(());
        }
        let table = table_of(&file)?;
        let path = disk.path.clone();
        match self.ask(Ask::Adopt { path, table }, PAUSE) {
            Ok(_) | Err(CsvError::Refused(Refusal::Exists { .. })) => Ok(()),
            Err(error) => Err(Failure::from(error).about(format_args!("volume {}", disk.volume.name))),
        }
    }

    /// The disks of the volume.
    pub(crate) fn disks(&mut self, limit: Duration) -> Result<Vec<(String, Disk)>, CsvError> {
        match self.ask(Ask::Disks, limit)? {
            Answer::Disks(disks) => Ok(disks),
            Answer::Outcome(_) => Err(CsvError::Message {
                reason: "that is no answer to what was asked".into(),
            }),
        }
    }
}

/// What the volume says that it is, which must be what this machine knows it as.
pub(crate) fn format_of(volume: &KnownVolume) -> Result<VolumeFormat, Failure> {
    let about = |failure: Failure| failure.about(format_args!("volume {}, {}", volume.name, volume.dir.display()));
    let format = read_format(&HostVolume::new(&volume.dir)).map_err(|error| about(error.into()))?;
    if format.volume == volume.id {
        return Ok(format);
    }
    let refusal = Refusal::WrongVolume {
        expected: volume.id,
        found: format.volume,
    };
    Err(about(CsvError::from(refusal).into()))
}
