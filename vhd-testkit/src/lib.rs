//! Test tools for the workspace.
#![forbid(unsafe_code)]
pub mod bytes;
pub mod conformance;
pub mod crash_file;
pub mod crash_model;
pub mod fault_file;
pub mod model_disk;
mod operation;
pub mod recording_file;
pub mod rng;
mod sparse;
pub mod workload;
pub use operation::*;
