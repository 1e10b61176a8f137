//! Which device answers at which port or address.

use std::sync::{Arc, Mutex, PoisonError};

use vhd_block::units::usize_from;

use crate::End;
use crate::legacy::{CMOS_DATA, CMOS_INDEX, COM1, Cmos, Com1, PowerPort};
use crate::mem::HOLE_START;
use crate::pci::{CONFIG_PORTS, HOTPLUG_PORTS};
use crate::slots::Slots;
use crate::state::{self as message, Section, StateError, StateFile, section};
use crate::virtio::VirtioDevice;
use crate::virtio::mmio::{MmioTransport, PAGE};

/// What nobody drives.
const FLOATING: u8 = 0xff;

/// The devices of a machine, by its type.
pub(crate) enum Devices {
    /// One per page from the beginning of the hole.
    Mmio(Vec<Mutex<MmioTransport>>),
    Pci(Arc<Slots>),
}

/// All devices that processors reach by themselves.
pub(crate) struct Bus {
    com1: Arc<Mutex<Com1>>,
    cmos: Mutex<Cmos>,
    devices: Devices,
}

impl Bus {
    pub(crate) fn new(com1: Arc<Mutex<Com1>>, devices: Devices) -> Self {
        Self {
            com1,
            cmos: Mutex::default(),
            devices,
        }
    }

    /// Does something with each virtio device.
    pub(crate) fn for_each_device(&self, job: &mut dyn FnMut(&mut dyn VirtioDevice)) {
        match &self.devices {
            Devices::Mmio(devices) => devices.iter().for_each(|device| job(locked(device).device_mut())),
            Devices::Pci(slots) => slots.host.for_each(&mut |_, function| job(function.device_mut())),
        }
    }

    /// The state of all devices, which are held.
    pub(crate) fn save(&self) -> Vec<Section> {
        let index = locked(&self.cmos).selected().into();
        let mut sections = vec![
            section("com1", 0, &locked(&self.com1).save()),
            section("cmos", 0, &message::Cmos { index }),
        ];
        match &self.devices {
            Devices::Mmio(devices) => {
                let saved =
                    |(number, device): (u32, &Mutex<MmioTransport>)| section("mmio", number, &locked(device).save());
                sections.extend((0..).zip(devices).map(saved));
            }
            Devices::Pci(slots) => sections.extend(slots.save()),
        }
        sections
    }

    /// Gives new devices, which are held, the state of those that were saved. COM1 has its own already.
    pub(crate) fn restore(&self, saved: &StateFile) -> Result<(), StateError> {
        let cmos: message::Cmos = saved.one("cmos")?;
        locked(&self.cmos).select(cmos.index.to_le_bytes()[0]);
        match &self.devices {
            Devices::Mmio(devices) => {
                let messages = saved.numbered("mmio", devices.len())?;
                let mut devices = devices.iter().zip(&messages);
                devices.try_for_each(|(device, message)| locked(device).restore(message))
            }
            Devices::Pci(slots) => slots.restore(saved),
        }
    }

    /// The address of the device with this number, behind virtio-mmio.
    pub(crate) fn address(number: usize) -> u64 {
        HOLE_START + vhd_block::units::u64_from(number) * PAGE
    }

    /// The guest writes to a port, perhaps several times in a row. Returns whether that was its end.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> Option<End> {
        if COM1.contains(&port) {
            let mut com1 = locked(&self.com1);
            data.iter().for_each(|byte| com1.write(register(port), *byte));
        } else if port == CMOS_INDEX {
            data.iter().for_each(|byte| locked(&self.cmos).select(*byte));
        } else if let Some(power) = PowerPort::new(port) {
            return data.iter().find_map(|byte| power.write(*byte));
        } else if let Devices::Pci(slots) = &self.devices {
            if CONFIG_PORTS.contains(&port) {
                slots.host.write_port(port, data);
            } else if HOTPLUG_PORTS.contains(&port) {
                slots.write_port(port, data);
            }
        }
        None
    }

    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        if COM1.contains(&port) {
            let mut com1 = locked(&self.com1);
            data.iter_mut().for_each(|byte| *byte = com1.read(register(port)));
        } else if port == CMOS_DATA {
            data.fill(locked(&self.cmos).read());
        } else if let Some(power) = PowerPort::new(port) {
            data.fill(power.read());
        } else if let Devices::Pci(slots) = &self.devices
            && CONFIG_PORTS.contains(&port)
        {
            slots.host.read_port(port, data);
        } else if let Devices::Pci(slots) = &self.devices
            && HOTPLUG_PORTS.contains(&port)
        {
            slots.read_port(port, data);
        } else {
            data.fill(FLOATING);
        }
    }

    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) {
        match &self.devices {
            Devices::Mmio(devices) => {
                if let Some((device, offset)) = at(devices, address) {
                    locked(device).write(offset, data);
                }
            }
            Devices::Pci(slots) => slots.host.write_memory(address, data),
        }
    }

    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) {
        let found = match &self.devices {
            Devices::Mmio(devices) => at(devices, address)
                .map(|(device, offset)| locked(device).read(offset, data))
                .is_some(),
            Devices::Pci(slots) => slots.host.read_memory(address, data),
        };
        if !found {
            data.fill(FLOATING);
        }
    }
}

/// The device whose page an address is in.
fn at(devices: &[Mutex<MmioTransport>], address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
    let offset = address.checked_sub(HOLE_START)?;
    let device = devices.get(usize_from(offset / PAGE))?;
    Some((device, offset % PAGE))
}

fn register(port: u16) -> u8 {
    u8::try_from(port - COM1.start()).unwrap_or(FLOATING)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
