//! Long operations on whole disks: convert, stream, compare, diff, hash, compact, merge, resize, repair, reparent,
//! verify.
//! resize, repair, reparent, verify.

mod alone;
pub mod azure;
pub mod compact;
mod compare;
mod convert;
mod convert_chain;
mod copy_onto;
mod data_ranges;
pub mod delta;
mod diff;
mod error;
mod hash;
pub mod merge;
pub mod new_id;
mod ordered;
pub mod repair;
pub mod reparent;
pub mod resize;
pub mod verify;
mod workers;
pub(crate) mod zeroes;

pub use compare::{Comparison, compare};
pub use convert::{ConvertOptions, ConvertReport, Target, convert};
pub use convert_chain::{ChainOptions, LayerTarget, convert_chain};
pub use copy_onto::copy_onto;
pub use diff::{DiffMode, Difference, diff};
pub use error::OpsError;
pub use hash::{sha256, sha256_of_file};
pub use ordered::{StreamFormat, stream};

/// Told how far an operation is. The unit is bytes of the virtual disk, holes included.
pub trait Progress: Sync {
    /// The operation goes over `total` bytes.
    fn begin(&self, total: u64);

    /// `bytes` more are done.
    fn advance(&self, bytes: u64);

    /// A step is done, and what it changed is durable: for tests that look at what a crash would leave there.
    fn step(&self, _step: &str) {}
}

/// Progress that no one looks at.
impl Progress for () {
    fn begin(&self, _total: u64) {}

    fn advance(&self, _bytes: u64) {}
}
