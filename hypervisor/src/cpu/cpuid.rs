//! What the processor says about itself: the host's features as KVM passes them on.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::Error;
use crate::error::kvm;

/// The leaf with features and the number of the processor.
const FEATURES: u32 = 1;
/// The leaves with the topology.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
/// Bit of FEATURES.ECX: the timer of the local APIC counts to a value of the time stamp counter.
const TSC_DEADLINE: u32 = 1 << 24;
/// Bit of FEATURES.ECX: there is a hypervisor, which says more about itself in leaves of its own.
const HYPERVISOR: u32 = 1 << 31;

/// The table for all processors of a machine.
pub(crate) struct Cpuid {
    supported: CpuId,
    /// What of FEATURES.ECX KVM has and leaves to us to say.
    features: u32,
}

impl Cpuid {
    pub(crate) fn new(kvm_fd: &Kvm) -> Result<Self, Error> {
        let supported = kvm_fd
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("say what processors it supports"))?;
        let deadline = if kvm_fd.check_extension(Cap::TscDeadlineTimer) {
            TSC_DEADLINE
        } else {
            0
        };
        Ok(Self {
            supported,
            features: deadline | HYPERVISOR,
        })
    }

    /// Gives processor `number` of `count` its table.
    pub(crate) fn apply(&self, vcpu: &VcpuFd, number: u8, count: u8) -> Result<(), Error> {
        let mut table = self.supported.clone();
        for entry in table.as_mut_slice() {
            match entry.function {
                FEATURES => {
                    entry.ecx |= self.features;
                    // The line size of CLFLUSH stays; above are the number of processors and which one this is.
                    entry.ebx = entry.ebx & 0xffff | u32::from(count) << 16 | u32::from(number) << 24;
                }
                leaf if TOPOLOGY.contains(&leaf) => entry.edx = number.into(),
                _ => {}
            }
        }
        vcpu.set_cpuid2(&table)
            .map_err(kvm("describe a processor to the guest"))
    }
}
