//! The control socket of a disk in use: how a command finds the server that has it, and what they say to each other.
//!
//! ```text
//!   message.rs   one request and one answer                  line.rs     each a line of JSON
//!   place.rs     where the socket of a disk is
//!   server.rs    Control: listens while the disk is served           client.rs   asks, if somebody listens
//! ```

mod client;
pub(crate) mod line;
mod message;
pub(crate) mod place;
mod server;

pub(crate) use client::{create_snapshot, delete_snapshot};
pub(crate) use message::{Deleted, Taken, WaitingFile};
pub(crate) use server::{Control, Jobs};
