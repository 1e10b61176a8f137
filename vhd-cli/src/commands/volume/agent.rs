//! `vhd volume agent`: one process per node. It follows what is said about its node, and takes part in its volumes.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use csv_lock::{Changes, NodeId, Registry, TlsServer};

use super::bell::Bell;
use super::metrics::{self, Sample};
use super::part::{Part, Taking};
use super::steering::Steering;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::interrupt::flag_on_interrupt;
use crate::output;
use crate::running::Name;
use crate::volume::{Machine, this_node};

pub(super) const NAME: &str = "volume agent";

/// How often it is looked for what a command waits for.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// How often an agent looks though nobody had news for it: for what ends by its time.
const QUIET: Duration = Duration::from_secs(1);
/// How often it sees whether it shall end.
const STOPS: Duration = Duration::from_millis(100);
/// News that come together are looked at together.
const TOGETHER: Duration = Duration::from_millis(5);

/// Arguments of `vhd volume agent`.
#[derive(Args, Debug)]
pub(super) struct AgentArgs {
    /// The node [default: the name of this host]
    #[arg(long, value_name = "NAME")]
    node: Option<Name>,
    /// Where the nodes of other machines are answered: an address that they reach. Needs certificates, see `vhd volume init --help`
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<SocketAddr>,
    /// Where Prometheus may ask how the node takes part (http://ADDR:PORT/metrics); nobody is asked for a name there
    #[arg(long, value_name = "ADDR:PORT")]
    metrics: Option<SocketAddr>,
    /// How long a coordinator may be silent before another node takes its place; of nodes of this machine, it is killed first
    #[arg(long, value_name = "SECONDS", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    lease: u64,
}

pub(super) fn run(args: &AgentArgs) -> Result<Exit, Failure> {
    let machine = Machine::open()?;
    let name = this_node(args.node.as_ref())?;
    let node = NodeId(name.to_string());
    let claim = machine.claim_agent(&name)?;
    let server = args
        .listen
        .map(|address| listen(&machine, &node, address))
        .transpose()?;
    let stop = flag_on_interrupt();
    let shown: Shown = Arc::default();
    if let Some(address) = args.metrics {
        let shown = Arc::clone(&shown);
        metrics::serve(address, move || samples(&shown))?;
    }
    let bell: Arc<Bell> = Arc::default();
    hear_of_changes(&machine, &bell)?;
    output::eprint(&format!("vhd: the agent of node {node} is running\n"));
    let taking = Taking {
        machine,
        claim,
        node,
        lease: Duration::from_secs(args.lease),
        server,
        bell,
    };
    let mut agent = Agent {
        shown,
        taking,
        parts: BTreeMap::new(),
        complaint: None,
    };
    agent.run(&stop);
    Ok(Exit::Ok)
}

/// Answers the nodes of other machines.
fn listen(machine: &Machine, node: &NodeId, address: SocketAddr) -> Result<Arc<TlsServer>, Failure> {
    if address.ip().is_unspecified() {
        let message = format!("--listen {address}: other machines need an address that reaches this one");
        return Err(Failure::usage(message));
    }
    let Some(files) = machine.registry().access()?.certificates else {
        let message = "messages between machines need certificates: `vhd volume init` or `add`, with --tls-cert, --tls-key and --tls-ca, \
                       makes them known on this machine";
        return Err(Failure::new(Kind::NoCertificate, message));
    };
    files.check(Some(node))?;
    let server = TlsServer::bind(address, files).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => Kind::AddressInUse,
            _ => Kind::Listen,
        };
        Failure::new(kind, format!("can't listen on {address} for other machines: {error}"))
    })?;
    output::eprint(&format!("vhd: other machines are answered on {}\n", server.address()));
    Ok(Arc::new(server))
}

/// Has the bell ring at each change of the machine's registry.
fn hear_of_changes(machine: &Machine, bell: &Arc<Bell>) -> Result<(), Failure> {
    let changes = Changes::of(Registry::open(&machine.registry_path())?)?;
    let bell = Arc::clone(bell);
    let thread = thread::Builder::new().name("changes".into());
    let hearing = thread.spawn(move || {
        loop {
            if changes.wait(QUIET) {
                bell.ring();
            }
        }
    });
    hearing.map_err(|error| Failure::io("start a thread for", &machine.registry_path(), &error))?;
    Ok(())
}

/// What metrics are taken of.
type Shown = Arc<Mutex<Vec<Arc<Steering>>>>;

fn samples(shown: &Shown) -> Vec<Sample> {
    let shown = shown.lock().unwrap_or_else(PoisonError::into_inner);
    shown.iter().map(|steering| steering.sample()).collect()
}

struct Agent {
    shown: Shown,
    taking: Taking,
    /// The volumes that the node takes part in, by name.
    parts: BTreeMap<String, Part>,
    /// What was said last, so that it is said once.
    complaint: Option<String>,
}

impl Agent {
    fn run(&mut self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let followed = self.follow();
            self.complain(followed.err());
            let looked = Instant::now();
            while !stop.load(Ordering::Relaxed) && looked.elapsed() < QUIET {
                if self.taking.bell.wait(STOPS) {
                    thread::sleep(TOGETHER);
                    break;
                }
            }
        }
    }

    /// Takes part in the volumes that the registry says, and in no other.
    fn follow(&mut self) -> Result<(), Failure> {
        let registry = self.taking.machine.registry();
        let mut wanted = Vec::new();
        for volume in registry.volumes()? {
            let members = registry.members(volume.id)?;
            if members.iter().any(|member| member.node == self.taking.node) {
                wanted.push(volume);
            }
        }
        self.parts
            .retain(|name, _| wanted.iter().any(|volume| volume.name == *name));
        let mut result = Ok(());
        for volume in wanted {
            if !self.parts.contains_key(&volume.name) {
                match Part::begin(&self.taking, &volume) {
                    Ok(part) => drop(self.parts.insert(volume.name.clone(), part)),
                    Err(failure) => result = Err(failure.about(format_args!("volume {}", volume.name))),
                }
            }
            if let Some(Err(error)) = self.parts.get(&volume.name).map(|part| part.steering.look()) {
                result = Err(Failure::from(error).about(format_args!("volume {}", volume.name)));
            }
        }
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) =
            self.parts.values().map(|part| Arc::clone(&part.steering)).collect();
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
