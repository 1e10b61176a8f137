//! `vhd volume status`: volumes, their coordinators, nodes and disks.

use std::fmt;
use std::time::Duration;

use clap::Args;
use csv_lock::{CsvError, Disk, KnownVolume, Leader, Member, NodeId};
use serde::Serialize;

use super::events::utc;
use super::table::Table;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
use crate::running::Name;
use crate::volume::{Machine, Peers, Session, format_of, no_such_volume, peers_of};

pub(super) const NAME: &str = "volume status";

/// How long a coordinator may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// Arguments of `vhd volume status`.
#[derive(Args, Debug)]
pub(super) struct StatusArgs {
    /// The volume [default: all that this machine knows]
    #[arg(value_name = "V")]
    volume: Option<Name>,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Serialize)]
struct StatusReport {
    volumes: Vec<VolumeStatus>,
}

#[derive(Serialize)]
struct VolumeStatus {
    name: String,
    dir: String,
    id: String,
    cluster: Option<String>,
    engine: String,
    /// The engine's servers, if it has any.
    votes: Option<Votes>,
    /// `online` if a coordinator answers, else `offline`.
    state: &'static str,
    /// Why it is offline.
    reason: Option<String>,
    coordinator: Option<String>,
    epoch: Option<u64>,
    nodes: Vec<NodeStatus>,
    disks: Vec<DiskStatus>,
}

/// The servers of the engine.
#[derive(Serialize)]
struct Votes {
    answering: usize,
    total: usize,
    /// More than half of them answer: without that nobody is elected.
    quorum: bool,
}

#[derive(Serialize)]
struct NodeStatus {
    name: String,
    /// `up` if its agent runs, else `down`.
    state: &'static str,
    /// `coordinator` or `follower`; `None` for one that is down.
    role: Option<&'static str>,
    joined: String,
    /// What its agent said last.
    said: Option<String>,
}

#[derive(Serialize)]
struct DiskStatus {
    path: String,
    /// The node that writes it.
    writer: Option<String>,
    session: Option<String>,
    /// How that node reaches the data: `direct`.
    io: Option<&'static str>,
    generation: u64,
    /// The coordinator allocates its blocks.
    allocated_by_coordinator: bool,
}

pub(super) fn run(args: &StatusArgs) -> Result<Exit, Failure> {
    let machine = Machine::find()?;
    let volumes = match (&machine, &args.volume) {
        (Some(machine), Some(name)) => vec![machine.volume(name.as_str())?],
        (Some(machine), None) => machine.registry().volumes()?,
        (None, Some(name)) => return Err(no_such_volume(name.as_str())),
        (None, None) => Vec::new(),
    };
    let look = |volume| machine.as_ref().map(|machine| look_at(machine, volume));
    let volumes = volumes.into_iter().filter_map(look).collect();
    output::report(args.report, NAME, &StatusReport { volumes })?;
    Ok(Exit::Ok)
}

fn look_at(machine: &Machine, volume: KnownVolume) -> VolumeStatus {
    let known = peers_of(machine, &volume).and_then(|peers| Ok(Known::of(&*peers)?));
    let format = format_of(&volume);
    let leader = known.as_ref().ok().and_then(|known| known.leader.clone());
    let disks = match (&format, &known) {
        (Err(failure), _) | (_, Err(failure)) => Err(failure.message().to_owned()),
        (Ok(_), Ok(_)) if leader.is_none() => {
            Err("no node coordinates it: is `vhd volume agent` running for one that takes part?".to_owned())
        }
        (Ok(_), Ok(_)) => ask(machine, &volume),
    };
    let (members, running, votes) = known.map_or_else(
        |_| Default::default(),
        |known| (known.members, known.running, known.votes),
    );
    let nodes = members.into_iter().map(|member| {
        let up = running.contains(&member.node);
        let leads = leader.as_ref().is_some_and(|leader| leader.node == member.node);
        NodeStatus {
            state: if up { "up" } else { "down" },
            role: up.then_some(if leads { "coordinator" } else { "follower" }),
            joined: utc(member.joined_ms),
            said: Some(member.condition).filter(|said| !said.is_empty()),
            name: member.node.0,
        }
    });
    VolumeStatus {
        dir: output::path_text(&volume.dir),
        id: volume.id.to_string(),
        cluster: format.ok().map(|format| format.cluster.to_string()),
        engine: volume.engine,
        votes: votes.map(|(answering, total)| Votes {
            answering,
            total,
            quorum: answering > total / 2,
        }),
        state: if disks.is_ok() { "online" } else { "offline" },
        nodes: nodes.collect(),
        name: volume.name,
        coordinator: leader.as_ref().map(|leader| leader.node.0.clone()),
        epoch: leader.as_ref().map(|leader| leader.epoch.0),
        reason: disks.as_ref().err().cloned(),
        disks: disks.unwrap_or_default().into_iter().map(disk_status).collect(),
    }
}

/// What nodes know of each other.
struct Known {
    leader: Option<Leader>,
    members: Vec<Member>,
    running: Vec<NodeId>,
    votes: Option<(usize, usize)>,
}

impl Known {
    fn of(peers: &dyn Peers) -> Result<Self, CsvError> {
        Ok(Self {
            leader: peers.coordinator()?,
            members: peers.members()?,
            running: peers.running()?,
            votes: peers.votes(),
        })
    }
}

fn ask(machine: &Machine, volume: &KnownVolume) -> Result<Vec<(String, Disk)>, String> {
    let session = Session::to_ask(machine, volume);
    let mut session = session.map_err(|failure| failure.message().to_owned())?;
    session.disks(ANSWER).map_err(|error| error.to_string())
}

fn disk_status((path, disk): (String, Disk)) -> DiskStatus {
    let writer = disk.writer.as_ref();
    DiskStatus {
        path,
        io: writer.map(|_| "direct"),
        session: writer.map(|writer| writer.id.to_string()),
        writer: writer.map(|writer| writer.node.0.clone()),
        generation: disk.generation.0,
        allocated_by_coordinator: disk.table.is_some(),
    }
}

impl fmt::Display for StatusReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.volumes.is_empty() {
            return writeln!(f, "no volumes");
        }
        for (index, volume) in self.volumes.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{volume}")?;
        }
        Ok(())
    }
}

impl fmt::Display for VolumeStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            name,
            state,
            dir,
            engine,
            ..
        } = self;
        writeln!(f, "Volume {name}: {state}, in {dir}, engine {engine}")?;
        if let (Some(node), Some(epoch)) = (&self.coordinator, self.epoch) {
            writeln!(f, "  coordinator {node}, epoch {epoch}")?;
        }
        if let Some(Votes {
            answering,
            total,
            quorum,
        }) = self.votes
        {
            let lost = if quorum { "" } else { ": no majority, nobody is elected" };
            writeln!(f, "  {answering} of {total} votes of the engine answer{lost}")?;
        }
        if let Some(reason) = &self.reason {
            writeln!(f, "  {reason}")?;
        }
        let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
        if !self.nodes.is_empty() {
            let mut nodes = Table::new(["node", "state", "role", "said last"]);
            for node in &self.nodes {
                nodes.row([
                    node.name.clone(),
                    node.state.into(),
                    or_none(node.role),
                    or_none(node.said.as_deref()),
                ]);
            }
            write!(f, "{nodes}")?;
        }
        if !self.disks.is_empty() {
            let mut disks = Table::new(["disk", "writer", "io", "generation"]);
            for disk in &self.disks {
                disks.row([
                    disk.path.clone(),
                    or_none(disk.writer.as_deref()),
                    or_none(disk.io),
                    disk.generation.to_string(),
                ]);
            }
            write!(f, "{disks}")?;
        }
        Ok(())
    }
}
