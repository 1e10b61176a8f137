//! The reference: a disk that is only bytes, and what a real one may hold after a crash.

mod crash_model;
mod disk;

pub use crash_model::{CrashModel, FlushMark, Violation};
pub use disk::ModelDisk;
