//! Deltas: a disk as a differencing image on top of an older one, with the digests of both.
//!
//! ```text
//! export   diff, hash both -> layout.rs: where everything will be -> write.rs: one pass, front to back
//! import   hash the base, write the disk that base and delta make, hash that, then give it its name
//! ```

mod error;
mod export;
mod import;
mod layout;
mod write;

pub use error::DeltaError;
pub use export::{DeltaExport, ExportReport};
pub use import::{DeltaImport, ImportReport};

/// A digest as people and scripts write it.
#[must_use]
pub fn hex(digest: &[u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
