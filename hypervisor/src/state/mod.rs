//! A machine as data: what `save` writes and `restore` reads.
//!
//! ```text
//!   container.rs   sections with lengths and digests; no word of what is in them
//!   messages.rs    what is in them
//!   file.rs        the file: a container, then guest memory with holes
//!   memory.rs      guest memory in the file, a digest for each piece
//!   error.rs       why a file cannot be restored
//! ```
//!
//! Kinds of sections, each once unless it says otherwise: `machine`, `memory`, `cpuid`, `processor` (each), `interrupts`,
//! `com1`, `cmos`, `bus`, `function` (each; by slot), `mmio` (each; by number), `owner`. A reader refuses a section that it does
//! not know, a version that it does not know, and a requirement that it does not know: state that is passed over is
//! corruption. The rules for changes are in ADR 0068.

mod container;
mod error;
mod file;
#[cfg(test)]
mod golden_tests;
mod memory;
mod messages;

pub(crate) use container::{Section, section};
pub use error::StateError;
pub use file::{Saved, StateFile};
pub(crate) use file::{SavedState, write};
pub(crate) use messages::{
    Bus, Cmos, CpuEntry, CpuTable, Function, Interrupts, Machine, Messages, Msr, Processor, Serial, Virtio,
};
