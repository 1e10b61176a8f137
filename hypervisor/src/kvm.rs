//! The machine as KVM has it: memory, interrupt controllers, timers, doorbells.
//!
//! The only file of this crate with unsafe code: KVM is given the addresses of guest memory, and structures that it reads.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_API_VERSION, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_clock_data, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_irqchip, kvm_pit_config,
    kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::cpu::state::{bytes, saved_msrs, structure};
use crate::cpu::{self, BootEntry, CpuModel, Cpuid, Processors, Vcpu, prepare};
use crate::error::kvm;
use crate::mem::GuestMemory;
use crate::pci::{Message, Wires};
use crate::state::{CpuTable, Interrupts, Processor, StateError};

/// Three pages that KVM on Intel processors takes for itself, below 4 GiB where nothing else is.
const TSS: usize = 0xfffb_d000;

/// Lines of the I/O APIC, and those of them that the two 8259 have too.
pub(crate) const IOAPIC_LINES: u32 = 24;
const ISA_LINES: u32 = 16;

/// The interrupt controllers of KVM that are saved.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// What a host's KVM must be able to do.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::Irqchip, "interrupt controllers"),
    (Cap::Ioeventfd, "doorbells (ioeventfd)"),
    (Cap::Irqfd, "interrupts from event counters (irqfd)"),
    (Cap::Pit2, "the timer of a PC"),
    (Cap::UserMemory, "memory of processes as guest memory"),
    (Cap::ExtCpuid, "a description of processors"),
    (Cap::MpState, "the state of processors"),
    (Cap::IrqRouting, "interrupts as messages"),
];

/// A virtual machine of KVM and its memory.
pub(crate) struct Vm {
    fd: Arc<VmFd>,
    cpuid: Cpuid,
    /// The registers of processors that are saved.
    msrs: Vec<u32>,
    memory: GuestMemory,
}

/// Refuses if this host's processors lack something that a guest was started with.
pub(crate) fn require_processor(saved: CpuTable) -> Result<(), Error> {
    Cpuid::of_host(&open()?, CpuModel::Host)?.saved(saved)?;
    Ok(())
}

/// What a guest is told of its processors.
pub(crate) enum Told {
    /// What this host has of a model.
    Model(CpuModel),
    /// What it was told before it was saved.
    Saved(CpuTable),
}

/// How processors begin.
#[derive(Clone, Copy)]
pub(crate) enum Start<'a> {
    /// The first with a kernel; the others wait for it.
    Boot(BootEntry),
    /// All where they were.
    Saved(&'a [Processor]),
}

impl Vm {
    /// A machine with this memory and no processors yet.
    pub(crate) fn new(memory: GuestMemory, told: Told) -> Result<Self, Error> {
        let system = open()?;
        // Before anything is made that would be for nothing.
        let cpuid = match told {
            Told::Model(model) => Cpuid::of_host(&system, model)?,
            Told::Saved(saved) => Cpuid::of_host(&system, CpuModel::Host)?.saved(saved)?,
        };
        let fd = system.create_vm().map_err(kvm("make a virtual machine"))?;
        for (slot, region) in (0..).zip(memory.iter()) {
            let host = region.get_host_address(vm_memory::MemoryRegionAddress(0));
            let host = host.map_err(|error| Error::Memory {
                size: region.len(),
                source: std::io::Error::other(error),
            })?;
            let slot = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: host as u64,
            };
            // SAFETY: the addresses are those of a mapping of exactly this length. KVM uses them while a processor runs,
            // and each `Vcpu` holds a clone of `memory`, which keeps the mapping. Regions of guest memory do not overlap.
            unsafe { fd.set_user_memory_region(slot) }.map_err(kvm("take the guest's memory"))?;
        }
        fd.set_tss_address(TSS).map_err(kvm("set aside pages for itself"))?;
        fd.create_irq_chip().map_err(kvm("make interrupt controllers"))?;
        let timer = kvm_pit_config {
            flags: KVM_PIT_SPEAKER_DUMMY,
            ..Default::default()
        };
        fd.create_pit2(timer).map_err(kvm("make a timer"))?;
        let msrs = saved_msrs(&system)?;
        let fd = Arc::new(fd);
        Ok(Self {
            fd,
            cpuid,
            msrs,
            memory,
        })
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Makes the processors.
    pub(crate) fn make_vcpus(&self, count: u8, start: Start<'_>) -> Result<Vec<Vcpu>, Error> {
        let make = |number: u8| {
            let fd = self.fd.create_vcpu(number.into()).map_err(kvm("make a processor"))?;
            self.cpuid.apply(&fd, number, count)?;
            match start {
                Start::Boot(entry) => prepare(&fd, (number == 0).then_some(entry))?,
                Start::Saved(all) => {
                    let tsc = all.first().and_then(cpu::state::tsc);
                    cpu::state::restore(self, &fd, &all[usize::from(number)], tsc)?;
                }
            }
            Ok(Vcpu::new(fd, self.memory.clone()))
        };
        (0..count).map(make).collect()
    }

    /// The state of processors that are held.
    pub(crate) fn save_processors(&self, processors: &Processors) -> Result<Vec<Processor>, Error> {
        self.require_plain_state()?;
        processors.save(&self.msrs)
    }

    /// What the processors say about themselves.
    pub(crate) fn cpu_table(&self) -> &CpuTable {
        self.cpuid.table()
    }

    /// Sets the state of the floating point unit and of vectors.
    pub(crate) fn set_xsave(&self, vcpu: &VcpuFd, xsave: &kvm_xsave) -> Result<(), Error> {
        self.require_plain_state()?;
        // SAFETY: KVM reads as many bytes as the state of this machine's processors has; those are no more than the
        // structure has, as was asked just now. Its content is checked by KVM.
        unsafe { vcpu.set_xsave(xsave) }.map_err(kvm("set the state of a processor"))
    }

    /// Refuses a host whose processors have more state than the structure that we know.
    fn require_plain_state(&self) -> Result<(), Error> {
        let bytes = usize::try_from(self.fd.check_extension_int(Cap::Xsave2)).unwrap_or(0);
        if bytes <= size_of::<kvm_xsave>() {
            return Ok(());
        }
        let reasons = vec![format!(
            "a processor has {bytes} bytes of state, more than this program can save"
        )];
        Err(StateError::Processor { reasons }.into())
    }

    /// The state of interrupt controllers, timer and clock, while the processors are held.
    pub(crate) fn save_interrupts(&self) -> Result<Interrupts, Error> {
        let failed = kvm("read the state of its interrupt controllers");
        let chip = |chip_id: u32| {
            let mut chip = kvm_irqchip {
                chip_id,
                ..Default::default()
            };
            self.fd.get_irqchip(&mut chip).map_err(&failed)?;
            Ok(bytes(&chip))
        };
        Ok(Interrupts {
            chips: CHIPS.into_iter().map(chip).collect::<Result<_, Error>>()?,
            pit: bytes(&self.fd.get_pit2().map_err(&failed)?),
            clock: bytes(&self.fd.get_clock().map_err(&failed)?),
        })
    }

    /// Sets it, after the processors.
    pub(crate) fn restore_interrupts(&self, saved: &Interrupts) -> Result<(), Error> {
        let failed = kvm("set the state of its interrupt controllers");
        if saved.chips.len() != CHIPS.len() {
            return Err(StateError::damaged("interrupts", "has other controllers").into());
        }
        for (chip, chip_id) in saved.chips.iter().zip(CHIPS) {
            let mut chip: kvm_irqchip = structure(chip)?;
            chip.chip_id = chip_id;
            self.fd.set_irqchip(&chip).map_err(&failed)?;
        }
        self.fd.set_pit2(&structure(&saved.pit)?).map_err(&failed)?;
        let clock: kvm_clock_data = structure(&saved.clock)?;
        // The guest's clock goes on where it was: it does not learn how long it was away.
        let clock = kvm_clock_data {
            clock: clock.clock,
            ..Default::default()
        };
        self.fd.set_clock(&clock).map_err(&failed)
    }

    /// What is signalled is an edge of this interrupt line.
    pub(crate) fn connect_interrupt(&self, event: &EventFd, line: u32) -> Result<(), Error> {
        self.fd.register_irqfd(event, line).map_err(kvm("connect an interrupt"))
    }

    /// What functions of PCI are connected with.
    pub(crate) fn wires(&self) -> Arc<dyn Wires> {
        Arc::new(KvmWires {
            fd: Arc::clone(&self.fd),
            messages: Mutex::default(),
        })
    }

    /// A write to `address` is signalled, and the processor goes on at once.
    pub(crate) fn connect_doorbell(&self, event: &EventFd, address: u64) -> Result<(), Error> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch)
            .map_err(kvm("connect a doorbell"))
    }
}

/// What functions of PCI need of this machine.
pub(crate) struct KvmWires {
    fd: Arc<VmFd>,
    /// The messages of lines behind those of the I/O APIC.
    messages: Mutex<BTreeMap<u32, Message>>,
}

impl KvmWires {
    /// All routes: KVM takes the whole table or nothing.
    fn routes(messages: &BTreeMap<u32, Message>) -> Vec<kvm_irq_routing_entry> {
        let pic = |line: u32| (line < ISA_LINES).then(|| pin(line, KVM_IRQCHIP_PIC_MASTER + line / 8, line % 8));
        let ioapic = |line| pin(line, KVM_IRQCHIP_IOAPIC, line);
        let pins = (0..IOAPIC_LINES).flat_map(|line| pic(line).into_iter().chain([ioapic(line)]));
        let messages = messages.iter().map(|(line, message)| kvm_irq_routing_entry {
            gsi: *line,
            type_: KVM_IRQ_ROUTING_MSI,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                msi: kvm_irq_routing_msi {
                    address_lo: (message.address & 0xffff_ffff) as u32,
                    address_hi: (message.address >> 32) as u32,
                    data: message.data,
                    ..Default::default()
                },
            },
            ..Default::default()
        });
        pins.chain(messages).collect()
    }
}

/// The route of a line to a pin of an interrupt controller.
fn pin(line: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry {
        gsi: line,
        type_: KVM_IRQ_ROUTING_IRQCHIP,
        u: kvm_irq_routing_entry__bindgen_ty_1 {
            irqchip: kvm_irq_routing_irqchip { irqchip, pin },
        },
        ..Default::default()
    }
}

impl Wires for KvmWires {
    fn route(&self, line: u32, message: Message) {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.insert(line, message);
        let routes = KvmIrqRouting::from_entries(&Self::routes(&messages));
        let set = routes.ok().map(|routes| self.fd.set_gsi_routing(&routes));
        if !matches!(set, Some(Ok(()))) {
            tracing::error!(line, ?message, "KVM cannot route an interrupt of the guest");
        }
    }

    fn connect_doorbell(&self, event: &EventFd, address: u64) {
        let connected = self
            .fd
            .register_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch);
        // The bell then rings through us, which is slower.
        if let Err(error) = connected {
            tracing::debug!(%error, address, "KVM does not hear a doorbell");
        }
    }

    fn disconnect_doorbell(&self, event: &EventFd, address: u64) {
        let gone = self
            .fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address), NoDatamatch);
        if let Err(error) = gone {
            tracing::debug!(%error, address, "KVM did not hear a doorbell");
        }
    }
}

pub(crate) fn open() -> Result<Kvm, Error> {
    let system = Kvm::new().map_err(|error| Error::NoKvm {
        reason: std::io::Error::from_raw_os_error(error.errno()).to_string(),
    })?;
    let version = system.get_api_version();
    if i64::from(version) != i64::from(KVM_API_VERSION) {
        return Err(Error::NoKvm {
            reason: format!("its interface has version {version}, not {KVM_API_VERSION}"),
        });
    }
    for (capability, what) in NEEDED {
        if !system.check_extension(*capability) {
            return Err(Error::NoKvm {
                reason: format!("this KVM has no {what}"),
            });
        }
    }
    Ok(system)
}
