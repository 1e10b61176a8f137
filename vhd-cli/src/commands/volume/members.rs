//! `vhd volume join`, `leave` and `evict`: which nodes take part.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use csv_lock::{KnownVolume, NodeId};
use serde::Serialize;

use super::agent::LOOK;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
use crate::running::Name;
use crate::volume::{Machine, Peers, Session, member_of, not_a_member, peers_of, this_node};

pub(super) const JOIN: &str = "volume join";
pub(super) const LEAVE: &str = "volume leave";
pub(super) const EVICT: &str = "volume evict";

/// How long a coordinator may take to say who writes which disk: longer than a takeover.
const ANSWER: Duration = Duration::from_secs(20);
/// How long a node may take to end its part: longer than a silent one is left alone.
const END: Duration = Duration::from_secs(10);

/// Arguments of `vhd volume join`.
#[derive(Args, Debug)]
pub(super) struct JoinArgs {
    /// The volume
    #[arg(value_name = "V")]
    volume: Name,
    /// The node [default: the name of this host]
    #[arg(long, value_name = "NAME")]
    node: Option<Name>,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

/// Arguments of `vhd volume leave`.
#[derive(Args, Debug)]
pub(super) struct LeaveArgs {
    #[command(flatten)]
    join: JoinArgs,
}

impl std::ops::Deref for LeaveArgs {
    type Target = JoinArgs;

    fn deref(&self) -> &JoinArgs {
        &self.join
    }
}

/// Arguments of `vhd volume evict`.
#[derive(Args, Debug)]
pub(super) struct EvictArgs {
    /// The volume
    #[arg(value_name = "V")]
    volume: Name,
    /// The node
    #[arg(value_name = "NODE")]
    node: Name,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Serialize)]
struct MemberReport {
    volume: String,
    node: String,
    /// It takes part now.
    member: bool,
    /// It did so before.
    changed: bool,
    /// The agent of the node runs.
    agent: bool,
}

impl fmt::Display for MemberReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, node, .. } = self;
        match (self.member, self.changed) {
            (true, true) => writeln!(f, "Node {node} takes part in volume {volume}")?,
            (true, false) => writeln!(f, "Node {node} takes part in volume {volume} already")?,
            (false, _) => writeln!(f, "Node {node} takes no part in volume {volume} any more")?,
        }
        match self.member && !self.agent {
            true => writeln!(f, "Its agent is not running: `vhd volume agent --node {node}`"),
            false => Ok(()),
        }
    }
}

pub(super) fn join(args: &JoinArgs) -> Result<Exit, Failure> {
    let machine = Machine::open()?;
    let volume = machine.volume(args.volume.as_str())?;
    let node = NodeId(this_node(args.node.as_ref())?.to_string());
    let peers = peers_of(&machine, &volume)?;
    let changed = peers.join(&node)?;
    if changed {
        peers.note(&node, "joined", "")?;
    }
    let report = MemberReport {
        agent: machine.has_agent(&node),
        volume: volume.name,
        node: node.0,
        member: true,
        changed,
    };
    output::report(args.report, JOIN, &report)?;
    Ok(Exit::Ok)
}

pub(super) fn leave(args: &LeaveArgs) -> Result<Exit, Failure> {
    let machine = Machine::open()?;
    let volume = machine.volume(args.volume.as_str())?;
    let node = machine.member(&volume, args.node.as_ref())?;
    remove(&machine, volume, node, "left", args.report, LEAVE)
}

pub(super) fn evict(args: &EvictArgs) -> Result<Exit, Failure> {
    let machine = Machine::open()?;
    let volume = machine.volume(args.volume.as_str())?;
    let node = member_of(&*peers_of(&machine, &volume)?, &volume, &args.node)?;
    remove(&machine, volume, node, "evicted", args.report, EVICT)
}

/// Ends a node's part, unless it has disks open, and waits until its agent has noticed.
fn remove(
    machine: &Machine,
    volume: KnownVolume,
    node: NodeId,
    kind: &str,
    report: ReportArgs,
    command: &str,
) -> Result<Exit, Failure> {
    let peers = peers_of(machine, &volume)?;
    refuse_disks(machine, &*peers, &volume, &node)?;
    if !peers.leave(&node)? {
        return Err(not_a_member(&volume, &node.0));
    }
    peers.note(&node, kind, "")?;
    let until = Instant::now() + END;
    let leads = || Ok::<_, Failure>(peers.coordinator()?.is_some_and(|leader| leader.node == node));
    while leads()? && Instant::now() < until {
        thread::sleep(LOOK);
    }
    let report_of = MemberReport {
        agent: peers.running()?.contains(&node),
        volume: volume.name,
        node: node.0,
        member: false,
        changed: true,
    };
    output::report(report, command, &report_of)?;
    Ok(Exit::Ok)
}

/// A node that writes disks stays: who else should give the right to write them back?
fn refuse_disks(machine: &Machine, peers: &dyn Peers, volume: &KnownVolume, node: &NodeId) -> Result<(), Failure> {
    if peers.running()?.is_empty() {
        // Nobody can be asked. A right to write that is left is freed when its process is proven to be gone.
        return Ok(());
    }
    let disks = Session::to_ask(machine, volume)?.disks(ANSWER)?;
    let held = disks
        .iter()
        .filter(|(_, disk)| disk.writer.as_ref().is_some_and(|writer| writer.node == *node));
    let held: Vec<&str> = held.map(|(path, _)| path.as_str()).collect();
    if held.is_empty() {
        return Ok(());
    }
    let message = format!(
        "node {node} writes {} of volume {}: close it first, or free it with `vhd volume fence {node} --confirm`",
        held.join(", "),
        volume.name
    );
    Err(Failure::new(Kind::NodeHasDisks, message))
}
