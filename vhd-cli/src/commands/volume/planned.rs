//! `vhd volume move`: another node coordinates, by plan.

use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use csv_lock::NodeId;
use serde::Serialize;

use super::agent::LOOK;
use crate::codes::Kind;
use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
use crate::running::Name;
use crate::volume::{Machine, member_of, peers_of};

pub(super) const NAME: &str = "volume move";

/// How long a move may take before it is given up.
const LIMIT: Duration = Duration::from_secs(10);

/// Arguments of `vhd volume move`.
#[derive(Args, Debug)]
pub(super) struct MoveArgs {
    /// The volume
    #[arg(value_name = "V")]
    volume: Name,
    /// The node that shall coordinate it
    #[arg(long, value_name = "NODE")]
    to: Name,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Serialize)]
struct MoveReport {
    volume: String,
    from: Option<String>,
    to: String,
    epoch: u64,
    milliseconds: u128,
}

impl fmt::Display for MoveReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { volume, to, epoch, .. } = self;
        match self.from.as_ref().filter(|from| *from != to) {
            Some(from) => writeln!(f, "Moved volume {volume} from {from} to {to}, epoch {epoch}"),
            None => writeln!(f, "Node {to} coordinates volume {volume}, epoch {epoch}"),
        }
    }
}

pub(super) fn run(args: &MoveArgs) -> Result<Exit, Failure> {
    let machine = Machine::open()?;
    let volume = machine.volume(args.volume.as_str())?;
    let peers = peers_of(&machine, &volume)?;
    let to = member_of(&*peers, &volume, &args.to)?;
    if !peers.running()?.contains(&to) {
        let message = format!("no agent of node {to} is running: `vhd volume agent --node {to}`");
        return Err(Failure::new(Kind::NoAgent, message));
    }
    let before = peers.coordinator()?;
    let begin = Instant::now();
    peers.wish(&to, LIMIT)?;
    let leader = loop {
        match peers.coordinator()? {
            Some(leader) if leader.node == to => break leader,
            _ if begin.elapsed() > LIMIT => {
                peers.end_wish(&to)?;
                return Err(gave_up(&volume.name, &to));
            }
            _ => thread::sleep(LOOK / 4),
        }
    };
    let took = begin.elapsed();
    peers.end_wish(&to)?;
    let from = before.map(|leader| leader.node.0);
    if let Some(from) = from.as_ref().filter(|from| **from != to.0) {
        peers.note(&to, "moved", &format!("from {from} by plan"))?;
    }
    let report = MoveReport {
        volume: volume.name,
        from,
        to: to.0,
        epoch: leader.epoch.0,
        milliseconds: took.as_millis(),
    };
    output::report(args.report, NAME, &report)?;
    Ok(Exit::Ok)
}

fn gave_up(volume: &str, to: &NodeId) -> Failure {
    let message = format!(
        "node {to} did not become the coordinator of volume {volume} within {} s; `vhd volume status {volume}` shows why",
        LIMIT.as_secs()
    );
    Failure::new(Kind::MoveFailed, message)
}
