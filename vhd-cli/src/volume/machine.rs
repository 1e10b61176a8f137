//! What this machine knows of cluster volumes: a registry, and the directories of the agents that run.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use csv_lock::{Address, KnownVolume, Leader, NodeId, Process, Registry};

use crate::codes::Kind;
use crate::control::place::{directory, lasting_directory};
use crate::failure::Failure;
use crate::running::{Claim, Folder, Name};

/// Names another directory for all that this machine knows of volumes.
const STATE_DIR: &str = "VHD_STATE_DIR";
/// Names the node that a command belongs to.
const NODE: &str = "VHD_NODE";
/// The folder of the agents among the processes that run.
const AGENTS: &str = "agent";
const REGISTRY: &str = "volumes.db";
/// The process of an agent, in its directory.
const PROCESS: &str = "process";

/// What this machine knows of cluster volumes.
#[derive(Clone)]
pub(crate) struct Machine {
    dir: PathBuf,
    /// Where agents are found.
    agents: Folder,
    registry: Arc<Registry>,
}

impl Machine {
    /// Opens what this machine knows, or begins to know something.
    pub(crate) fn open() -> Result<Self, Failure> {
        let dir = state_dir();
        fs::create_dir_all(&dir).map_err(|error| Failure::io("create", &dir, &error))?;
        Self::open_in(dir)
    }

    /// The same; `None` if it knows nothing yet.
    pub(crate) fn find() -> Result<Option<Self>, Failure> {
        let dir = state_dir();
        match dir.join(REGISTRY).exists() {
            true => Self::open_in(dir).map(Some),
            false => Ok(None),
        }
    }

    fn open_in(dir: PathBuf) -> Result<Self, Failure> {
        let agents = match std::env::var_os(STATE_DIR) {
            Some(_) => Folder::at(dir.join("run").join(AGENTS)),
            None => Folder::of(AGENTS),
        };
        let registry = Arc::new(Registry::open(&dir.join(REGISTRY))?);
        Ok(Self { dir, agents, registry })
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The file of the registry: each thread opens its own.
    pub(crate) fn registry_path(&self) -> PathBuf {
        self.dir.join(REGISTRY)
    }

    /// A volume by its name.
    pub(crate) fn volume(&self, name: &str) -> Result<KnownVolume, Failure> {
        let found = self.registry.volume(name)?;
        found.ok_or_else(|| no_such_volume(name))
    }

    /// Takes the name of a node for its agent, this process.
    pub(crate) fn claim_agent(&self, node: &Name) -> Result<Claim, Failure> {
        let Some(claim) = self.agents.claim(node.clone())? else {
            let message = format!("the agent of node {node} is running; --node gives another name");
            return Err(Failure::new(Kind::AgentNameInUse, message));
        };
        let path = claim.place().join(PROCESS);
        let process = serde_json::to_vec(&Process::this()?).expect("a process has text keys");
        fs::write(&path, process).map_err(|error| Failure::io("write", &path, &error))?;
        Ok(claim)
    }

    /// Whether the agent of a node runs.
    pub(crate) fn has_agent(&self, node: &NodeId) -> bool {
        // No agent has a name that is none.
        node.0.parse().is_ok_and(|name| self.agents.is_alive(&name))
    }

    /// Whether a coordinator listens where it was last seen: the socket goes when its term ends, or with its agent.
    pub(crate) fn listens(&self, leader: &Leader) -> bool {
        let address = leader.address.parse::<Address>();
        self.has_agent(&leader.node) && address.is_ok_and(|address| address.has_socket())
    }

    /// The process of a node's agent, if one runs.
    pub(crate) fn agent(&self, node: &NodeId) -> Option<Process> {
        let name: Name = node.0.parse().ok()?;
        if !self.agents.is_alive(&name) {
            return None;
        }
        let text = fs::read(self.agents.place(&name).join(PROCESS)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// The node of this machine that a command belongs to which has to do with a volume: the one that is named, or this host, or
    /// the only one of this machine that takes part.
    pub(crate) fn member(&self, volume: &KnownVolume, given: Option<&Name>) -> Result<NodeId, Failure> {
        let members = self.registry.members(volume.id)?;
        let named = given.map(Name::to_string).or_else(|| std::env::var(NODE).ok());
        let takes_part = |name: &str| members.iter().any(|member| member.node.0 == name);
        if let Some(named) = named {
            return match takes_part(&named) {
                true => Ok(NodeId(named)),
                false => Err(not_a_member(volume, &named)),
            };
        }
        if let Some(host) = Name::of_this_host().filter(|host| takes_part(host.as_str())) {
            return Ok(NodeId(host.to_string()));
        }
        match &members[..] {
            [] => {
                let name = &volume.name;
                let message = format!("no node of this machine takes part in volume {name}: `vhd volume join {name}`");
                Err(Failure::new(Kind::NotAMember, message))
            }
            [one] => Ok(one.node.clone()),
            [first, ..] => {
                let (count, name) = (members.len(), &volume.name);
                Err(Failure::usage(format!(
                    "{count} nodes of this machine take part in volume {name}: say which one, {NODE}={} for example",
                    first.node
                )))
            }
        }
    }
}

/// The node that an agent or a membership is for: the one that is named, or this host.
pub(crate) fn this_node(given: Option<&Name>) -> Result<Name, Failure> {
    if let Some(name) = given {
        return Ok(name.clone());
    }
    if let Ok(name) = std::env::var(NODE) {
        return name.parse().map_err(|error| Failure::usage(format!("{NODE}: {error}")));
    }
    Name::of_this_host().ok_or_else(|| Failure::usage("the name of this host is none for a node: --node gives one"))
}

pub(crate) fn no_such_volume(name: &str) -> Failure {
    let message = format!(
        "no volume {name} is known on this machine; `vhd volume status` shows all, `vhd volume add DIR` makes one known"
    );
    Failure::new(Kind::NoSuchVolume, message)
}

pub(crate) fn not_a_member(volume: &KnownVolume, node: &str) -> Failure {
    let name = &volume.name;
    let message = format!("node {node} takes no part in volume {name}; `vhd volume status {name}` shows who does");
    Failure::new(Kind::NotAMember, message)
}

fn state_dir() -> PathBuf {
    match std::env::var_os(STATE_DIR) {
        Some(dir) => dir.into(),
        None => lasting_directory().unwrap_or_else(directory),
    }
}
