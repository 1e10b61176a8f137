//! Cluster volumes as commands see them.
//!
//! ```text
//!   machine.rs   what this machine knows: volumes, agents
//!   session.rs   asking the coordinator of a volume
//! ```

mod machine;
mod session;

pub(crate) use machine::{Machine, no_such_volume, not_a_member, this_node};
pub(crate) use session::{Session, format_of};
