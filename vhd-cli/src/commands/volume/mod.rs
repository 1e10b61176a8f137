//! `vhd volume`: directories of disks that several nodes use at once.

mod agent;
mod bell;
mod create;
mod engine;
mod events;
mod fence;
mod members;
mod metrics;
mod part;
mod planned;
mod status;
mod steering;
mod table;

use clap::{Args, Subcommand};

use crate::exit::Exit;
use crate::failure::Failure;

const EXAMPLES: &str = "\
Examples:
  vhd volume init /srv/disks --name v               make the directory a volume
  vhd volume agent --node a &                       the agent of a node, one process
  vhd volume join v --node a                        node a takes part in v from now on
  vhd create v:/web.vhd 64G                         a disk on the volume
  vhd volume status v
  vhd volume move v --to b                          node b coordinates v from now on
  vhd volume fence b --confirm                      kill what node b runs, and free its disks

Volumes of several machines (each has etcd's address, and a certificate that names its node; builds with the feature `etcd`):
  vhd volume init /srv/disks --name v --engine etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379 \\
      --tls-cert a.pem --tls-key a.key --tls-ca ca.pem
  vhd volume add /srv/disks --tls-cert b.pem --tls-key b.key --tls-ca ca.pem            on the others
  vhd volume agent --node b --listen 10.0.0.2:7400

Each volume has one coordinator at a time, the agent of a node that takes part: it changes names and block tables, and says \
who may write which disk. Data goes straight to the files. docs/cluster.md says what is promised and what is not built.";

/// Arguments of `vhd volume`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(crate) struct VolumeArgs {
    #[command(subcommand)]
    job: Job,
}

/// What is done with volumes.
#[derive(Debug, Subcommand)]
enum Job {
    /// Make a directory a volume
    Init(create::InitArgs),
    /// Make a volume known on this machine that is one already
    Add(create::AddArgs),
    /// Have a node of this machine take part in a volume
    Join(members::JoinArgs),
    /// Have a node of this machine take no part in a volume any more
    Leave(members::LeaveArgs),
    /// Show volumes, their coordinators, nodes and disks
    Status(status::StatusArgs),
    /// Have another node coordinate a volume
    Move(planned::MoveArgs),
    /// Remove a node from a volume
    Evict(members::EvictArgs),
    /// Kill what a node runs, and free the disks that it writes
    Fence(fence::FenceArgs),
    /// Show what happened to a volume
    Events(events::EventsArgs),
    /// Run the agent of a node: it coordinates volumes, or waits until it may
    Agent(agent::AgentArgs),
}

/// The command's name, and whether a failure of it is told as JSON on standard output.
pub(crate) fn identity(args: &VolumeArgs) -> (&'static str, bool) {
    match &args.job {
        Job::Init(args) => (create::INIT, args.report.json),
        Job::Add(args) => (create::ADD, args.report.json),
        Job::Join(args) => (members::JOIN, args.report.json),
        Job::Leave(args) => (members::LEAVE, args.report.json),
        Job::Status(args) => (status::NAME, args.report.json),
        Job::Move(args) => (planned::NAME, args.report.json),
        Job::Evict(args) => (members::EVICT, args.report.json),
        Job::Fence(args) => (fence::NAME, args.report.json),
        Job::Events(args) => (events::NAME, args.report.json),
        Job::Agent(_) => (agent::NAME, false),
    }
}

pub(crate) fn run(args: &VolumeArgs) -> Result<Exit, Failure> {
    match &args.job {
        Job::Init(args) => create::init(args),
        Job::Add(args) => create::add(args),
        Job::Join(args) => members::join(args),
        Job::Leave(args) => members::leave(args),
        Job::Status(args) => status::run(args),
        Job::Move(args) => planned::run(args),
        Job::Evict(args) => members::evict(args),
        Job::Fence(args) => fence::run(args),
        Job::Events(args) => events::run(args),
        Job::Agent(args) => agent::run(args),
    }
}
