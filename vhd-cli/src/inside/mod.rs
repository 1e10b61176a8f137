//! What is inside a disk: its partitions, and the files in them, without mounting anything.
//!
//! ```text
//!   place.rs     IMAGE[@NAME][:/PATH], as people write it
//!   volumes.rs   the file systems of a disk, and which of them a path is in
//! ```

mod place;
mod volumes;

pub(crate) use place::Place;
pub(crate) use volumes::{Inside, InsideArgs, Located, PathText, Volume, shared, volumes};
