//! The tables of ACPI that describe the machine vhd-1: hardware-reduced, as there is no firmware (ACPI 6.5).

mod hotplug;

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, PackageBuilder,
    ResourceTemplate,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as Space, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

use crate::legacy::{COM1, COM1_IRQ, RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_OFF_TYPE, SLEEP_STATUS};
use crate::mem::GuestMemory;
use crate::pci::{CONFIG_PORTS, ECAM, WINDOW};

/// Where the tables begin, with the one that leads to all others: in the memory that firmware would have.
pub(super) const ADDRESS: u64 = 0xe_0000;
/// Where they end at the latest.
const END: u64 = 0x10_0000;
/// Bytes to which a table is aligned.
const ALIGNMENT: u64 = 16;

const OEM: [u8; 6] = *b"VHD   ";
const MACHINE: [u8; 8] = *b"VHD-1   ";
const REVISION: u32 = 1;

const LAPIC: u32 = 0xfee0_0000;
const IOAPIC: u32 = 0xfec0_0000;
/// IAPC_BOOT_ARCH: there is no VGA; the kernel does not set up ASPM.
const NO_VGA: u16 = 1 << 2;
const NO_ASPM: u16 = 1 << 4;
/// A table of definitions with integers of 64 bits.
const DSDT_REVISION: u8 = 2;
/// Bytes of the header of each table.
const HEADER: u32 = 36;

/// Writes the tables of a machine with `cpus` processors.
pub(super) fn write(memory: &GuestMemory, cpus: u8) -> Result<(), GuestMemoryError> {
    for (address, table) in tables(cpus) {
        memory.write_slice(&table, GuestAddress(address))?;
    }
    Ok(())
}

/// Each table with its address.
fn tables(cpus: u8) -> Vec<(u64, Vec<u8>)> {
    let mut placed = Vec::new();
    let mut free = (ADDRESS + count(Rsdp::len())).next_multiple_of(ALIGNMENT);
    let mut place = |table: Vec<u8>| {
        let address = free;
        free = (address + count(table.len())).next_multiple_of(ALIGNMENT);
        assert!(free <= END, "the tables of {} processors fit", crate::MAX_CPUS);
        placed.push((address, table));
        address
    };
    let dsdt = place(bytes(&dsdt()));
    let others = [
        place(bytes(&fadt(dsdt))),
        place(bytes(&madt(cpus))),
        place(bytes(&mcfg())),
    ];
    let mut xsdt = XSDT::new(OEM, MACHINE, REVISION);
    others.into_iter().for_each(|address| xsdt.add_entry(address));
    let xsdt = place(bytes(&xsdt));
    placed.push((ADDRESS, bytes(&Rsdp::new(OEM, xsdt))));
    placed
}

fn fadt(dsdt: u64) -> impl Aml {
    let port = |port: u16| GAS::new(Space::SystemIo, 8, 0, AccessSize::ByteAccess, port.into());
    let flags = [
        Flags::HwReducedAcpi,
        Flags::ResetRegSup,
        Flags::PwrButton,
        Flags::SlpButton,
    ];
    let fadt = FADTBuilder::new(OEM, MACHINE, REVISION).dsdt_64(dsdt);
    let mut fadt = flags.into_iter().fold(fadt, FADTBuilder::flag);
    fadt.iapc_boot_arch = (NO_VGA | NO_ASPM).into();
    fadt.reset_reg = port(RESET);
    fadt.reset_value = RESET_VALUE;
    fadt.sleep_control_reg = port(SLEEP_CONTROL);
    fadt.sleep_status_reg = port(SLEEP_STATUS);
    fadt.finalize()
}

fn madt(cpus: u8) -> impl Aml {
    let mut madt = MADT::new(OEM, MACHINE, REVISION, LocalInterruptController::Address(LAPIC));
    for number in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(number, number, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, IOAPIC, 0));
    madt
}

fn mcfg() -> impl Aml {
    let mut mcfg = MCFG::new(OEM, MACHINE, REVISION);
    let (address, _) = ECAM;
    mcfg.add_ecam(address, 0, 0, 0);
    mcfg
}

/// What is there besides processors, in the language of ACPI.
fn dsdt() -> impl Aml {
    let mut definitions = Vec::new();
    serial_port(&mut definitions);
    host_bridge(&mut definitions);
    reserved(&mut definitions);
    hotplug::define(&mut definitions);
    let mut off = PackageBuilder::new();
    off.add_element(&SLEEP_OFF_TYPE);
    Name::new("_S5_".into(), &off).to_aml_bytes(&mut definitions);
    let mut table = Sdt::new(*b"DSDT", HEADER, DSDT_REVISION, OEM, MACHINE, REVISION);
    table.append_slice(&definitions);
    table
}

/// Without it a kernel writes to its console, and programs do not.
fn serial_port(to: &mut dyn AmlSink) {
    let (first, count) = (*COM1.start(), u8::try_from(COM1.count()).unwrap_or(u8::MAX));
    let ports = IO::new(first, first, 0, count);
    let interrupt = Interrupt::new(true, true, false, false, COM1_IRQ);
    Device::new(
        "_SB_.COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    )
    .to_aml_bytes(to);
}

fn host_bridge(to: &mut dyn AmlSink) {
    let (first, count) = (
        *CONFIG_PORTS.start(),
        u8::try_from(CONFIG_PORTS.count()).unwrap_or(u8::MAX),
    );
    let (start, len) = WINDOW;
    let last = start + len - 1;
    let buses = AddressSpace::new_bus_number(0_u16, 0);
    let ports = IO::new(first, first, 1, count);
    let memory = AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, low(start), low(last), None);
    Device::new(
        "_SB_.PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &0_u8),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_CCA".into(), &1_u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&buses, &ports, &memory])),
        ],
    )
    .to_aml_bytes(to);
}

/// Memory that no driver may take: the configuration space of the bus.
fn reserved(to: &mut dyn AmlSink) {
    let (start, len) = ECAM;
    let ecam = Memory32Fixed::new(true, low(start), low(len));
    Device::new(
        "_SB_.MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0_u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam])),
        ],
    )
    .to_aml_bytes(to);
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn count(len: usize) -> u64 {
    vhd_block::units::u64_from(len)
}

/// An address or length below 4 GiB.
fn low(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MAX_CPUS;

    #[test]
    fn the_tables_are_sound_and_lead_to_each_other() {
        for cpus in 1..=MAX_CPUS {
            let tables = tables(cpus);
            let at = |address: u64| &tables.iter().find(|(at, _)| *at == address).expect("a table").1;
            for (_, table) in &tables {
                assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
            }
            let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
            let root = at(ADDRESS);
            assert_eq!(&root[..8], b"RSD PTR ");
            let xsdt = at(number(&root[24..32]));
            let names: Vec<&[u8]> = xsdt[36..].chunks(8).map(|entry| &at(number(entry))[..4]).collect();
            assert_eq!(names, [b"FACP", b"APIC", b"MCFG"]);
            let fadt = at(number(&xsdt[36..44]));
            assert_eq!(&at(number(&fadt[140..148]))[..4], b"DSDT");
            for (_, table) in tables.iter().filter(|(at, _)| *at != ADDRESS) {
                assert_eq!(
                    u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize,
                    table.len()
                );
            }
        }
    }
}
