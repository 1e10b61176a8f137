//! The zero page: what the boot protocol of Linux tells a kernel.

use linux_loader::bootparam::{boot_e820_entry, boot_params};
use vm_memory::{Bytes as _, GuestAddress, GuestMemoryError};

use super::command_line::CAPACITY;
use super::kernel::Kernel;
use super::{Initrd, Platform, acpi};
use crate::mem::{GuestMemory, ranges};
use crate::pci::ECAM;

/// Where the zero page is.
pub(super) const ADDRESS: u64 = 0x7000;
/// Where the command line is.
const COMMAND_LINE: u64 = 0x2_0000;

/// Where the memory below a megabyte ends: the rest has the tables that describe the machine.
pub(super) const LOW_END: u64 = 0x9_fc00;
const HIGH_START: u64 = 0x10_0000;

const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// A boot loader without a number of its own.
const LOADER: u8 = 0xff;
const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS", little endian.
const HEADER: u32 = 0x5372_6448;
/// Bytes, for ELF kernels.
const ALIGNMENT: u32 = 0x100_0000;
/// Bytes that a kernel for x86 takes at most.
const COMMAND_LINE_LIMIT: u32 = CAPACITY as u32 - 1;

/// Writes the zero page and the command line.
pub(super) fn write(
    memory: &GuestMemory,
    kernel: &Kernel,
    initrd: Option<Initrd>,
    command_line: &str,
    size: u64,
    platform: Platform<'_>,
) -> Result<(), GuestMemoryError> {
    memory.write_slice(command_line.as_bytes(), GuestAddress(COMMAND_LINE))?;
    memory.write_obj(
        0_u8,
        GuestAddress(COMMAND_LINE + vhd_block::units::u64_from(command_line.len())),
    )?;
    let mut page = boot_params::default();
    match kernel.header {
        Some(header) => page.hdr = header,
        None => {
            page.hdr.boot_flag = BOOT_FLAG;
            page.hdr.header = HEADER;
            page.hdr.kernel_alignment = ALIGNMENT;
            page.hdr.cmdline_size = COMMAND_LINE_LIMIT;
        }
    }
    page.hdr.type_of_loader = LOADER;
    page.hdr.cmd_line_ptr = low(COMMAND_LINE);
    if let Some(initrd) = initrd {
        page.hdr.ramdisk_image = low(initrd.address);
        page.hdr.ramdisk_size = low(initrd.len);
    }
    let mut map = map(size);
    if let Platform::Vhd1 = platform {
        page.acpi_rsdp_addr = acpi::ADDRESS;
        let (address, len) = ECAM;
        map.push((address, len, RESERVED));
    }
    page.e820_entries = u8::try_from(map.len()).unwrap_or(u8::MAX);
    for (entry, (addr, len, kind)) in page.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry {
            addr,
            size: len,
            r#type: kind,
        };
    }
    memory.write_obj(page, GuestAddress(ADDRESS))
}

/// The map of memory: address, length, kind.
fn map(size: u64) -> Vec<(u64, u64, u32)> {
    let mut map = vec![(0, LOW_END, RAM), (LOW_END, HIGH_START - LOW_END, RESERVED)];
    for (start, len) in ranges(size) {
        let from = start.max(HIGH_START);
        map.push((from, start + len - from, RAM));
    }
    map
}

/// An address or length below 4 GiB.
fn low(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{HOLE_END, HOLE_START};

    #[test]
    fn the_map_has_all_memory_and_no_hole() {
        let total = |size| -> u64 {
            let ram = map(size).into_iter().filter(|(_, _, kind)| *kind == RAM);
            ram.map(|(_, len, _)| len).sum()
        };
        assert_eq!(total(64 << 20), (64 << 20) - (HIGH_START - LOW_END));
        let last = *map(HOLE_START + 4096).last().unwrap();
        assert_eq!(last, (HOLE_END, 4096, RAM));
    }
}
