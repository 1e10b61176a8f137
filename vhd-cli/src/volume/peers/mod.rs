//! What the nodes of a volume know of each other: who takes part and runs, who shall coordinate, what happened.
//!
//! It says who is where; it protects nothing. For one machine it stands in its registry, else where the engine is.

#[cfg(feature = "etcd")]
mod etcd;
mod local;

use std::sync::Arc;
use std::time::Duration;

use csv_lock::{CsvError, Engine, EngineAccess, Event, KnownVolume, Leader, Member, NodeId};

use super::{EngineName, Machine, not_a_member};
use crate::codes::Kind;
use crate::failure::Failure;
use crate::running::Name;

/// What the nodes of one volume know of each other.
pub(crate) trait Peers: Send + Sync {
    /// A node of this machine takes part from now on. False if it did already.
    fn join(&self, node: &NodeId) -> Result<bool, CsvError>;

    /// A node takes no part any more. False if it took none.
    fn leave(&self, node: &NodeId) -> Result<bool, CsvError>;

    /// The nodes that take part, by name.
    fn members(&self) -> Result<Vec<Member>, CsvError>;

    /// What a node says about its part.
    fn set_condition(&self, node: &NodeId, condition: &str) -> Result<(), CsvError>;

    /// For `limit` no other node than this one shall become the coordinator.
    fn wish(&self, node: &NodeId, limit: Duration) -> Result<(), CsvError>;

    /// The wish is fulfilled, or given up.
    fn end_wish(&self, node: &NodeId) -> Result<(), CsvError>;

    /// Who shall coordinate, while somebody wishes it.
    fn wished(&self) -> Result<Option<NodeId>, CsvError>;

    /// Notes what happened to a node.
    fn note(&self, node: &NodeId, kind: &str, text: &str) -> Result<(), CsvError>;

    /// What happened, oldest first.
    fn events(&self) -> Result<Vec<Event>, CsvError>;

    /// The nodes whose agents run.
    fn running(&self) -> Result<Vec<NodeId>, CsvError>;

    /// The coordinator, if there is one that can be asked. Sessions of this machine find it from now on.
    fn coordinator(&self) -> Result<Option<Leader>, CsvError>;

    /// A node is gone: its right to coordinate is another one's.
    fn expel(&self, node: &NodeId) -> Result<(), CsvError>;

    /// How many of the engine's servers answer, of how many; `None` if it has none.
    fn votes(&self) -> Option<(usize, usize)> {
        None
    }
}

/// The node of that name that takes part in a volume, on whatever machine.
///
/// # Errors
/// `VHD-E0919` if none does; the engine does not answer.
pub(crate) fn member_of(peers: &dyn Peers, volume: &KnownVolume, name: &Name) -> Result<NodeId, Failure> {
    let found = peers
        .members()?
        .into_iter()
        .find(|member| member.node.0 == name.as_str());
    found
        .map(|member| member.node)
        .ok_or_else(|| not_a_member(volume, name.as_str()))
}

/// What a node's part in a volume needs of the engine.
pub(crate) struct Part {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) peers: Arc<dyn Peers>,
}

/// Who else takes part in a volume, for a command.
///
/// # Errors
/// This build has not the volume's engine; the engine does not answer.
pub(crate) fn peers_of(machine: &Machine, volume: &KnownVolume) -> Result<Arc<dyn Peers>, Failure> {
    match engine_of(volume)? {
        EngineName::Local => Ok(Arc::new(local::LocalPeers::new(machine, volume))),
        #[cfg(feature = "etcd")]
        EngineName::Etcd(endpoints) => {
            let access = machine.registry().access()?;
            Ok(Arc::new(etcd::EtcdPeers::connect(machine, volume, endpoints, &access)?))
        }
        #[cfg(not(feature = "etcd"))]
        EngineName::Etcd(_) => Err(no_etcd()),
    }
}

/// The part of a node in a volume, for its agent: the engine, and what is known of others, followed. `changed` is told when there is news.
pub(crate) fn part_of(
    machine: &Machine,
    volume: &KnownVolume,
    node: &NodeId,
    listens: Option<std::net::SocketAddr>,
    lease: Duration,
    changed: impl Fn() + Send + Sync + 'static,
) -> Result<Part, Failure> {
    match engine_of(volume)? {
        EngineName::Local => {
            let registry = machine.registry_path();
            let engine = csv_lock::LocalEngine::open(&volume.dir, &registry, node.clone(), Some(lease))?;
            Ok(Part {
                engine: Arc::new(engine),
                peers: Arc::new(local::LocalPeers::new(machine, volume)),
            })
        }
        #[cfg(feature = "etcd")]
        EngineName::Etcd(endpoints) => etcd::part(machine, volume, node, endpoints, listens, lease, changed),
        #[cfg(not(feature = "etcd"))]
        EngineName::Etcd(_) => {
            drop((listens, changed));
            Err(no_etcd())
        }
    }
}

/// Tries an engine before a volume relies on it.
pub(crate) fn try_engine(
    engine: &EngineName,
    access: &EngineAccess,
    cluster: csv_lock::ClusterId,
) -> Result<(), Failure> {
    if let Some(files) = &access.certificates {
        files.check(None)?;
    }
    match engine {
        EngineName::Local => Ok(()),
        #[cfg(feature = "etcd")]
        EngineName::Etcd(endpoints) => etcd::try_out(endpoints, access, cluster),
        #[cfg(not(feature = "etcd"))]
        EngineName::Etcd(_) => {
            let _ = cluster;
            Err(no_etcd())
        }
    }
}

fn engine_of(volume: &KnownVolume) -> Result<EngineName, Failure> {
    volume.engine.parse().map_err(|error: String| {
        let message = format!("the engine {:?} of volume {}: {error}", volume.engine, volume.name);
        Failure::new(Kind::VolumeEngine, message)
    })
}

#[cfg(not(feature = "etcd"))]
fn no_etcd() -> Failure {
    let message = "this build of vhd has no engine etcd: build it with `--features etcd` (needs protoc), or use --engine local \
                   for the processes of one machine";
    Failure::new(Kind::VolumeEngine, message)
}
