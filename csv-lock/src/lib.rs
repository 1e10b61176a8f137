//! Cluster shared volumes: several machines use one directory of disks, each disk has one writer, and one *coordinator* at a
//! time changes the volume's metadata.
//!
//! ```text
//!   Client ----Request----> Coordinator ---- append, check, apply ----> VolumeIo: .csv/epoch/N, names, block tables
//!     |                         |
//!   Engine: where is it?      Node: campaign, take_over, serve, renew ---- Engine: may I?
//! ```
//!
//! **The engine elects, the volume protects.** A lease says who should be the coordinator. That it is not believed too long
//! cannot be had: a process stops between looking at its clock and writing. So nothing here relies on it. The coordinator of
//! epoch N appends each decision to the journal `.csv/epoch/N`, then looks whether `.csv/epoch/N+1` exists, and only then changes
//! names and tables and answers. Its successor creates `N+1` first, reads the journals after that, and writes what it found as the
//! first record of its own (the *seal*). Whatever the old one does afterwards is in the seal, and then both do the same, or it
//! is not, and then the old one finds `N+1` and does nothing. `docs/cluster.md` has the rules by number (INV-90 and following).
//!
//! **The life of a volume.** [`init_volume`] makes a directory one. A [`Node`] campaigns at its [`Engine`], [`take_over`]s and
//! serves through its [`Net`]; a [`Client`] finds the coordinator and asks it ([`Ask`]). Everything that touches the world is
//! behind the traits [`Clock`], [`Net`], [`VolumeIo`] and [`Engine`], so that the same code runs in a deterministic simulator
//! (`tests/simulation`) and, reduced to its steps, in a model checker (`tests/model.rs`).
//!
//! **Errors.** [`CsvError`] has a stable code per kind; a [`Refusal`] travels to whoever asked and means that nothing changed.
//!
//! **What is not protected here**: the data that a writer sends to a disk's blocks. That needs a fence at
//! the storage or on the host; until one has proven that a writer is gone its disk is not given to another one.

mod client;
mod clock;
mod coordinator;
mod decide;
mod effects;
mod engine;
mod error;
mod fence;
mod id;
mod journal;
mod message;
mod net;
mod node;
mod registry;
mod state;
mod takeover;
mod volume;

pub use client::Client;
pub use clock::{Clock, SystemClock};
pub use coordinator::{Coordinator, Served};
pub use engine::{Engine, Leader, LocalEngine, Term};
#[cfg(feature = "etcd")]
pub use engine::{EtcdConfig, EtcdEngine, Presence};
pub use error::{CsvError, Refusal};
pub use fence::{Fence, HasEnded, LocalKill, Operator, Process, Proof, Strength};
pub use id::{ClusterId, Epoch, Generation, NodeId, OpId, Session, VolumeId};
pub use journal::{Op, Outcome, Record, RequestId, Table};
pub use message::{Answer, Ask, MAX_BLOCKS, MAX_MESSAGE, Reply, Request, decode, encode, payload_len};
pub use net::{Address, Caller, CertificateFiles, Inbox, Listener, Net, NodeNet, TlsServer, UnixNet};
pub use node::{Ended, Node, Steer};
pub use registry::{Changes, EngineAccess, Event, KnownVolume, Member, OpenSession, Registry};
pub use state::{Disk, Sealed, State};
pub use takeover::{newest_epoch, take_over};
pub use volume::{HostVolume, VolumeFile, VolumeFormat, VolumeIo, check_disk_path, incoming, init_volume, read_format};
