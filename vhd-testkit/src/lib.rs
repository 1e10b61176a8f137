//! Test tools for the workspace.
#![forbid(unsafe_code)]
pub mod bytes;
pub mod crash_file;
mod operation;
pub mod rng;
mod sparse;
pub use operation::*;
