//! The table of Intel's MultiProcessor Specification 1.4: processors, the I/O APIC, and which interrupt is which of its
//! pins. Kernels without ACPI read it.

use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

use super::zero_page::LOW_END;
use crate::mem::GuestMemory;

const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
const APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const SPECIFICATION: u8 = 4;
/// The interrupts of the ISA bus; pin and number are the same.
const INTERRUPTS: u8 = 16;
const FLOATING: usize = 16;

const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IO_APIC: u8 = 2;
const INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;

/// Kinds of interrupts.
const NMI: u8 = 1;
const EXTERNAL: u8 = 3;

/// Writes the table for `cpus` processors to where kernels look for it.
pub(super) fn write(memory: &GuestMemory, cpus: u8) -> Result<(), GuestMemoryError> {
    memory.write_slice(&table(cpus), GuestAddress(LOW_END))
}

/// The floating pointer and, behind it, what it points to.
fn table(cpus: u8) -> Vec<u8> {
    let entries = entries(cpus);
    let count = u16::from(cpus) + 2 + u16::from(INTERRUPTS) + 2;
    let configuration = configuration(&entries, count);
    let mut table = Vec::with_capacity(FLOATING + configuration.len());
    table.extend(b"_MP_");
    table.extend((u32::try_from(LOW_END).unwrap_or(0) + 16).to_le_bytes());
    table.extend([1, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    table[10] = checksum(&table);
    table.extend(configuration);
    table
}

fn configuration(entries: &[u8], count: u16) -> Vec<u8> {
    const HEADER: usize = 44;
    let len = u16::try_from(HEADER + entries.len()).unwrap_or(u16::MAX);
    let mut table = Vec::new();
    table.extend(b"PCMP");
    table.extend(len.to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"VHD     MACHINE     ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LAPIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

fn entries(cpus: u8) -> Vec<u8> {
    const ENABLED: u8 = 1;
    const BOOTS: u8 = 2;
    let ioapic_id = cpus;
    let mut entries = Vec::new();
    for number in 0..cpus {
        let flags = if number == 0 { ENABLED | BOOTS } else { ENABLED };
        entries.extend([PROCESSOR, number, APIC_VERSION, flags]);
        // Family and features, of a processor that has a local APIC; CPUID says more.
        entries.extend(0x600_u32.to_le_bytes());
        entries.extend(0x201_u32.to_le_bytes());
        entries.extend([0; 8]);
    }
    entries.extend([BUS, 0]);
    entries.extend(b"ISA   ");
    entries.extend([IO_APIC, ioapic_id, IOAPIC_VERSION, ENABLED]);
    entries.extend(IOAPIC.to_le_bytes());
    for number in 0..INTERRUPTS {
        entries.extend([INTERRUPT, 0, 0, 0, 0, number, ioapic_id, number]);
    }
    entries.extend([LOCAL_INTERRUPT, EXTERNAL, 0, 0, 0, 0, 0, 0]);
    entries.extend([LOCAL_INTERRUPT, NMI, 0, 0, 0, 0, 0xff, 1]);
    entries
}

/// The byte that makes the sum of all zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_CPUS;
    use crate::mem::allocate;

    #[test]
    fn the_table_is_sound_and_fits() {
        for cpus in 1..=MAX_CPUS {
            let table = table(cpus);
            assert!(table.len() <= 1024, "{cpus}");
            let sum = |bytes: &[u8]| bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!((sum(&table[..FLOATING]), sum(&table[FLOATING..])), (0, 0));
            let stated = u16::from_le_bytes([table[FLOATING + 4], table[FLOATING + 5]]);
            assert_eq!(usize::from(stated), table.len() - FLOATING);
        }
        write(&allocate(crate::MIN_MEMORY).unwrap(), MAX_CPUS).unwrap();
    }
}
