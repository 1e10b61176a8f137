//! A machine: made whole or not at all, run once, taken apart in order.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use vhd_block::Disk;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::{Boot, Platform};
use crate::bus::{Bus, Devices};
use crate::cpu::{Processors, Vcpu};
use crate::error::host;
use crate::handle::MachineHandle;
use crate::kvm::Vm;
use crate::legacy::{COM1_IRQ, Com1, PanicWatch};
use crate::mem::{self, MAX_MEMORY, MEMORY_UNIT, MIN_MEMORY};
use crate::running::{Event, Running};
use crate::slots::Slots;
use crate::virtio::Interrupt;
use crate::virtio::block::Block;
use crate::virtio::mmio::{DOORBELL, MmioTransport};
use crate::{Error, MAX_CPUS, MAX_DISKS, MachineType};

/// The interrupts of disks, in turn: those of the ISA bus that nothing else has.
const DISK_IRQS: [u32; MAX_DISKS] = [5, 6, 7, 9, 10, 11, 14, 15];

/// A disk of a machine.
#[derive(Debug)]
pub struct MachineDisk {
    /// The disk.
    pub disk: Disk,
    /// The guest cannot write to it.
    pub read_only: bool,
    /// What the guest sees as its serial number; 20 bytes of it.
    pub name: String,
}

/// What a machine is made of.
pub struct MachineConfig {
    /// What the guest finds.
    pub machine_type: MachineType,
    /// Processors, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Bytes of memory, a multiple of [`MEMORY_UNIT`] from [`MIN_MEMORY`] to [`MAX_MEMORY`].
    pub memory: u64,
    /// An ELF vmlinux or a bzImage, a regular file.
    pub kernel: File,
    /// An initramfs, a regular file.
    pub initrd: Option<File>,
    /// The command line that the kernel's disk has for it. What the machine needs follows, and overrides it.
    pub command_line: String,
    /// What is added to the kernel's command line at its end.
    pub append: String,
    /// At most [`MAX_DISKS`]; the guest has them as `/dev/vda` and so on, in this order.
    pub disks: Vec<MachineDisk>,
    /// Where the output of the guest's console goes. A writer that blocks stops the processor that writes.
    pub console: Box<dyn Write + Send>,
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It powered off, or halted all processors without taking interrupts.
    PowerOff,
    /// It asked for a reset, or its first processor shut down after a triple fault. It is not started again.
    Reset,
    /// Linux wrote that it gave up, or said so to the pvpanic port.
    Panic,
    /// [`MachineHandle::stop`] was called.
    Stopped,
}

/// A machine that is ready to run.
pub struct Machine {
    vm: Arc<Vm>,
    vcpus: Vec<Vcpu>,
    bus: Bus,
    com1: Arc<Mutex<Com1>>,
    slots: Option<Arc<Slots>>,
    /// Those that are in no slot.
    disks: Vec<Disk>,
    panic: PanicWatch,
    report: Sender<Event>,
    reports: Receiver<Event>,
}

impl Machine {
    /// Makes a machine and loads its kernel; nothing runs yet.
    ///
    /// # Errors
    /// Each reason why there can be no such machine is a variant of [`Error`].
    pub fn new(mut config: MachineConfig) -> Result<Self, Error> {
        check(&config)?;
        let vm = Arc::new(Vm::new(mem::allocate(config.memory)?)?);
        let announced: Vec<(u64, u32)> = (0..)
            .map(Bus::address)
            .zip(DISK_IRQS)
            .take(config.disks.len())
            .collect();
        let boot = Boot {
            kernel: &mut config.kernel,
            initrd: config.initrd.as_mut(),
            command_line: &config.command_line,
            append: &config.append,
            platform: match config.machine_type {
                MachineType::Vhd1 => Platform::Vhd1,
                MachineType::Mmio => Platform::Mmio(&announced),
            },
            cpus: config.cpus,
            size: config.memory,
        };
        let entry = boot.load(vm.memory())?;
        let panic = PanicWatch::default();
        let com1 = Com1::new(config.console, panic.clone()).map_err(host("make an event counter"))?;
        vm.connect_interrupt(com1.event(), COM1_IRQ)?;
        let (devices, disks) = match config.machine_type {
            MachineType::Vhd1 => {
                let slots = Slots::new(Arc::clone(&vm))?;
                for disk in config.disks {
                    slots.equip(disk)?;
                }
                (Devices::Pci(Arc::new(slots)), Vec::new())
            }
            MachineType::Mmio => {
                let disks = config.disks.iter().map(|disk| disk.disk.clone()).collect();
                let devices = on_mmio(&vm, config.disks, &announced)?;
                (Devices::Mmio(devices), disks)
            }
        };
        let slots = match &devices {
            Devices::Pci(slots) => Some(Arc::clone(slots)),
            Devices::Mmio(_) => None,
        };
        let vcpus = vm.make_vcpus(config.cpus, entry)?;
        let com1 = Arc::new(Mutex::new(com1));
        let (report, reports) = channel();
        Ok(Self {
            vm,
            vcpus,
            bus: Bus::new(Arc::clone(&com1), devices),
            com1,
            slots,
            disks,
            panic,
            report,
            reports,
        })
    }

    /// What other threads control the machine with.
    #[must_use]
    pub fn handle(&self) -> MachineHandle {
        MachineHandle::new(Arc::clone(&self.com1), self.slots.clone(), self.report.clone())
    }

    /// Runs the guest until it ends. On return no thread of the machine is left, and its disks are flushed.
    ///
    /// # Errors
    /// [`Error::Crashed`] and [`Error::Kvm`] where KVM gives up, [`Error::Disk`] where a disk cannot be flushed at the end.
    pub fn run(self) -> Result<End, Error> {
        let bus = Arc::new(self.bus);
        let processors = Processors::start(self.vcpus, &bus, &self.report)?;
        let mut running = Running::new(processors, bus, self.slots);
        running.resume();
        let ended = running.until_end(&self.reports);
        // Nobody is answered any more who asks for something.
        drop(self.reports);
        // In this order: nobody rings any more, then the threads of the disks end, then what they wrote is flushed.
        let in_slots = running.take_apart();
        drop(self.vm);
        let flushed = self.disks.iter().chain(&in_slots).try_for_each(Disk::flush);
        let end = ended?;
        flushed?;
        // After a panic the kernel resets or halts.
        Ok(match end {
            End::Reset | End::PowerOff if self.panic.is_set() => End::Panic,
            end => end,
        })
    }
}

fn check(config: &MachineConfig) -> Result<(), Error> {
    if !(1..=MAX_CPUS).contains(&config.cpus) {
        return Err(Error::Cpus { count: config.cpus });
    }
    let size = config.memory;
    if !(MIN_MEMORY..=MAX_MEMORY).contains(&size) || !size.is_multiple_of(MEMORY_UNIT) {
        return Err(Error::MemorySize { size });
    }
    if config.disks.len() > MAX_DISKS {
        return Err(Error::Disks {
            count: config.disks.len(),
        });
    }
    Ok(())
}

/// A disk as a device.
pub(crate) fn block(disk: MachineDisk) -> Result<Box<Block>, Error> {
    let device = Block::new(disk.disk, &disk.name, disk.read_only);
    device.map(Box::new).map_err(host("start the thread of a disk"))
}

/// An event counter that KVM reads.
pub(crate) fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK).map_err(host("make an event counter"))
}

/// Puts disks at addresses, each with its bell and its interrupt.
fn on_mmio(vm: &Vm, disks: Vec<MachineDisk>, places: &[(u64, u32)]) -> Result<Vec<Mutex<MmioTransport>>, Error> {
    let connect = |(disk, (address, line)): (MachineDisk, &(u64, u32))| {
        let event = event()?;
        vm.connect_interrupt(&event, *line)?;
        let interrupt = Arc::new(Interrupt::new(event));
        let transport = MmioTransport::new(block(disk)?, vm.memory().clone(), interrupt);
        vm.connect_doorbell(transport.device().doorbell(), address + DOORBELL)?;
        Ok(Mutex::new(transport))
    };
    disks.into_iter().zip(places).map(connect).collect()
}
