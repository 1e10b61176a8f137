//! Whether a guest that was told of one processor can go on with another: a pure function of two tables of CPUID.

use crate::state::{CpuEntry, CpuTable};

/// A register of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

use Register::{Eax, Ebx, Ecx, Edx};

impl Register {
    /// This one of an entry.
    pub(super) fn of(self, entry: &mut CpuEntry) -> &mut u32 {
        match self {
            Eax => &mut entry.eax,
            Ebx => &mut entry.ebx,
            Ecx => &mut entry.ecx,
            Edx => &mut entry.edx,
        }
    }
}

/// Leaves, with their index, in which each bit is something that a processor can do.
pub(super) const FEATURES: &[(u32, u32, Register)] = &[
    (0x1, 0, Ecx),
    (0x1, 0, Edx),
    (0x6, 0, Eax),
    (0x7, 0, Ebx),
    (0x7, 0, Ecx),
    (0x7, 0, Edx),
    (0x7, 1, Eax),
    (0x7, 1, Edx),
    (0x7, 2, Edx),
    (0xd, 0, Eax),
    (0xd, 1, Eax),
    (0x4000_0001, 0, Eax),
    (0x8000_0001, 0, Ecx),
    (0x8000_0001, 0, Edx),
    (0x8000_0007, 0, Edx),
    (0x8000_0008, 0, Ebx),
    (0x8000_0021, 0, Eax),
];

/// Names of features that people know.
const NAMES: &[(u32, Register, u32, &str)] = &[
    (0x1, Ecx, 0, "sse3"),
    (0x1, Ecx, 1, "pclmulqdq"),
    (0x1, Ecx, 9, "ssse3"),
    (0x1, Ecx, 12, "fma"),
    (0x1, Ecx, 13, "cx16"),
    (0x1, Ecx, 19, "sse4.1"),
    (0x1, Ecx, 20, "sse4.2"),
    (0x1, Ecx, 21, "x2apic"),
    (0x1, Ecx, 22, "movbe"),
    (0x1, Ecx, 23, "popcnt"),
    (0x1, Ecx, 24, "tsc-deadline"),
    (0x1, Ecx, 25, "aes"),
    (0x1, Ecx, 26, "xsave"),
    (0x1, Ecx, 28, "avx"),
    (0x1, Ecx, 29, "f16c"),
    (0x1, Ecx, 30, "rdrand"),
    (0x7, Ebx, 0, "fsgsbase"),
    (0x7, Ebx, 3, "bmi1"),
    (0x7, Ebx, 5, "avx2"),
    (0x7, Ebx, 7, "smep"),
    (0x7, Ebx, 8, "bmi2"),
    (0x7, Ebx, 9, "erms"),
    (0x7, Ebx, 10, "invpcid"),
    (0x7, Ebx, 16, "avx512f"),
    (0x7, Ebx, 18, "rdseed"),
    (0x7, Ebx, 19, "adx"),
    (0x7, Ebx, 20, "smap"),
    (0x7, Ebx, 29, "sha"),
    (0x8000_0001, Ecx, 5, "lzcnt"),
    (0x8000_0001, Ecx, 6, "sse4a"),
    (0x8000_0001, Edx, 20, "nx"),
    (0x8000_0001, Edx, 26, "pages of 1 GiB"),
    (0x8000_0001, Edx, 27, "rdtscp"),
    (0x8000_0001, Edx, 29, "64 bits"),
];

/// The leaf with the vendor, that with the size of the state of XSAVE, and that with the bits of addresses.
const VENDOR: u32 = 0;
const XSAVE: u32 = 0xd;
const ADDRESSES: u32 = 0x8000_0008;

/// What a host lacks of what a guest was told; nothing if the guest can go on there.
pub(crate) fn missing(guest: &CpuTable, host: &CpuTable) -> Vec<String> {
    let mut reasons = Vec::new();
    let (ours, theirs) = (vendor(guest), vendor(host));
    if ours != theirs {
        reasons.push(format!("the processor is of {theirs:?}, not of {ours:?}"));
    }
    for (leaf, index, register) in FEATURES {
        let lost = get(guest, *leaf, *index, *register) & !get(host, *leaf, *index, *register);
        reasons.extend(missing_features((*leaf, *index, *register), lost));
    }
    let smaller = [
        (
            "bytes of extended state",
            get(guest, XSAVE, 0, Ecx),
            get(host, XSAVE, 0, Ecx),
        ),
        (
            "bits of physical addresses",
            get(guest, ADDRESSES, 0, Eax) & 0xff,
            get(host, ADDRESSES, 0, Eax) & 0xff,
        ),
    ];
    let smaller = smaller.into_iter().filter(|(_, guest, host)| host < guest);
    reasons.extend(smaller.map(|(what, guest, host)| format!("{host} {what}, not {guest}")));
    reasons
}

/// The names of bits of a register of a leaf.
pub(super) fn missing_features((leaf, index, register): (u32, u32, Register), bits: u32) -> Vec<String> {
    let bits = (0..32).filter(|bit| bits >> bit & 1 == 1);
    bits.map(|bit| feature(leaf, index, register, bit)).collect()
}

/// The features of a table that have names.
pub(super) fn names(table: &CpuTable) -> Vec<&'static str> {
    let has = |(leaf, register, bit, _): &&(u32, Register, u32, &str)| get(table, *leaf, 0, *register) >> bit & 1 == 1;
    NAMES.iter().filter(has).map(|(_, _, _, name)| *name).collect()
}

pub(super) fn get(table: &CpuTable, leaf: u32, index: u32, register: Register) -> u32 {
    let is_meant = |entry: &&CpuEntry| entry.function == leaf && entry.index == index;
    table.entries.iter().find(is_meant).map_or(0, |entry| match register {
        Eax => entry.eax,
        Ebx => entry.ebx,
        Ecx => entry.ecx,
        Edx => entry.edx,
    })
}

pub(super) fn vendor(table: &CpuTable) -> String {
    let words = [Ebx, Edx, Ecx].map(|register| get(table, VENDOR, 0, register).to_le_bytes());
    String::from_utf8_lossy(words.as_flattened()).into_owned()
}

fn feature(leaf: u32, index: u32, register: Register, bit: u32) -> String {
    let is_meant = |name: &&(u32, Register, u32, &str)| (name.0, name.1, name.2) == (leaf, register, bit) && index == 0;
    match NAMES.iter().find(is_meant) {
        Some((_, _, _, name)) => (*name).to_owned(),
        None => format!("leaf {leaf:#x}.{index} {register:?} bit {bit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(u32, [u32; 4])]) -> CpuTable {
        let entry = |(function, [eax, ebx, ecx, edx]): &(u32, [u32; 4])| CpuEntry {
            function: *function,
            eax: *eax,
            ebx: *ebx,
            ecx: *ecx,
            edx: *edx,
            ..CpuEntry::default()
        };
        CpuTable {
            entries: entries.iter().map(entry).collect(),
        }
    }

    fn amd() -> [u32; 4] {
        let word = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
        [16, word(b"Auth"), word(b"cAMD"), word(b"enti")]
    }

    #[test]
    fn each_difference_has_its_reason() {
        let guest = table(&[
            (0, amd()),
            (1, [0, 0, 1 << 28 | 1, 3]),
            (0xd, [7, 0, 832, 0]),
            (ADDRESSES, [48, 0, 0, 0]),
        ]);
        assert!(missing(&guest, &guest).is_empty());
        let more = table(&[
            (0, amd()),
            (1, [9, 9, u32::MAX, 7]),
            (0xd, [15, 0, 900, 0]),
            (ADDRESSES, [52, 0, 0, 0]),
        ]);
        assert!(missing(&guest, &more).is_empty());
        let less = table(&[
            (0, amd()),
            (1, [0, 0, 1, 1]),
            (0xd, [3, 0, 576, 0]),
            (ADDRESSES, [40, 0, 0, 0]),
        ]);
        let reasons = ["avx", "leaf 0x1.0 Edx bit 1", "leaf 0xd.0 Eax bit 2"];
        let smaller = [
            "576 bytes of extended state, not 832",
            "40 bits of physical addresses, not 48",
        ];
        assert_eq!(missing(&guest, &less), [&reasons[..], &smaller].concat());
        let mut other = guest.clone();
        other.entries[0].ebx = u32::from_le_bytes(*b"Genu");
        assert_eq!(
            missing(&guest, &other),
            ["the processor is of \"GenuentiCAMD\", not of \"AuthentiCAMD\"".replace("CAMD", "cAMD")]
        );
        // A table that says nothing lacks everything.
        assert!(missing(&guest, &CpuTable::default()).len() > 5);
    }
}
