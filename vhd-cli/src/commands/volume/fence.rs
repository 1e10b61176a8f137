//! `vhd volume fence`: a node writes no more, with proof, and its disks are free.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::time::Duration;

use clap::Args;
use csv_lock::{Fence as _, KnownVolume, LocalKill, NodeId, Operator, Process};
use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::output::{self, ReportArgs};
use crate::running::Name;
use crate::volume::{Machine, Session, forget, peers_of};

pub(super) const NAME: &str = "volume fence";

/// How long another node may take to become the coordinator and answer.
const ANSWER: Duration = Duration::from_secs(30);

/// Arguments of `vhd volume fence`.
#[derive(Args, Debug)]
pub(super) struct FenceArgs {
    /// The node
    #[arg(value_name = "NODE")]
    node: Name,
    /// Do it: processes of the node that run on this machine are killed. Of others you say that they write no more
    #[arg(long)]
    confirm: bool,
    #[command(flatten)]
    pub(super) report: ReportArgs,
}

#[derive(Serialize)]
struct FenceReport {
    node: String,
    /// How it is known that the agent has ended; `None` if none was running.
    agent: Option<String>,
    freed: Vec<Freed>,
}

#[derive(Serialize)]
struct Freed {
    volume: String,
    disk: String,
    proof: String,
}

impl fmt::Display for FenceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.agent {
            Some(proof) => writeln!(f, "Fenced node {}: {proof}", self.node)?,
            None => writeln!(f, "Fenced node {}: no agent was running", self.node)?,
        }
        self.freed.iter().try_for_each(|freed| {
            let Freed { volume, disk, proof } = freed;
            writeln!(f, "Freed {volume}:/{disk}: {proof}")
        })
    }
}

pub(super) fn run(args: &FenceArgs) -> Result<Exit, Failure> {
    if !args.confirm {
        return Err(Failure::usage(format!(
            "fencing kills what node {} runs on this machine, and gives its disks to whoever asks next: say --confirm",
            args.node
        )));
    }
    let machine = Machine::open()?;
    let node = NodeId(args.node.to_string());
    let agent = machine.agent(&node).map(|process| prove(&node, Some(&process)));
    let agent = agent.transpose()?;
    let mut freed = Vec::new();
    for volume in machine.registry().volumes()? {
        free(&machine, &volume, &node, &mut freed)?;
    }
    let report = FenceReport {
        node: node.0,
        agent,
        freed,
    };
    output::report(args.report, NAME, &report)?;
    Ok(Exit::Ok)
}

/// Frees the disks that a node writes on a volume.
fn free(machine: &Machine, volume: &KnownVolume, node: &NodeId, freed: &mut Vec<Freed>) -> Result<(), Failure> {
    let peers = peers_of(machine, volume)?;
    if !peers.members()?.iter().any(|member| member.node == *node) {
        return Ok(());
    }
    peers.note(node, "fenced", "by an operator")?;
    peers.expel(node)?;
    if peers.running()?.is_empty() {
        output::warning(format_args!(
            "no agent of volume {} is running: disks that {node} wrote are freed when they are opened next",
            volume.name
        ));
        return Ok(());
    }
    let mut session = Session::to_ask(machine, volume)?;
    // One process may write several disks: it is killed once.
    let mut proofs = HashMap::new();
    for (disk, state) in session.disks(ANSWER)? {
        let Some(writer) = state.writer.filter(|writer| writer.node == *node) else {
            continue;
        };
        let proof = match proofs.entry(writer.id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let known = machine.registry().session(writer.id)?;
                let proof = prove(node, known.as_ref().map(|known| &known.process))?;
                session.fenced(&writer, &proof, ANSWER)?;
                forget(machine, volume, writer.id)?;
                new.insert(proof)
            }
        };
        let proof = proof.clone();
        freed.push(Freed {
            volume: volume.name.clone(),
            disk,
            proof,
        });
    }
    Ok(())
}

/// Kills a process of this machine; of one that is not known here the operator has said that it is gone.
fn prove(node: &NodeId, process: Option<&Process>) -> Result<String, Failure> {
    let operator = Operator {
        statement: "vhd volume fence --confirm".into(),
    };
    let proof = match process {
        Some(process) => LocalKill.fence(node, process)?,
        None => operator.fence(node, &Process::this()?)?,
    };
    Ok(proof.to_string())
}
