//! `vhd volume agent`: one process per node. It follows what the registry says about its node, and takes part in its volumes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use clap::Args;
use csv_lock::{
    CsvError, Ended, Epoch, HostVolume, KnownVolume, LocalEngine, Node, NodeId, Registry, Steer, SystemClock, UnixNet,
};

use super::metrics::{self, Sample};
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::interrupt::flag_on_interrupt;
use crate::output;
use crate::running::{Claim, Name};
use crate::volume::{Machine, format_of, this_node};

pub(super) const NAME: &str = "volume agent";

/// How often an agent looks what is wanted of it.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How long a node waits between two campaigns.
const CAMPAIGN: Duration = Duration::from_millis(25);

/// Arguments of `vhd volume agent`.
#[derive(Args, Debug)]
pub(super) struct AgentArgs {
    /// The node [default: the name of this host]
    #[arg(long, value_name = "NAME")]
    node: Option<Name>,
    /// Where the agents of other machines are answered
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where Prometheus may ask how the node takes part (http://ADDR:PORT/metrics); nobody is asked for a name there
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// How long a coordinator may be silent before this agent kills it and takes its place
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    lease: u64,
}

pub(super) fn run(args: &AgentArgs) -> Result<Exit, Failure> {
    if args.listen.is_some() {
        let message =
            "messages between machines are not built yet: agents without --listen serve the processes of one machine";
        return Err(Failure::new(Kind::VolumeEngine, message));
    }
    let machine = Machine::open()?;
    let name = this_node(args.node.as_ref())?;
    let claim = machine.claim_agent(&name)?;
    let node = NodeId(name.to_string());
    let stop = flag_on_interrupt();
    let shown: Shown = Arc::default();
    if let Some(address) = args.metrics {
        let shown = Arc::clone(&shown);
        metrics::serve(address, move || samples(&shown))?;
    }
    output::eprint(&format!("vhd: the agent of node {node} is running\n"));
    let mut agent = Agent {
        shown,
        machine,
        claim,
        node,
        lease: Duration::from_secs(args.lease),
        parts: BTreeMap::new(),
        complaint: None,
    };
    while !stop.load(Ordering::Relaxed) {
        let followed = agent.follow();
        agent.complain(followed.err());
        thread::sleep(LOOK);
    }
    Ok(Exit::Ok)
}

/// What metrics are taken of.
type Shown = Arc<Mutex<Vec<Arc<Steering>>>>;

fn samples(shown: &Shown) -> Vec<Sample> {
    let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    shown.iter().map(|steering| steering.sample()).collect()
}

struct Agent {
    machine: Machine,
    shown: Shown,
    claim: Claim,
    node: NodeId,
    lease: Duration,
    /// The volumes that the node takes part in, by name.
    parts: BTreeMap<String, Part>,
    /// What was said last, so that it is said once.
    complaint: Option<String>,
}

impl Agent {
    /// Takes part in the volumes that the registry says, and in no other.
    fn follow(&mut self) -> Result<(), Failure> {
        let mut wanted = Vec::new();
        for volume in self.machine.registry().volumes()? {
            let members = self.machine.registry().members(volume.id)?;
            if members.iter().any(|member| member.node == self.node) {
                wanted.push(volume);
            }
        }
        self.parts
            .retain(|name, _| wanted.iter().any(|volume| volume.name == *name));
        let mut result = Ok(());
        // What takes part from now on is shown from the next look on.
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) =
            self.parts.values().map(|part| Arc::clone(&part.steering)).collect();
        for volume in wanted {
            match self.parts.get(&volume.name) {
                Some(part) => part.steering.look(self.machine.registry())?,
                None => match Part::begin(&self.machine, &self.claim, &self.node, &volume, self.lease) {
                    Ok(part) => drop(self.parts.insert(volume.name, part)),
                    Err(failure) => result = Err(failure),
                },
            }
        }
        result
    }

    fn complain(&mut self, failure: Option<Failure>) {
        let text = failure.map(|failure| failure.message().to_owned());
        if let Some(text) = text.as_ref().filter(|text| self.complaint.as_ref() != Some(text)) {
            output::warning(text);
        }
        self.complaint = text;
    }
}

/// A node's part in one volume. It ends in order when it is dropped.
struct Part {
    steering: Arc<Steering>,
    thread: Option<JoinHandle<()>>,
}

impl Part {
    fn begin(
        machine: &Machine,
        claim: &Claim,
        node: &NodeId,
        volume: &KnownVolume,
        lease: Duration,
    ) -> Result<Self, Failure> {
        let registry = machine.registry_path();
        let steering = Arc::new(Steering::new(&registry, volume, node)?);
        let taking_part = Node {
            clock: SystemClock,
            net: UnixNet::default(),
            volume: HostVolume::new(&volume.dir),
            engine: LocalEngine::open(&volume.dir, &registry, node.clone(), Some(lease))?,
            format: format_of(volume)?,
            node: node.clone(),
            address: address(claim, volume)?,
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
        self.steering.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Where the agent listens while it coordinates a volume.
fn address(claim: &Claim, volume: &KnownVolume) -> Result<String, Failure> {
    let path = claim.place().join(format!("{}.sock", volume.id));
    path.to_str().map(str::to_owned).ok_or_else(|| {
        let message = format!("the directory {} has no name in Unicode", claim.place().display());
        Failure::usage(message)
    })
}

/// What is wanted of a node's part in a volume, and what is said of it.
struct Steering {
    registry: Registry,
    volume: KnownVolume,
    node: NodeId,
    stop: AtomicBool,
    /// Another node shall coordinate.
    yields: AtomicBool,
    /// The epoch that the node coordinates, 0 if it does not.
    epoch: AtomicU64,
    terms: AtomicU64,
    failures: AtomicU64,
    /// What was said last.
    condition: Mutex<String>,
}

impl Steering {
    fn new(registry: &Path, volume: &KnownVolume, node: &NodeId) -> Result<Self, Failure> {
        Ok(Self {
            registry: Registry::open(registry)?,
            volume: volume.clone(),
            node: node.clone(),
            stop: AtomicBool::new(false),
            yields: AtomicBool::new(false),
            epoch: AtomicU64::new(0),
            terms: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            condition: Mutex::default(),
        })
    }

    fn sample(&self) -> Sample {
        let epoch = self.epoch.load(Ordering::Relaxed);
        Sample {
            volume: self.volume.name.clone(),
            node: self.node.to_string(),
            epoch: (epoch > 0).then_some(epoch),
            terms: self.terms.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Looks whether somebody wishes a move.
    fn look(&self, registry: &Registry) -> Result<(), Failure> {
        let other = registry.wished(self.volume.id)?.is_some_and(|node| node != self.node);
        self.yields.store(other, Ordering::Release);
        Ok(())
    }

    /// Says how it goes, where that is new. An agent does not stop because it cannot be said.
    fn say(&self, kind: &str, condition: String) {
        let mut last = self.condition.lock().unwrap_or_else(PoisonError::into_inner);
        if *last == condition {
            return;
        }
        let (volume, node) = (self.volume.id, &self.node);
        let said = self.registry.set_condition(volume, node, &condition);
        if let Err(error) = said.and_then(|()| self.registry.note(volume, node, kind, &condition)) {
            output::warning(format_args!("volume {}: {condition}; {error}", self.volume.name));
        }
        *last = condition;
    }
}

impl Steer for Steering {
    fn stops(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn campaigns(&self) -> bool {
        !self.yields.load(Ordering::Acquire)
    }

    fn yields(&self) -> bool {
        self.yields.load(Ordering::Acquire)
    }

    fn leads(&self, epoch: Epoch) {
        self.epoch.store(epoch.0, Ordering::Relaxed);
        self.terms.fetch_add(1, Ordering::Relaxed);
        self.say("coordinates", format!("coordinates in epoch {epoch}"));
    }

    fn led(&self, ended: &Ended) {
        self.epoch.store(0, Ordering::Relaxed);
        match ended {
            Ended::Stopped | Ended::Rotate => self.say("stepped-down", "ended its term in order".into()),
            Ended::TermOver => self.say("lost-term", "its term ran out".into()),
            Ended::EpochOver(error) => self.say("lost-epoch", error.to_string()),
        }
    }

    fn failed(&self, error: &CsvError) {
        self.epoch.store(0, Ordering::Relaxed);
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.say("failed", error.to_string());
    }
}
