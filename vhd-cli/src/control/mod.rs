//! The control socket of a disk in use: how a command finds the program that has it, and what they say to each other.
//!
//! ```text
//!   message.rs   what is said                                line.rs     each a line of JSON
//!   descriptors.rs open files that are passed
//!   place.rs     where the socket of a disk is
//!   server.rs    Control: listens while the disk is in use   client.rs   asks, if somebody listens
//! ```

mod client;
#[cfg(target_arch = "x86_64")]
pub(crate) mod descriptors;
pub(crate) mod line;
mod message;
pub(crate) mod place;
mod server;

pub(crate) use client::{Along, create_snapshot, delete_snapshot, merge, resize};
pub(crate) use message::{Answer, Deleted, Job, MergeJob, ResizeJob, Taken, WaitingFile};
pub(crate) use place::user_of;
pub(crate) use server::{Control, Jobs};
