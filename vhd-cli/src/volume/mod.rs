//! Cluster volumes as commands see them.
//!
//! ```text
//!   machine.rs   what this machine knows: volumes, agents
//!   name.rs      V:/PATH, which any command may be given
//!   engine.rs    who elects coordinators           peers/     what nodes know of each other
//!   session.rs   asking the coordinator of a volume
//!   right.rs     the right to write a disk
//!   held.rs      a disk that is open for writing     working_copy.rs   changing one as a whole
//!   new_disk.rs  a file that becomes a disk                 table.rs   block tables as a coordinator knows them
//! ```

mod engine;
mod held;
mod machine;
mod name;
mod new_disk;
mod peers;
mod right;
mod session;
mod table;
mod working_copy;

use std::time::Duration;

pub(crate) use engine::EngineName;
pub(crate) use held::Held;
pub(crate) use machine::{Machine, no_such_volume, not_a_member, this_node};
pub(crate) use name::DiskName;
pub(crate) use new_disk::{NewDisk, forget};
pub(crate) use peers::{Part, Peers, member_of, part_of, peers_of, try_engine};
pub(crate) use right::Right;
pub(crate) use session::{Session, format_of};
pub(crate) use working_copy::WorkingCopy;

/// How long a request waits for a coordinator: across the death of one, and a takeover.
const PAUSE: Duration = Duration::from_secs(60);
