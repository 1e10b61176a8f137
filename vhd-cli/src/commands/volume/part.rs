//! A node's part in one volume: a thread that campaigns, coordinates, and begins anew.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use csv_lock::{Address, HostVolume, KnownVolume, Node, NodeId, NodeNet, SystemClock, TlsServer};

use super::bell::Bell;
use super::steering::Steering;
use crate::failure::Failure;
use crate::output;
use crate::running::Claim;
use crate::volume::{self, EngineName, Machine, format_of, part_of};

/// How long a node waits between two campaigns.
const CAMPAIGN: Duration = Duration::from_millis(25);

/// What all parts of a node have in common.
pub(super) struct Taking {
    pub(super) machine: Machine,
    pub(super) claim: Claim,
    pub(super) node: NodeId,
    pub(super) lease: Duration,
    /// Where nodes of other machines are answered.
    pub(super) server: Option<Arc<TlsServer>>,
    pub(super) bell: Arc<Bell>,
}

/// A node's part in one volume. It ends in order when it is dropped.
pub(super) struct Part {
    pub(super) steering: Arc<Steering>,
    thread: Option<JoinHandle<()>>,
}

impl Part {
    pub(super) fn begin(taking: &Taking, volume: &KnownVolume) -> Result<Self, Failure> {
        let Taking {
            machine, node, bell, ..
        } = taking;
        let rings = Arc::clone(bell);
        let listens = taking.server.as_ref().map(|server| server.address());
        let volume::Part { engine, peers } =
            part_of(machine, volume, node, listens, taking.lease, move || rings.ring())?;
        let registry = machine.registry();
        let mut net = NodeNet::new(registry.machine()?, registry.access()?.certificates);
        let beyond = volume.engine.parse() != Ok(EngineName::Local);
        if let Some(server) = taking.server.as_ref().filter(|_| beyond) {
            net = net.serving(volume.id, Arc::clone(server));
        }
        if beyond && taking.server.is_none() {
            output::warning(format_args!(
                "volume {}: other machines can't reach this node when it coordinates: --listen ADDR:PORT",
                volume.name
            ));
        }
        let steering = Arc::new(Steering::new(peers, volume, node, Arc::clone(bell)));
        let taking_part = Node {
            clock: SystemClock,
            net,
            volume: HostVolume::new(&volume.dir),
            engine,
            format: format_of(volume)?,
            node: node.clone(),
            address: address(taking, volume, beyond, listens)?.to_string(),
            patience: CAMPAIGN,
        };
        let steers = Arc::clone(&steering);
        let thread = thread::Builder::new().name(format!("volume-{}", volume.name));
        let thread = thread.spawn(move || taking_part.run(&*steers));
        let thread = thread.map_err(|error| Failure::io("start a thread for", &volume.dir, &error))?;
        Ok(Self {
            steering,
            thread: Some(thread),
        })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.steering.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // Warned of.
        let _ = self.steering.say();
    }
}

/// Where the agent listens while it coordinates a volume, also of other machines.
fn address(
    taking: &Taking,
    volume: &KnownVolume,
    beyond: bool,
    listens: Option<SocketAddr>,
) -> Result<Address, Failure> {
    let path = taking.claim.place().join(format!("{}.sock", volume.id));
    let socket = path.to_str().map(str::to_owned).ok_or_else(|| {
        let message = format!(
            "the directory {} has no name in Unicode",
            taking.claim.place().display()
        );
        Failure::usage(message)
    })?;
    let machine = taking.machine.registry().machine()?;
    Ok(Address {
        machine: beyond.then_some(machine),
        node: taking.node.clone(),
        listens: listens.filter(|_| beyond),
        socket,
    })
}
