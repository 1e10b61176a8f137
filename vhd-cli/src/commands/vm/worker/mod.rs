//! The process of a machine, which others of the same user find and control.
//!
//! ```text
//!   claim.rs     its name, and its directory among those of all machines
//!   message.rs   what is said over the socket            console.rs   the guest's console for all who are attached
//!   server.rs    listens while the machine runs          events.rs    what happened, as lines of JSON
//!   jobs.rs      does what is asked for                  client.rs    asks
//!   snapshots.rs takes, deletes and goes back to them     saving.rs    a saved machine, until its file is complete
//! ```

mod claim;
mod client;
mod console;
mod events;
mod jobs;
mod message;
mod saving;
mod server;
mod snapshots;

pub(super) use claim::{Claim, MachineName, is_alive, take_name};
pub(super) use client::{Client, living};
pub(super) use console::Console;
pub(super) use events::{Event, Events};
pub(super) use jobs::{Facts, Worker};
pub(super) use message::{Answer, DiskInfo, Job, MachineInfo};
pub(super) use saving::Saving;
pub(super) use server::{Server, answer_failure};
