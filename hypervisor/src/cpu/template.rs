//! Models of processors: what of a host's table a guest is told, so that other hosts can run it too.
//!
//! A model that is a level of the x86-64 psABI has the features of that level, and what every such host has under KVM. What
//! protects a guest (SMEP, SMAP, UMIP, and against speculative execution) is passed on as the host has it: hiding it would make
//! guests movable and unprotected.

use super::compare::{Register, get, missing_features};
use crate::state::{CpuEntry, CpuTable};

use Register::{Eax, Ebx, Ecx, Edx};

/// What processors a guest is told of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuModel {
    /// All that this host's KVM passes on.
    #[default]
    Host,
    /// The level x86-64-v2: up to SSE4.2 and POPCNT.
    V2,
    /// The level x86-64-v3: AVX2, BMI2, FMA and MOVBE too.
    V3,
}

/// Bits of a register of a leaf.
type Bits = (u32, u32, Register, u32);

/// A level of the psABI.
struct Level {
    name: &'static str,
    has: &'static [Bits],
}

/// Of x86-64-v2: SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; LAHF in 64 bits; what the first level has.
const V2: Level = Level {
    name: "x86-64-v2",
    has: &[
        (1, 0, Ecx, 1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23),
        (1, 0, Edx, BASE),
        (0x8000_0001, 0, Ecx, 1),
        (0x8000_0001, 0, Edx, SYSCALL | LONG_MODE),
    ],
};

/// Of x86-64-v3 besides: FMA, MOVBE, XSAVE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT; the state of these registers.
const V3: Level = Level {
    name: "x86-64-v3",
    has: &[
        (
            1,
            0,
            Ecx,
            1 | 1 << 9 | 1 << 12 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 22 | 1 << 23 | 1 << 26 | 1 << 28 | 1 << 29,
        ),
        (1, 0, Edx, BASE),
        (7, 0, Ebx, 1 << 3 | 1 << 5 | 1 << 8),
        (0xd, 0, Eax, 7),
        (0x8000_0001, 0, Ecx, 1 | 1 << 5),
        (0x8000_0001, 0, Edx, SYSCALL | LONG_MODE),
    ],
};

/// FPU, TSC, CMPXCHG8B, CMOV, MMX, FXSR, SSE, SSE2.
const BASE: u32 = 1 | 1 << 4 | 1 << 8 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26;
const SYSCALL: u32 = 1 << 11;
const LONG_MODE: u32 = 1 << 29;

/// What is passed on as the host has it, at every level: what an operating system of that kind needs, what KVM does by itself,
/// and protections.
const PASSED_ON: &[Bits] = &[
    // x2APIC, the timer's deadline, that there is a hypervisor.
    (1, 0, Ecx, 1 << 21 | 1 << 24 | 1 << 31),
    // VME, DE, PSE, MSR, PAE, MCE, APIC, SEP, MTRR, PGE, MCA, PAT, PSE36, CLFSH, HTT.
    (1, 0, Edx, 0x100b_7aee),
    // The timer of the APIC runs always.
    (6, 0, Eax, 1 << 2),
    // SMEP, SMAP.
    (7, 0, Ebx, 1 << 7 | 1 << 20),
    // UMIP.
    (7, 0, Ecx, 1 << 2),
    // MD_CLEAR, SPEC_CTRL, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
    (7, 0, Edx, 1 << 10 | 0xb << 26 | 1 << 28 | 1 << 31),
    (7, 2, Edx, u32::MAX),
    (0x4000_0001, 0, Eax, u32::MAX),
    // NX, and the bits of leaf 1 again.
    (0x8000_0001, 0, Edx, 1 << 20 | 0x0183_f3ff),
    // The time stamp counter does not stop.
    (0x8000_0007, 0, Edx, 1 << 8),
    // IBPB, IBRS, STIBP, those that are always on, SSBD and its kinds.
    (0x8000_0008, 0, Ebx, 0x0f03_d000),
    // LFENCE waits, null selectors clear, automatic IBRS, SBPB, IBPB of branch types, SRSO.
    (0x8000_0021, 0, Eax, 1 << 2 | 1 << 6 | 1 << 8 | 7 << 27),
];

/// Leaves in which each bit is a feature: what is not listed above is hidden.
const MASKED: &[(u32, u32, Register)] = super::compare::FEATURES;

/// Leaves that describe without promising anything: vendor, caches, topology, clocks, KVM, the name, sizes of addresses.
const DESCRIBED: &[u32] = &[
    0x0,
    0x1,
    0x2,
    0x4,
    0x6,
    0x7,
    0xb,
    0xd,
    0x15,
    0x16,
    0x1f,
    0x4000_0000,
    0x4000_0001,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0005,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
    0x8000_001d,
    0x8000_0021,
];

/// The leaf with the state of XSAVE, and how much that is with AVX: the legacy area, the header, the upper halves.
const XSAVE: u32 = 0xd;
const SSE_AREA: u32 = 512 + 64;
const AVX_AREA: u32 = SSE_AREA + 256;
/// Bit of the state: the upper halves of the registers of AVX.
const AVX_STATE: u32 = 1 << 2;

impl CpuModel {
    /// The name, as on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.level().map_or("host", |level| level.name)
    }

    fn level(self) -> Option<&'static Level> {
        match self {
            Self::Host => None,
            Self::V2 => Some(&V2),
            Self::V3 => Some(&V3),
        }
    }

    /// What a guest of this model is told on a host: no more than the model has, and less where the host lacks something of it.
    pub(crate) fn of(self, host: &CpuTable) -> CpuTable {
        let Some(level) = self.level() else {
            return host.clone();
        };
        let described = host.entries.iter().filter(|entry| DESCRIBED.contains(&entry.function));
        CpuTable {
            entries: described.filter_map(|entry| level.told(entry)).collect(),
        }
    }

    /// What a host lacks of this model.
    pub(crate) fn lacking(self, host: &CpuTable) -> Vec<String> {
        let lost = |(leaf, index, register, bits): &Bits| {
            let lost = bits & !get(host, *leaf, *index, *register);
            missing_features((*leaf, *index, *register), lost)
        };
        let levels = self.level().into_iter();
        levels.flat_map(|level| level.has).flat_map(lost).collect()
    }
}

impl Level {
    /// Of an entry of the host what the guest is told.
    fn told(&self, entry: &CpuEntry) -> Option<CpuEntry> {
        let mut told = entry.clone();
        let place = (entry.function, entry.index);
        for (leaf, index, register) in MASKED.iter().filter(|(leaf, index, _)| (*leaf, *index) == place) {
            let known = self.has.iter().chain(PASSED_ON);
            let bits = known.filter(|bits| (bits.0, bits.1, bits.2) == (*leaf, *index, *register));
            *register.of(&mut told) &= bits.fold(0, |all, bits| all | bits.3);
        }
        match place {
            (XSAVE, 0) => {
                // The size is that of the state that is told of.
                let area = match told.eax {
                    0 => 0,
                    state if state & AVX_STATE == 0 => SSE_AREA,
                    _ => AVX_AREA,
                };
                (told.ebx, told.ecx, told.edx) = (area, area, 0);
            }
            (XSAVE, 1) => (told.ebx, told.ecx, told.edx) = (0, 0, 0),
            // The upper halves of the registers, and nothing that is not told of.
            (XSAVE, 2) if self.has.iter().any(|bits| bits.0 == XSAVE) => {}
            (XSAVE, _) => return None,
            // A table of subleaves that has an end.
            (7, 0) => told.eax = told.eax.min(2),
            (0x8000_0021, _) => (told.ebx, told.ecx, told.edx) = (0, 0, 0),
            (0x8000_0008, _) => told.edx = 0,
            _ => {}
        }
        Some(told)
    }
}

#[cfg(test)]
mod tests {
    use super::super::compare::missing;
    use super::*;

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuEntry {
        CpuEntry {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..CpuEntry::default()
        }
    }

    /// A host that has every bit of every leaf.
    fn everything() -> CpuTable {
        let leaves = (0..0x20)
            .chain(0x4000_0000..0x4000_0002)
            .chain(0x8000_0000..0x8000_0022);
        let entries = leaves.flat_map(|leaf| (0..4).map(move |index| entry(leaf, index, [u32::MAX; 4])));
        CpuTable {
            entries: entries.collect(),
        }
    }

    fn register(table: &CpuTable, leaf: u32, register: Register) -> u32 {
        get(table, leaf, 0, register)
    }

    #[test]
    fn models_hide_what_they_do_not_have() {
        let host = everything();
        assert_eq!(CpuModel::Host.of(&host), host);
        let (v2, v3) = (CpuModel::V2.of(&host), CpuModel::V3.of(&host));
        // Each can go on where there is more, and not where there is less.
        for (guest, on) in [(&v2, &v3), (&v2, &host), (&v3, &host)] {
            let bigger: Vec<String> = missing(guest, on);
            assert!(bigger.is_empty(), "{bigger:?}");
            assert!(!missing(on, guest).is_empty());
        }
        let avx = 1 << 28;
        assert_eq!(register(&v2, 1, Ecx) & avx, 0);
        assert_eq!(register(&v3, 1, Ecx) & avx, avx);
        assert_eq!((register(&v2, XSAVE, Eax), register(&v2, XSAVE, Ecx)), (0, 0));
        assert_eq!((register(&v3, XSAVE, Eax), register(&v3, XSAVE, Ecx)), (7, AVX_AREA));
        // AVX-512, virtualisation, performance counters.
        assert_eq!(register(&v3, 7, Ebx) & 1 << 16, 0);
        assert_eq!(
            register(&v3, 1, Ecx) & 1 << 5 | register(&v3, 0x8000_0001, Ecx) & 1 << 2,
            0
        );
        assert!(v3.entries.iter().all(|entry| entry.function != 0xa));
        // Protections stay.
        for guest in [&v2, &v3] {
            assert_eq!(register(guest, 7, Ebx) & (1 << 7 | 1 << 20), 1 << 7 | 1 << 20);
            assert_eq!(register(guest, 7, Edx) & 1 << 26, 1 << 26);
            assert_eq!(register(guest, 1, Edx) & BASE, BASE);
        }
    }

    #[test]
    fn of_a_host_that_lacks_something_a_guest_is_told_less() {
        let mut host = everything();
        let without = |host: &mut CpuTable, leaf: u32, change: fn(&mut CpuEntry)| {
            let meant = host.entries.iter_mut().filter(|entry| entry.function == leaf);
            meant.for_each(change);
        };
        assert!(CpuModel::V3.lacking(&host).is_empty() && CpuModel::Host.lacking(&host).is_empty());
        without(&mut host, 7, |entry| entry.ebx &= !(1 << 5));
        assert_eq!(CpuModel::V3.lacking(&host), ["avx2"]);
        assert!(CpuModel::V2.lacking(&host).is_empty());
        without(&mut host, 1, |entry| entry.ecx &= !(1 << 23));
        without(&mut host, XSAVE, |entry| entry.eax &= 3);
        assert_eq!(CpuModel::V2.lacking(&host), ["popcnt"]);
        assert_eq!(CpuModel::V3.lacking(&host), ["popcnt", "avx2", "leaf 0xd.0 Eax bit 2"]);
        let told = CpuModel::V3.of(&host);
        assert!(missing(&told, &everything()).is_empty());
        assert_eq!(register(&told, 1, Ecx) & 1 << 23 | register(&told, 7, Ebx) & 1 << 5, 0);
        assert_eq!(register(&told, XSAVE, Ecx), SSE_AREA);
        assert!(CpuModel::V2.lacking(&CpuTable::default()).len() > 10);
        assert!(CpuModel::V2.of(&CpuTable::default()).entries.is_empty());
    }
}
