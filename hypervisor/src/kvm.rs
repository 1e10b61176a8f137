//! The machine as KVM has it: memory, interrupt controllers, timers, doorbells.
//!
//! The only file of this crate with unsafe code: KVM is given the addresses of guest memory.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_API_VERSION, KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_PIT_SPEAKER_DUMMY, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_entry__bindgen_ty_1,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi, kvm_pit_config, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, IoEventAddress, Kvm, NoDatamatch, VmFd};
use vm_memory::{Address as _, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

use crate::Error;
use crate::cpu::{BootEntry, Cpuid, Vcpu, prepare};
use crate::error::kvm;
use crate::mem::GuestMemory;
use crate::pci::{Message, Wires};

/// Three pages that KVM on Intel processors takes for itself, below 4 GiB where nothing else is.
const TSS: usize = 0xfffb_d000;

/// Lines of the I/O APIC, and those of them that the two 8259 have too.
pub(crate) const IOAPIC_LINES: u32 = 24;
const ISA_LINES: u32 = 16;

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
    memory: GuestMemory,
}

impl Vm {
    /// A machine with this memory and no processors.
    pub(crate) fn new(memory: GuestMemory) -> Result<Self, Error> {
        let system = open()?;
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
        let cpuid = Cpuid::new(&system)?;
        let fd = Arc::new(fd);
        Ok(Self { fd, cpuid, memory })
    }

    pub(crate) fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// Makes the processors; the first begins at `entry`.
    pub(crate) fn make_vcpus(&self, count: u8, entry: BootEntry) -> Result<Vec<Vcpu>, Error> {
        let make = |number: u8| {
            let fd = self.fd.create_vcpu(number.into()).map_err(kvm("make a processor"))?;
            self.cpuid.apply(&fd, number, count)?;
            prepare(&fd, (number == 0).then_some(entry))?;
            Ok(Vcpu::new(fd, self.memory.clone()))
        };
        (0..count).map(make).collect()
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

fn open() -> Result<Kvm, Error> {
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
