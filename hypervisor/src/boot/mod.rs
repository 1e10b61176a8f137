//! What a machine starts with: kernel, initramfs, command line, and what the kernel has to know of the machine.

mod acpi;
mod command_line;
mod kernel;
mod mp_table;
mod zero_page;

use std::fs::File;

use vm_memory::{Bytes as _, GuestAddress};

use crate::Error;
use crate::cpu::{BootEntry, write_tables};
use crate::error::host;
use crate::mem::{GuestMemory, HOLE_START};
use kernel::Kernel;

/// Bytes to which an initramfs is aligned.
const PAGE: u64 = 4096;

/// How the kernel learns what is there.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Platform<'a> {
    /// By tables of ACPI.
    Vhd1,
    /// By the table of the MultiProcessor Specification, and addresses and interrupts of devices on the command line.
    Mmio(&'a [(u64, u32)]),
}

/// What is started.
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a mut File,
    pub(crate) initrd: Option<&'a mut File>,
    /// What the kernel's disk has as its command line.
    pub(crate) command_line: &'a str,
    /// What the user adds to the command line.
    pub(crate) append: &'a str,
    pub(crate) platform: Platform<'a>,
    pub(crate) cpus: u8,
    /// Bytes of guest memory.
    pub(crate) size: u64,
}

impl Boot<'_> {
    /// Puts everything into guest memory; returns where the first processor begins.
    pub(crate) fn load(self, memory: &GuestMemory) -> Result<BootEntry, Error> {
        let announced = match self.platform {
            Platform::Vhd1 => &[],
            Platform::Mmio(devices) => devices,
        };
        let command_line = command_line::compose(self.command_line, announced, self.append)?;
        let end = self.size.min(HOLE_START);
        let kernel = Kernel::load(self.kernel, memory, end)?;
        let initrd = match self.initrd {
            Some(file) => Some(load_initrd(file, memory, &kernel, end)?),
            None => None,
        };
        let described = match self.platform {
            Platform::Vhd1 => acpi::write(memory, self.cpus),
            Platform::Mmio(_) => mp_table::write(memory, self.cpus),
        };
        let written = described
            .and_then(|()| zero_page::write(memory, &kernel, initrd, &command_line, self.size, self.platform))
            .and_then(|()| write_tables(memory));
        // All of it is below a megabyte, and no machine has less.
        written.map_err(|error| host("write to guest memory")(std::io::Error::other(error)))?;
        Ok(BootEntry {
            address: kernel.entry,
            parameters: zero_page::ADDRESS,
        })
    }
}

/// Where an initramfs is.
#[derive(Clone, Copy, Debug)]
struct Initrd {
    address: u64,
    len: u64,
}

/// Puts an initramfs as high as the kernel can reach it.
fn load_initrd(file: &mut File, memory: &GuestMemory, kernel: &Kernel, end: u64) -> Result<Initrd, Error> {
    let failed = host("read the initramfs");
    let len = file.metadata().map_err(&failed)?.len();
    let top = end.min(kernel.initrd_limit);
    let address = top.checked_sub(len).map(|start| start - start % PAGE);
    let Some(address) = address.filter(|start| *start >= kernel.end) else {
        return Err(Error::TooLittleMemory {
            what: "the kernel with its initramfs",
            needed: kernel.end.saturating_add(len).next_multiple_of(PAGE),
            available: top,
        });
    };
    let count = vhd_block::units::usize_from(len);
    memory
        .read_exact_volatile_from(GuestAddress(address), file, count)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    Ok(Initrd { address, len })
}
