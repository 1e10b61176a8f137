//! The guest's processors.

mod compare;
mod cpuid;
mod description;
mod processors;
mod registers;
pub(crate) mod state;
mod template;
mod vcpu;

pub(crate) use cpuid::Cpuid;
pub use description::{CpuDescription, CpuLeaf, MAX_CPU_LEAVES};
pub(crate) use processors::Processors;
pub(crate) use registers::{BootEntry, prepare, write_tables};
pub use template::CpuModel;
pub(crate) use vcpu::Vcpu;
