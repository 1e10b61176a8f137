//! Processes of this user that others find by their names: machines, and the agents of nodes.
//!
//! ```text
//!   name.rs    what they are called
//!   place.rs   the directory of one: a lock that says whether it lives, and its sockets
//! ```

mod name;
mod place;

pub(crate) use name::Name;
pub(crate) use place::{Claim, Folder};
