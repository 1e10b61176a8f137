//! Three machines with a member of etcd, a node and its agent each, and the volume `v` that all of them have.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;
use tempfile::TempDir;

use crate::certificates;
use crate::etcd::{Member, leads};
use crate::network::Networks;
use crate::support::{Machine, Process, wait};

pub(crate) const NODES: [&str; 3] = ["a", "b", "c"];
/// The lease of coordinators, in seconds.
pub(crate) const LEASE: &str = "2";

/// The machines, and what runs on them that faults happen to.
pub(crate) struct World {
    // Dropped in this order.
    pub(crate) agents: [Option<Process>; 3],
    pub(crate) members: Vec<Member>,
    pub(crate) site: Arc<Site>,
}

/// The machines, their networks, and the directory that they share.
pub(crate) struct Site {
    pub(crate) machines: Vec<Machine>,
    pub(crate) networks: Networks,
    pub(crate) dir: Arc<TempDir>,
}

impl std::ops::Deref for World {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl World {
    pub(crate) fn new() -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        fs::create_dir(dir.path().join("v")).unwrap();
        let networks = Networks::new(3);
        let indexes = 0..3_u8;
        let peers = indexes
            .clone()
            .map(|index| format!("{}=http://{}:2380", NODES[usize::from(index)], networks.address(index)));
        let cluster = peers.collect::<Vec<_>>().join(",");
        for index in indexes.clone() {
            let node = NODES[usize::from(index)];
            certificates::make(dir.path(), "ca", node, node, networks.address(index));
        }
        let members = indexes.clone().map(|index| {
            let node = NODES[usize::from(index)];
            Member::start(
                dir.path(),
                &networks.name(index),
                node,
                networks.address(index),
                &cluster,
            )
        });
        let members = members.collect();
        let machines = indexes.map(|index| {
            let node = NODES[usize::from(index)];
            let listen = format!("{}:7400", networks.address(index));
            let machine = Machine::with_state(&dir, &format!("state-{node}"), &["--lease", LEASE, "--listen", &listen]);
            machine.of_node(node).in_network(&networks.name(index))
        });
        let machines = machines.collect();
        let world = Self {
            agents: [None, None, None],
            members,
            site: Arc::new(Site {
                machines,
                networks,
                dir,
            }),
        };
        wait("etcd to have a leader", || world.etcd_leader().is_some());
        world
    }

    /// The volume is made by the first machine and known to all; all nodes take part, and their agents run.
    pub(crate) fn with_volume() -> Self {
        let mut world = Self::new();
        let made = world.init("v", "v", "a");
        world.machines[0].ok(&made.iter().map(String::as_str).collect::<Vec<_>>());
        for index in 0..3 {
            world.join(index);
        }
        world.coordinator(0);
        world
    }

    /// The command that makes a volume with this etcd and the certificate of a file.
    pub(crate) fn init(&self, dir: &str, name: &str, file: &str) -> Vec<String> {
        let endpoints = (0..3).map(|index| format!("{}:2379", self.networks.address(index)));
        let engine = format!("etcd://{}", endpoints.collect::<Vec<_>>().join(","));
        let mut words: Vec<String> = [
            "volume",
            "init",
            dir,
            "--name",
            name,
            "--engine",
            &engine,
            "--etcd-any-version",
        ]
        .map(str::to_owned)
        .to_vec();
        words.extend(certificates::options(self.dir.path(), "ca", file));
        words
    }

    fn join(&mut self, index: usize) {
        let site = Arc::clone(&self.site);
        let (machine, node) = (&site.machines[index], NODES[index]);
        if index > 0 {
            let mut add: Vec<String> = ["volume", "add", "v", "--etcd-any-version"].map(str::to_owned).to_vec();
            add.extend(certificates::options(self.dir.path(), "ca", node));
            machine.ok(&add.iter().map(String::as_str).collect::<Vec<_>>());
        }
        machine.ok(&["volume", "join", "v"]);
        self.agents[index] = Some(machine.agent(node));
    }
}

impl Site {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another machine in the network of one, which knows nothing.
    pub(crate) fn fresh(&self, index: u8) -> Machine {
        Machine::with_state(&self.dir, "state-fresh", &[]).in_network(&self.networks.name(index))
    }

    /// Which member of etcd leads.
    pub(crate) fn etcd_leader(&self) -> Option<usize> {
        (0..3_u8)
            .find(|&index| self.networks.inside(index, leads))
            .map(usize::from)
    }

    /// Waits until a coordinator answers the machine; which node it is, and its epoch.
    pub(crate) fn coordinator(&self, machine: usize) -> (usize, u64) {
        let mut found = (0, 0);
        wait("a coordinator", || {
            let status = self.status(machine);
            let node = NODES.iter().position(|node| status["coordinator"] == *node);
            found = (node.unwrap_or(0), status["epoch"].as_u64().unwrap_or(0));
            status["state"] == "online" && node.is_some()
        });
        found
    }

    pub(crate) fn status(&self, machine: usize) -> Value {
        self.machines[machine].status()
    }
}
