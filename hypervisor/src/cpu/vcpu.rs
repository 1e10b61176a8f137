//! A processor that runs until something is to be decided.

use std::io;

use kvm_bindings::{
    KVM_MP_STATE_HALTED, KVM_MP_STATE_UNINITIALIZED, KVM_SYSTEM_EVENT_CRASH, KVM_SYSTEM_EVENT_RESET,
    KVM_SYSTEM_EVENT_SHUTDOWN,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::state;
use crate::bus::Bus;
use crate::error::kvm;
use crate::mem::GuestMemory;
use crate::state::Processor;
use crate::{End, Error};

/// Bit of RFLAGS: interrupts are taken.
const INTERRUPTS: u64 = 1 << 9;

/// What a processor stopped for.
#[derive(Debug)]
pub(crate) enum Exit {
    /// The guest ended.
    End(End),
    /// It was interrupted from outside.
    Kicked,
}

/// A processor.
pub(crate) struct Vcpu {
    fd: VcpuFd,
    /// Mapped at least as long as the processor may run: KVM knows the addresses alone.
    _memory: GuestMemory,
}

impl Vcpu {
    pub(crate) fn new(fd: VcpuFd, memory: GuestMemory) -> Self {
        Self { fd, _memory: memory }
    }

    /// Runs the guest until it ends, the processor is kicked, or KVM gives up.
    pub(crate) fn run(&mut self, bus: &Bus) -> Result<Exit, Error> {
        loop {
            let end = match self.fd.run() {
                Ok(VcpuExit::IoOut(port, data)) => bus.write_port(port, data),
                Ok(VcpuExit::IoIn(port, data)) => {
                    bus.read_port(port, data);
                    None
                }
                Ok(VcpuExit::MmioWrite(address, data)) => {
                    bus.write_memory(address, data);
                    None
                }
                Ok(VcpuExit::MmioRead(address, data)) => {
                    bus.read_memory(address, data);
                    None
                }
                // A triple fault resets a PC.
                Ok(VcpuExit::Shutdown) => Some(End::Reset),
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Some(End::PowerOff),
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => Some(End::Reset),
                Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_CRASH, _)) => Some(End::Panic),
                Ok(VcpuExit::Intr) => return Ok(Exit::Kicked),
                Ok(other) => {
                    let reason = format!("{other:?}");
                    return Err(self.crashed(reason));
                }
                Err(error) => match io::Error::from_raw_os_error(error.errno()).kind() {
                    io::ErrorKind::Interrupted => return Ok(Exit::Kicked),
                    // A processor that was not started yet.
                    io::ErrorKind::WouldBlock => None,
                    _ => return Err(kvm("run a processor")(error)),
                },
            };
            if let Some(end) = end {
                return Ok(Exit::End(end));
            }
        }
    }

    /// The state of a processor that is held.
    pub(crate) fn save(&self, msrs: &[u32]) -> Result<Processor, Error> {
        state::save(&self.fd, msrs)
    }

    /// Whether nothing but another processor can make this one go on: it was never started, or it halted without taking
    /// interrupts.
    pub(crate) fn is_halted_for_good(&self) -> bool {
        let state = self.fd.get_mp_state().map(|state| state.mp_state);
        let takes_interrupts = self.fd.get_regs().map(|regs| regs.rflags & INTERRUPTS != 0);
        match (state, takes_interrupts) {
            (Ok(KVM_MP_STATE_UNINITIALIZED), _) => true,
            (Ok(KVM_MP_STATE_HALTED), Ok(takes_interrupts)) => !takes_interrupts,
            _ => false,
        }
    }

    fn crashed(&self, reason: String) -> Error {
        let rip = self.fd.get_regs().map_or(0, |regs| regs.rip);
        Error::Crashed { reason, rip }
    }
}
