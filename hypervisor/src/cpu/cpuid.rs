//! What the processor says about itself: what KVM passes on of the host's features, or those with which a guest was saved.

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::CpuModel;
use super::compare::missing;
use crate::Error;
use crate::error::kvm;
use crate::state::{CpuEntry, CpuTable, StateError};

/// The leaf with features and the number of the processor.
const FEATURES: u32 = 1;
/// The leaves with the topology.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
/// Bit of FEATURES.ECX: the timer of the local APIC counts to a value of the time stamp counter.
const TSC_DEADLINE: u32 = 1 << 24;
/// Bit of FEATURES.ECX: there is a hypervisor, which says more about itself in leaves of its own.
const HYPERVISOR: u32 = 1 << 31;

/// The table for all processors of a machine.
pub(crate) struct Cpuid(CpuTable);

impl Cpuid {
    /// What this host has of a model.
    pub(crate) fn of_host(system: &Kvm, model: CpuModel) -> Result<Self, Error> {
        let supported = system
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(kvm("say what processors it supports"))?;
        let deadline = if system.check_extension(Cap::TscDeadlineTimer) {
            TSC_DEADLINE
        } else {
            0
        };
        let mut entries: Vec<CpuEntry> = supported.as_slice().iter().map(message).collect();
        // What KVM has and leaves to us to say.
        let features = entries.iter_mut().filter(|entry| entry.function == FEATURES);
        features.for_each(|entry| entry.ecx |= deadline | HYPERVISOR);
        Ok(Self(model.of(&CpuTable { entries })))
    }

    /// What a guest was saved with, if this host has all of it.
    pub(crate) fn saved(self, saved: CpuTable) -> Result<Self, StateError> {
        let reasons = missing(&saved, &self.0);
        if reasons.is_empty() {
            return Ok(Self(saved));
        }
        Err(StateError::Processor { reasons })
    }

    pub(crate) fn table(&self) -> &CpuTable {
        &self.0
    }

    /// Gives processor `number` of `count` its table.
    pub(crate) fn apply(&self, vcpu: &VcpuFd, number: u8, count: u8) -> Result<(), Error> {
        let failed = kvm("describe a processor to the guest");
        let mut entries: Vec<kvm_cpuid_entry2> = self.0.entries.iter().map(entry).collect();
        for entry in &mut entries {
            match entry.function {
                // The line size of CLFLUSH stays; above are the number of processors and which one this is.
                FEATURES => entry.ebx = entry.ebx & 0xffff | u32::from(count) << 16 | u32::from(number) << 24,
                leaf if TOPOLOGY.contains(&leaf) => entry.edx = number.into(),
                _ => {}
            }
        }
        let table = CpuId::from_entries(&entries).map_err(|_| StateError::damaged("cpuid", "has too many entries"))?;
        vcpu.set_cpuid2(&table).map_err(failed)
    }
}

fn message(entry: &kvm_cpuid_entry2) -> CpuEntry {
    let kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..
    } = *entry;
    CpuEntry {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
    }
}

fn entry(message: &CpuEntry) -> kvm_cpuid_entry2 {
    let CpuEntry {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
    } = *message;
    kvm_cpuid_entry2 {
        function,
        index,
        flags,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}
