//! A server: exports, negotiation, sessions, and the threads that run them.
//!
//! ```text
//!   Server       accepts, limits, stops                        server.rs, listener.rs, registry.rs
//!   Budget       what clients can make the server take         budget.rs
//!   connection   greeting to good-bye of one client            connection.rs
//!   Handshake    bytes -> replies, no I/O                      handshake.rs
//!   Session      one thread decodes and executes requests      session.rs, inbox.rs, outbox.rs, read.rs, rules.rs
//!   Workers      what may take long: flushes, zeroes, status   workers.rs, job.rs
//!   Export       a disk with a name                            export.rs, export_set.rs
//! ```
//!
//! A session executes reads and writes on the thread that received them: for data in the page cache a hand-over to
//! another thread costs more than the request. What waits for a device goes to the session's own workers, so a slow
//! request delays neither other connections nor the requests behind it. NBD gives no order to requests in flight.

mod activation;
mod budget;
mod complaint;
mod connection;
mod control;
mod export;
mod export_set;
mod handshake;
mod inbox;
mod job;
mod listener;
mod outbox;
mod pace;
mod policy;
mod read;
mod registry;
mod rules;
#[expect(clippy::module_inception, reason = "the server itself")]
mod server;
mod session;
mod socket_file;
mod stats;
mod workers;

pub use budget::MIN_MEMORY;
pub use export::{ChangeVisitor, ChangedAboveLayer, ChangedRanges, Export};
pub use export_set::{ExportNameError, ExportSet};
pub use listener::{ListenError, ListenFailure, Listener};
pub use policy::{OpenToAll, TcpPolicy};
pub use server::{Server, ServerOptions};
pub use stats::StatsReport;
