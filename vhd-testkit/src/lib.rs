//! Test tools of the workspace: files that crash, fail, record and call back, models to compare with, a conformance suite.
//!
//! ```text
//!   Workload / ops ---> the disk under test ---> RecordingFile ---> FaultFile ---> CrashFile
//!        |                 (BlockDevice)           (counts)         (errors)     (loss of power)
//!        |                      |                                                     | after each operation
//!        +---> CrashModel <-----+-- reads, after a crash and without ---------- CrashStates
//! ```
//!
//! A crash test tells the [`CrashModel`] of each operation before the disk gets it (`Op::begin`) and after it
//! returned (`Op::end`). An observer on the [`CrashFile`] looks at every step of the file in between: it opens
//! the disk in each crash state and lets the model check what it reads.
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use vhd_core::storage::StorageFile;
//! use vhd_testkit::bytes::pattern;
//! use vhd_testkit::{CrashFile, CrashLimits, CrashModel, CrashSnapshot};
//!
//! // The simplest disk: the file is the disk, and a flush is a sync.
//! let model = Arc::new(Mutex::new(CrashModel::new(4096)));
//! let watching = Arc::clone(&model);
//! let file = CrashFile::from_bytes(&[0; 4096]).with_observer(Box::new(move |snapshot: &CrashSnapshot| {
//!     for state in snapshot.crash_states(&CrashLimits::default()) {
//!         let checked = watching.lock().unwrap().check(&state.bytes());
//!         checked.unwrap_or_else(|violation| panic!("{violation}\n{state}"));
//!     }
//! }));
//! for generation in 1..4 {
//!     let data = pattern(512, 1024, generation);
//!     model.lock().unwrap().write(512, &data);
//!     file.write_all_at(&data, 512).unwrap();
//!     file.sync().unwrap();
//!     model.lock().unwrap().flushed();
//! }
//! ```
//!
//! Everything random comes from a seed that a failure prints; [`rng::SEED_VARIABLE`] sets it from outside.
#![forbid(unsafe_code)]

pub mod bytes;
pub mod conformance;
pub mod crash_file;
pub mod fault_file;
pub mod hook_file;
pub mod model;
mod operation;
pub mod recording_file;
pub mod rng;
mod sparse;
mod stop_on_drop;
pub mod workload;

pub use conformance::{Conformance, conformance};
pub use crash_file::{CrashChoice, CrashFile, CrashLimits, CrashSnapshot, CrashState, CrashStates, Kept, Support};
pub use fault_file::{Fault, FaultControl, FaultError, FaultFile, each_operation_fails};
pub use hook_file::{HookFile, Hooks};
pub use model::{CrashModel, FlushMark, ModelDisk, Violation};
pub use operation::{Operation, OperationKind};
pub use recording_file::{Recorder, RecordingFile};
pub use stop_on_drop::StopOnDrop;
pub use workload::{Geometry, Op, Workload};
