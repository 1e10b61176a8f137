//! Runs a Linux guest on KVM, with its disks in anything that is a [`Disk`](vhd_block::Disk).
//!
//! ```text
//!   Machine        made whole or not at all, run once                    machine.rs
//!      |           while it runs: running.rs; what other threads do with it: handle.rs
//!      |
//!      +-- boot/     kernel, initramfs, command line, tables in guest memory
//!      +-- cpu/      CPUID, registers, a thread per processor
//!      |     |
//!      |    Bus      which device answers at which port or address       bus.rs
//!      |     +-- legacy/        COM1, clock, the ports that end a machine
//!      |     +-- slots.rs       disks put into slots and taken out, also while it runs
//!      |     +-- pci/           host bridge, configuration space, hot-plug, MSI-X
//!      |     +-- virtio/pci.rs  transport of the machine vhd-1; virtio/mmio.rs: of the other
//!      |            |
//!      |         virtio/session.rs  what driver and device agree on, whatever the transport
//!      |            |
//!      |         virtio/block/  virtio-blk on a Disk     virtio/rng/  random numbers
//!      |            |
//!      |         virtio/queue_thread.rs, queue.rs  a thread that works off the queue of a device
//!      +-- sandbox.rs  what its threads may ask of the kernel     reach.rs  which paths they may open
//!      +-- state/    the machine as data: saved to a file, restored from it
//!      +-- mem.rs    guest memory: one sealed memory file
//!      +-- kvm.rs    the machine as KVM has it
//! ```
//!
//! Nothing that the guest says is believed: each register, descriptor and request is checked, and a guest that breaks the
//! rules gets an error or a device that waits for its reset.
//!
//! A guest's write reaches the host file when the disk's write returned; it is durable when a flush of the guest was
//! answered. That is INV-70 of `docs/invariants.md`.
//!
//! x86-64 Linux hosts only: elsewhere the crate is empty. Unsafe code is in `kvm.rs` alone.
#![cfg(target_arch = "x86_64")]
#![deny(unsafe_code)]

mod boot;
mod bus;
mod cpu;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod handle;
mod kvm;
mod legacy;
mod machine;
mod machine_type;
mod mem;
mod pci;
#[cfg(any(test, feature = "fuzzing"))]
#[path = "../tests/common/ram.rs"]
mod ram;
mod reach;
mod running;
mod sandbox;
mod slots;
mod state;
mod virtio;

pub use cpu::{CpuDescription, CpuLeaf, CpuModel, MAX_CPU_LEAVES};
pub use error::Error;
pub use handle::MachineHandle;
pub use machine::{End, Machine, MachineConfig, MachineDisk};
pub use machine_type::MachineType;
pub use mem::{MAX_MEMORY, MEMORY_UNIT, MIN_MEMORY};
pub use reach::{Access, Confined, Reach};
pub use sandbox::Sandbox;
pub use state::{Saved, StateError, StateFile};

/// The most processors of a machine.
pub const MAX_CPUS: u8 = 8;
/// The most disks of a machine.
pub const MAX_DISKS: usize = 8;
