//! What processors say about themselves, for those who compare hosts.

use super::compare::{missing, names, vendor};
use super::{CpuModel, Cpuid};
use crate::Error;
use crate::kvm;
use crate::state::{CpuEntry, CpuTable};

/// The most leaves of a description.
pub const MAX_CPU_LEAVES: usize = 256;

/// What processors say about themselves: the leaves of CPUID.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuDescription(CpuTable);

/// A leaf of CPUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuLeaf {
    /// Its number.
    pub leaf: u32,
    /// Its index, where it has several.
    pub index: u32,
    /// What KVM has to know of it: 1 if the index counts.
    pub flags: u32,
    /// The registers EAX, EBX, ECX and EDX.
    pub registers: [u32; 4],
}

impl CpuDescription {
    /// What this host tells a guest of a model.
    ///
    /// # Errors
    /// [`Error::NoKvm`], [`Error::Kvm`].
    pub fn of_host(model: CpuModel) -> Result<Self, Error> {
        Ok(Self(Cpuid::of_host(&kvm::open()?, model)?.table().clone()))
    }

    /// The description that consists of these leaves, at most [`MAX_CPU_LEAVES`] of them.
    #[must_use]
    pub fn from_leaves(leaves: &[CpuLeaf]) -> Option<Self> {
        let entry = |leaf: &CpuLeaf| {
            let [eax, ebx, ecx, edx] = leaf.registers;
            CpuEntry {
                function: leaf.leaf,
                index: leaf.index,
                flags: leaf.flags,
                eax,
                ebx,
                ecx,
                edx,
            }
        };
        let entries = leaves.iter().map(entry).collect();
        (leaves.len() <= MAX_CPU_LEAVES).then_some(Self(CpuTable { entries }))
    }

    pub(crate) fn from_table(table: CpuTable) -> Self {
        Self(table)
    }

    /// Its leaves.
    #[must_use]
    pub fn leaves(&self) -> Vec<CpuLeaf> {
        let leaf = |entry: &CpuEntry| CpuLeaf {
            leaf: entry.function,
            index: entry.index,
            flags: entry.flags,
            registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
        };
        self.0.entries.iter().map(leaf).collect()
    }

    /// The vendor, as the processor writes it.
    #[must_use]
    pub fn vendor(&self) -> String {
        vendor(&self.0)
    }

    /// The features that have names.
    #[must_use]
    pub fn features(&self) -> Vec<&'static str> {
        names(&self.0)
    }

    /// What these lack of a model: a guest of that model is not told of it here.
    #[must_use]
    pub fn lacking(&self, model: CpuModel) -> Vec<String> {
        model.lacking(&self.0)
    }

    /// What processors lack that a guest was told of by these: nothing, if they can run it.
    #[must_use]
    pub fn lost_on(&self, others: &Self) -> Vec<String> {
        missing(&self.0, &others.0)
    }
}
