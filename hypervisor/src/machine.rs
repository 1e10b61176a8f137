//! A machine: made whole or not at all, run once, taken apart in order.

use std::fs::File;
use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use vhd_block::Disk;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::boot::{Boot, Platform};
use crate::bus::{Bus, Devices};
use crate::cpu::{CpuModel, Processors, Vcpu};
use crate::error::host;
use crate::handle::MachineHandle;
use crate::kvm::{Start, Told, Vm};
use crate::legacy::{COM1_IRQ, Com1, PanicWatch};
use crate::mem::{self, MAX_MEMORY, MEMORY_UNIT, MIN_MEMORY};
use crate::pci::SLOTS;
use crate::running::{Event, Parts, Running};
use crate::sandbox::Sandbox;
use crate::slots::{FIRST as FIRST_SLOT, Slots};
use crate::state::{self, Processor, StateError, StateFile};
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
    /// The rules for the thread that serves it, if all that it takes are files that are open: not for disks on servers.
    pub sandbox: Sandbox,
}

/// What a machine is made of.
pub struct MachineConfig {
    /// What the guest finds.
    pub machine_type: MachineType,
    /// Processors, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// What the guest is told of them.
    pub cpu: CpuModel,
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
    /// The guest gets a source of random numbers, in a machine of type [`MachineType::Vhd1`].
    pub rng: bool,
    /// Where the output of the guest's console goes. A writer that blocks stops the processor that writes.
    pub console: Box<dyn Write + Send>,
    /// The rules for the threads of its processors. The console's writer is under them too: it writes and sends on
    /// descriptors that are open.
    pub sandbox: Sandbox,
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
    /// [`MachineHandle::save`] was called: it goes on when it is restored.
    Saved,
}

/// A machine that is ready to run.
pub struct Machine {
    vcpus: Vec<Vcpu>,
    parts: Parts,
    com1: Arc<Mutex<Com1>>,
    panic: PanicWatch,
    sandbox: Sandbox,
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
        let vm = Arc::new(Vm::new(mem::allocate(config.memory)?, Told::Model(config.cpu))?);
        let announced: Vec<(u64, u32)> = places().take(config.disks.len()).collect();
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
                if config.rng {
                    slots.equip_rng(None, config.sandbox)?;
                }
                (Devices::Pci(Arc::new(slots)), Vec::new())
            }
            MachineType::Mmio => on_mmio(&vm, config.disks)?,
        };
        let vcpus = vm.make_vcpus(config.cpus, Start::Boot(entry))?;
        let identity = identity(config.machine_type, config.cpus, config.memory);
        let machine = Self::assemble(vm, vcpus, (com1, panic), (devices, disks), identity);
        Ok(Self {
            sandbox: config.sandbox,
            ..machine
        })
    }

    /// Makes a machine as it was saved, with its disks in the slots that [`StateFile::slots`] names; nothing runs yet.
    ///
    /// # Errors
    /// [`Error::State`] with the reason why it cannot be restored here, and what [`new`](Self::new) says of KVM and the host.
    pub fn restore(
        saved: &StateFile,
        disks: Vec<(usize, MachineDisk)>,
        console: Box<dyn Write + Send>,
        sandbox: Sandbox,
    ) -> Result<Self, Error> {
        let (expected, found) = (saved.slots(), disks.iter().map(|(slot, _)| *slot).collect());
        let others = saved.rng_slots();
        let is_no_slot = |slot: &usize| !(FIRST_SLOT..SLOTS).contains(slot);
        if expected != found
            || expected.len() > MAX_DISKS
            || expected.iter().any(|slot| *slot >= SLOTS)
            || others.len() > 1
            || others.iter().any(is_no_slot)
        {
            return Err(StateError::Disks { expected, found }.into());
        }
        let memory = mem::allocate(saved.memory())?;
        let vm = Arc::new(Vm::new(memory, Told::Saved(saved.one("cpuid")?))?);
        saved.read_memory(mem::backing(vm.memory()).ok_or(Error::Ended)?)?;
        let processors: Vec<Processor> = saved.numbered("processor", saved.cpus().into())?;
        let vcpus = vm.make_vcpus(saved.cpus(), Start::Saved(&processors))?;
        vm.restore_interrupts(&saved.one("interrupts")?)?;
        let panic = PanicWatch::default();
        let com1 = Com1::restore(console, panic.clone(), &saved.one("com1")?)?;
        vm.connect_interrupt(com1.event(), COM1_IRQ)?;
        let equipped = match saved.machine_type() {
            MachineType::Vhd1 => {
                let slots = Slots::new(Arc::clone(&vm))?;
                for (slot, disk) in disks {
                    slots.equip_again(slot, disk)?;
                }
                for slot in saved.rng_slots() {
                    slots.equip_rng(Some(slot), sandbox)?;
                }
                (Devices::Pci(Arc::new(slots)), Vec::new())
            }
            MachineType::Mmio => on_mmio(&vm, disks.into_iter().map(|(_, disk)| disk).collect())?,
        };
        let identity = identity(saved.machine_type(), saved.cpus(), saved.memory());
        let machine = Self {
            sandbox,
            ..Self::assemble(vm, vcpus, (com1, panic), equipped, identity)
        };
        machine.parts.bus.for_each_device(&mut |device| device.pause());
        machine.parts.bus.restore(saved)?;
        Ok(machine)
    }

    fn assemble(
        vm: Arc<Vm>,
        vcpus: Vec<Vcpu>,
        (com1, panic): (Com1, PanicWatch),
        (devices, disks): (Devices, Vec<Disk>),
        identity: state::Machine,
    ) -> Self {
        let slots = match &devices {
            Devices::Pci(slots) => Some(Arc::clone(slots)),
            Devices::Mmio(_) => None,
        };
        let com1 = Arc::new(Mutex::new(com1));
        let (report, reports) = channel();
        let parts = Parts {
            bus: Arc::new(Bus::new(Arc::clone(&com1), devices)),
            slots,
            disks,
            vm,
            identity,
        };
        Self {
            vcpus,
            parts,
            com1,
            panic,
            sandbox: Sandbox::Off,
            report,
            reports,
        }
    }

    /// What other threads control the machine with.
    #[must_use]
    pub fn handle(&self) -> MachineHandle {
        MachineHandle::new(Arc::clone(&self.com1), self.parts.slots.clone(), self.report.clone())
    }

    /// Runs the guest until it ends. On return no thread of the machine is left, and its disks are flushed.
    ///
    /// # Errors
    /// [`Error::Crashed`] and [`Error::Kvm`] where KVM gives up, [`Error::Disk`] where a disk cannot be flushed at the end.
    pub fn run(self) -> Result<End, Error> {
        self.run_from(false)
    }

    /// The same with a guest that is held until [`MachineHandle::resume`].
    ///
    /// # Errors
    /// As of [`run`](Self::run).
    pub fn run_held(self) -> Result<End, Error> {
        self.run_from(true)
    }

    fn run_from(self, is_held: bool) -> Result<End, Error> {
        let processors = Processors::start(self.vcpus, &self.parts.bus, &self.report, self.sandbox)?;
        let mut running = Running::new(processors, self.parts);
        if !is_held {
            running.resume();
        }
        let ended = running.until_end(&self.reports);
        // Nobody is answered any more who asks for something.
        drop(self.reports);
        // In this order: nobody rings any more, then the threads of the disks end, then what they wrote is flushed.
        let flushed = running.take_apart().iter().try_for_each(Disk::flush);
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
    if config.rng && config.machine_type != MachineType::Vhd1 {
        return Err(Error::NoRng);
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
    let device = Block::new(disk.disk, &disk.name, disk.read_only, disk.sandbox);
    device.map(Box::new).map_err(host("start the thread of a disk"))
}

/// An event counter that KVM reads.
pub(crate) fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK).map_err(host("make an event counter"))
}

/// What a machine is, as its state says it.
fn identity(machine_type: MachineType, cpus: u8, memory: u64) -> state::Machine {
    state::Machine {
        machine_type: machine_type.name().to_owned(),
        cpus: cpus.into(),
        memory,
        writer: concat!("vhd ", env!("CARGO_PKG_VERSION")).to_owned(),
    }
}

/// The address and the interrupt of each disk on virtio-mmio.
fn places() -> impl Iterator<Item = (u64, u32)> {
    (0..).map(Bus::address).zip(DISK_IRQS)
}

/// Puts disks at addresses, each with its bell and its interrupt.
fn on_mmio(vm: &Vm, disks: Vec<MachineDisk>) -> Result<(Devices, Vec<Disk>), Error> {
    let of_machine = disks.iter().map(|disk| disk.disk.clone()).collect();
    let connect = |(disk, (address, line)): (MachineDisk, (u64, u32))| {
        let event = event()?;
        vm.connect_interrupt(&event, line)?;
        let interrupt = Arc::new(Interrupt::new(event));
        let transport = MmioTransport::new(block(disk)?, vm.memory().clone(), interrupt);
        vm.connect_doorbell(transport.device().doorbell(), address + DOORBELL)?;
        Ok(Mutex::new(transport))
    };
    let devices = disks.into_iter().zip(places()).map(connect);
    Ok((Devices::Mmio(devices.collect::<Result<_, Error>>()?), of_machine))
}
