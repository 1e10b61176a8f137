//! Images for Azure: fixed, whole MiB, with a footer that every program takes by its size.
//!
//! ```text
//! prepare.rs   writes such an image from any disk, and checks it before it gets its name
//! rules.rs     the rules, each with a stable code
//! ```

mod error;
mod prepare;
mod rules;

pub use error::AzureError;
pub use prepare::{PrepareReport, prepare, prepared_size};
pub use rules::{Outcome, Rule, Verdict, check};

use crate::format::MAX_DISK_SIZE;

/// Azure's sizes are multiples of this many bytes.
pub const UNIT: u64 = 1 << 20;
/// Bytes of the smallest disk.
pub const MINIMUM: u64 = 20 << 20;
/// Bytes of the largest disk: that of the format, which is below Azure's.
pub const MAXIMUM: u64 = MAX_DISK_SIZE;
