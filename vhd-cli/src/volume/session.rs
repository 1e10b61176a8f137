//! Asking the coordinator of a volume, wherever it is.

use std::time::Duration;

use csv_lock::{
    Answer, Ask, Client, CsvError, Disk, HostVolume, KnownVolume, LocalEngine, NodeId, NodeNet, Process, Refusal,
    SystemClock, VolumeFormat, read_format,
};
use uuid::Uuid;
use vhd_core::storage::StorageError;

use super::name::DiskName;
use super::table::table_of;
use super::{EngineName, Machine, PAUSE, peers_of};
use crate::failure::Failure;

/// A session of this process with a volume. Where the coordinator is it reads in the registry of the machine, whatever the engine is: the
/// agent keeps that true.
pub(crate) struct Session {
    client: Client<SystemClock, NodeNet, LocalEngine>,
}

impl Session {
    /// A new session of a node.
    pub(crate) fn new(machine: &Machine, volume: &KnownVolume, node: NodeId) -> Result<Self, Failure> {
        let format = format_of(volume)?;
        refresh(machine, volume);
        let registry = machine.registry();
        let net = NodeNet::new(registry.machine()?, registry.access()?.certificates);
        let engine = LocalEngine::open(&volume.dir, &machine.registry_path(), node.clone(), None)?;
        Ok(Self {
            client: Client::new(SystemClock, net, engine, format, node, Uuid::new_v4()),
        })
    }

    /// A session that only asks: nobody's, or that of the node of this machine that takes part.
    pub(crate) fn to_ask(machine: &Machine, volume: &KnownVolume) -> Result<Self, Failure> {
        let node = machine.member(volume, None);
        Self::new(machine, volume, node.unwrap_or_else(|_| NodeId("status".into())))
    }

    /// A new session of this process, for a disk: before it asks for anything, the machine knows whose it is.
    pub(super) fn begin(machine: &Machine, disk: &DiskName) -> Result<Self, Failure> {
        let node = machine.member(&disk.volume, None)?;
        let session = Self::new(machine, &disk.volume, node)?;
        let process = Process::this()?;
        machine
            .registry()
            .open_session(disk.volume.id, session.id(), &process)?;
        Ok(session)
    }

    /// Another session is proven to be gone: what it has is free, what it asked for is too late (INV-98).
    pub(crate) fn fenced(&mut self, gone: &csv_lock::Session, proof: &str, limit: Duration) -> Result<(), CsvError> {
        let fenced = Ask::Fenced {
            session: gone.clone(),
            proof: proof.to_owned(),
        };
        self.ask(fenced, limit).map(drop)
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

/// Without an agent on this machine that takes part, a command has to look itself where the coordinator is.
fn refresh(machine: &Machine, volume: &KnownVolume) {
    if volume.engine.parse() == Ok(EngineName::Local) {
        return;
    }
    let here = machine.registry().members(volume.id).unwrap_or_default();
    if !here.iter().any(|member| machine.has_agent(&member.node)) {
        // Without an answer the coordinator may still be where it was.
        let _ = peers_of(machine, volume).map(|peers| peers.coordinator());
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
