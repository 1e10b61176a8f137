//! The guest's processors.

mod compare;
mod cpuid;
mod processors;
mod registers;
pub(crate) mod state;
mod vcpu;

pub(crate) use cpuid::Cpuid;
pub(crate) use processors::Processors;
pub(crate) use registers::{BootEntry, prepare, write_tables};
pub(crate) use vcpu::Vcpu;
