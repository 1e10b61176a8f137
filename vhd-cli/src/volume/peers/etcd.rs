//! The nodes of several machines, in etcd. What processes of this machine need to know stands in its registry too: who coordinates, and
//! which nodes are of this machine. So a process with a disk asks no etcd.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use csv_lock::{
    ClusterId, CsvError, EngineAccess, EtcdConfig, EtcdEngine, Event, KnownVolume, Leader, Member, NodeId, Presence,
    VolumeId,
};

use super::{Part, Peers};
use crate::failure::Failure;
use crate::volume::{Machine, format_of};

/// The longest password, in bytes: what is longer is another file.
const PASSWORD: u64 = 4096;
/// The lease of commands, which hold none.
const NO_LEASE: Duration = Duration::from_secs(5);

/// The nodes of several machines.
pub(super) struct EtcdPeers {
    machine: Machine,
    volume: VolumeId,
    engine: Arc<EtcdEngine>,
}

impl EtcdPeers {
    pub(super) fn connect(
        machine: &Machine,
        volume: &KnownVolume,
        endpoints: Vec<String>,
        access: &EngineAccess,
    ) -> Result<Self, Failure> {
        let cluster = format_of(volume)?.cluster;
        let engine = EtcdEngine::connect(&config(endpoints, access, NO_LEASE)?, cluster, NodeId(String::new()))?;
        Ok(Self::of(machine, volume, Arc::new(engine)))
    }

    fn of(machine: &Machine, volume: &KnownVolume, engine: Arc<EtcdEngine>) -> Self {
        Self {
            machine: machine.clone(),
            volume: volume.id,
            engine,
        }
    }
}

/// The part of a node, for its agent.
pub(super) fn part(
    machine: &Machine,
    volume: &KnownVolume,
    node: &NodeId,
    endpoints: Vec<String>,
    listens: Option<SocketAddr>,
    lease: Duration,
    changed: impl Fn() + Send + Sync + 'static,
) -> Result<Part, Failure> {
    let access = machine.registry().access()?;
    let cluster = format_of(volume)?.cluster;
    let engine = EtcdEngine::connect(&config(endpoints, &access, lease)?, cluster, node.clone())?;
    let engine = Arc::new(engine);
    engine.follow(volume.id, changed);
    let presence = Presence {
        machine: machine.registry().machine()?,
        listens: listens.map(|address| address.to_string()),
    };
    engine.appear(volume.id, &presence);
    let peers = EtcdPeers::of(machine, volume, Arc::clone(&engine));
    Ok(Part {
        engine,
        peers: Arc::new(peers),
    })
}

/// Whether an etcd answers whose leases can be believed, and lets us in.
pub(super) fn try_out(endpoints: &[String], access: &EngineAccess, cluster: ClusterId) -> Result<(), Failure> {
    let config = config(endpoints.to_vec(), access, NO_LEASE)?;
    let engine = EtcdEngine::connect(&config, cluster, NodeId(String::new()))?;
    engine.members(VolumeId(cluster.0))?;
    Ok(())
}

fn config(endpoints: Vec<String>, access: &EngineAccess, lease: Duration) -> Result<EtcdConfig, Failure> {
    let scheme = match access.certificates {
        Some(_) => "https",
        None => "http",
    };
    let user = access.user.as_ref().map(|(name, file)| {
        let failed = |error| Failure::io("read the password in", file, &error);
        let metadata = fs::metadata(file).map_err(failed)?;
        if !metadata.is_file() || metadata.len() > PASSWORD {
            let message = format!("{} is no file with a password", file.display());
            return Err(Failure::usage(message));
        }
        let password = fs::read_to_string(file).map_err(failed)?;
        Ok((name.clone(), password.trim_end_matches(['\r', '\n']).to_owned()))
    });
    Ok(EtcdConfig {
        endpoints: endpoints
            .iter()
            .map(|endpoint| format!("{scheme}://{endpoint}"))
            .collect(),
        tls: access.certificates.clone(),
        user: user.transpose()?,
        lease,
        any_version: access.any_version,
    })
}

impl Peers for EtcdPeers {
    fn join(&self, node: &NodeId) -> Result<bool, CsvError> {
        let changed = self.engine.join(self.volume, node)?;
        // Now the agent of the node may begin.
        Ok(self.machine.registry().join(self.volume, node)? | changed)
    }

    fn leave(&self, node: &NodeId) -> Result<bool, CsvError> {
        let changed = self.engine.leave(self.volume, node)?;
        Ok(self.machine.registry().leave(self.volume, node)? | changed)
    }

    fn members(&self) -> Result<Vec<Member>, CsvError> {
        self.engine.members(self.volume)
    }

    fn set_condition(&self, node: &NodeId, condition: &str) -> Result<(), CsvError> {
        self.engine.set_condition(self.volume, node, condition)
    }

    fn wish(&self, node: &NodeId, limit: Duration) -> Result<(), CsvError> {
        self.engine.wish(self.volume, node, limit)
    }

    fn end_wish(&self, node: &NodeId) -> Result<(), CsvError> {
        self.engine.end_wish(self.volume, node)
    }

    fn wished(&self) -> Result<Option<NodeId>, CsvError> {
        self.engine.wished(self.volume)
    }

    fn note(&self, node: &NodeId, kind: &str, text: &str) -> Result<(), CsvError> {
        self.engine.note(self.volume, node, kind, text)
    }

    fn events(&self) -> Result<Vec<Event>, CsvError> {
        self.engine.events(self.volume)
    }

    fn running(&self) -> Result<Vec<NodeId>, CsvError> {
        let present = self.engine.present(self.volume)?;
        Ok(present.into_iter().map(|(node, _)| node).collect())
    }

    fn coordinator(&self) -> Result<Option<Leader>, CsvError> {
        let leader = self.engine.coordinator(self.volume)?;
        if let Some(leader) = &leader {
            self.machine.registry().publish(self.volume, leader)?;
        }
        Ok(leader)
    }

    fn expel(&self, node: &NodeId) -> Result<(), CsvError> {
        self.engine.expel(self.volume, node)
    }

    fn votes(&self) -> Option<(usize, usize)> {
        Some(self.engine.votes())
    }
}
