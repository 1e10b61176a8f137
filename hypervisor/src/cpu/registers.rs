//! The state in which the first processor enters a kernel: 64 bits, flat segments, the lowest 4 GiB mapped as they are.

use kvm_bindings::{Msrs, kvm_fpu, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes as _, GuestAddress};

use crate::Error;
use crate::error::kvm;
use crate::mem::GuestMemory;

/// Where the tables are in guest memory: below everything that a kernel looks at or is loaded to.
const GDT: u64 = 0x500;
const IDT: u64 = 0x520;
const STACK: u64 = 0x8ff0;
const PML4: u64 = 0x9000;
const PDPT: u64 = 0xa000;
/// Four page directories, a GiB each.
const DIRECTORIES: u64 = 0xb000;

/// Entries of a page table.
const ENTRIES: u64 = 512;
const PAGE: u64 = 4096;
const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// The bit of RFLAGS that is always set.
const RFLAGS: u64 = 2;

/// Selectors that the boot protocol of Linux wants.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;

/// Registers of the local APIC with the meaning of its two pins, and their delivery modes.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const EXTERNAL: u32 = 7 << 8;
const NMI: u32 = 4 << 8;

/// Where and with what a kernel is entered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BootEntry {
    /// The first instruction.
    pub(crate) address: u64,
    /// The zero page.
    pub(crate) parameters: u64,
}

/// Writes the tables that [`prepare`] lets the processor use.
pub(crate) fn write_tables(memory: &GuestMemory) -> Result<(), vm_memory::GuestMemoryError> {
    for (slot, segment) in (0..).zip([None, None, Some(code()), Some(data()), Some(task())]) {
        let entry = segment.as_ref().map_or(0, descriptor);
        memory.write_obj(entry, GuestAddress(GDT + slot * 8))?;
    }
    memory.write_obj(0_u64, GuestAddress(IDT))?;
    memory.write_obj(PDPT | PRESENT_WRITABLE, GuestAddress(PML4))?;
    for gigabyte in 0..4 {
        let directory = DIRECTORIES + gigabyte * PAGE;
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(PDPT + gigabyte * 8))?;
        for slot in 0..ENTRIES {
            let page = (gigabyte * ENTRIES + slot) * LARGE_PAGE_SIZE;
            let entry = page | PRESENT_WRITABLE | LARGE_PAGE;
            memory.write_obj(entry, GuestAddress(directory + slot * 8))?;
        }
    }
    Ok(())
}

/// Prepares a processor; the first one with an entry. The others wait for it to start them.
pub(crate) fn prepare(vcpu: &VcpuFd, entry: Option<BootEntry>) -> Result<(), Error> {
    let failed = kvm("set the registers of a processor");
    if let Some(entry) = entry {
        let msrs = [kvm_msr_entry {
            index: MSR_MISC_ENABLE,
            data: FAST_STRINGS,
            ..Default::default()
        }];
        // A host whose KVM has no such register is none that needs it.
        if let Ok(msrs) = Msrs::from_entries(&msrs) {
            vcpu.set_msrs(&msrs).map_err(&failed)?;
        }
        let regs = kvm_regs {
            rip: entry.address,
            rsi: entry.parameters,
            rsp: STACK,
            rbp: STACK,
            rflags: RFLAGS,
            ..Default::default()
        };
        vcpu.set_regs(&regs).map_err(&failed)?;
        let fpu = kvm_fpu {
            fcw: 0x37f,
            mxcsr: 0x1f80,
            ..Default::default()
        };
        vcpu.set_fpu(&fpu).map_err(&failed)?;
        set_system_registers(vcpu).map_err(&failed)?;
    }
    let mut lapic = vcpu.get_lapic().map_err(&failed)?;
    set_delivery(&mut lapic, LVT_LINT0, EXTERNAL);
    set_delivery(&mut lapic, LVT_LINT1, NMI);
    vcpu.set_lapic(&lapic).map_err(&failed)
}

fn set_system_registers(vcpu: &VcpuFd) -> Result<(), vmm_sys_util::errno::Error> {
    let mut sregs = vcpu.get_sregs()?;
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = IDT;
    sregs.idt.limit = 7;
    sregs.cs = code();
    let data = data();
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    sregs.tr = task();
    sregs.cr0 |= CR0_PE | CR0_ET | CR0_PG;
    sregs.cr3 = PML4;
    sregs.cr4 |= CR4_PAE;
    sregs.efer |= EFER_LME | EFER_LMA;
    vcpu.set_sregs(&sregs)
}

/// A register of the local APIC is 32 bits in a page of them.
fn set_delivery(lapic: &mut kvm_lapic_state, register: usize, mode: u32) {
    for (byte, at) in mode.to_le_bytes().into_iter().zip(register..) {
        lapic.regs[at] = byte.cast_signed();
    }
}

fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

/// Execute, read, accessed; 64 bits.
fn code() -> kvm_segment {
    kvm_segment {
        l: 1,
        ..segment(CODE_SELECTOR, 0xb)
    }
}

/// Read, write, accessed.
fn data() -> kvm_segment {
    kvm_segment {
        db: 1,
        ..segment(DATA_SELECTOR, 0x3)
    }
}

/// A task state that is in use.
fn task() -> kvm_segment {
    kvm_segment {
        s: 0,
        ..segment(TASK_SELECTOR, 0xb)
    }
}

/// The segment as an entry of the GDT. Base is zero and limit all ones in each.
fn descriptor(segment: &kvm_segment) -> u64 {
    let access = u64::from(segment.type_) | u64::from(segment.s) << 4 | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    0xffff | access << 40 | 0xf << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_bits_of_the_manual() {
        assert_eq!(descriptor(&code()), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task()), 0x008f_8b00_0000_ffff);
    }

    #[test]
    fn the_lowest_four_gigabytes_are_mapped() {
        let memory = crate::mem::allocate(crate::MIN_MEMORY).unwrap();
        write_tables(&memory).unwrap();
        let last: u64 = memory.read_obj(GuestAddress(DIRECTORIES + 4 * PAGE - 8)).unwrap();
        assert_eq!(last, 0xffe0_0000 | PRESENT_WRITABLE | LARGE_PAGE);
    }
}
