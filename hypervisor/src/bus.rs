//! Which device answers at which port or address.

use std::sync::{Arc, Mutex, PoisonError};

use vhd_block::units::usize_from;

use crate::End;
use crate::legacy::{CMOS_DATA, CMOS_INDEX, COM1, Cmos, Com1, PowerPort};
use crate::mem::HOLE_START;
use crate::virtio::mmio::{MmioTransport, PAGE};

/// What nobody drives.
const FLOATING: u8 = 0xff;

/// All devices that processors reach by themselves.
pub(crate) struct Bus {
    com1: Arc<Mutex<Com1>>,
    cmos: Mutex<Cmos>,
    /// One per page from the beginning of the hole.
    devices: Vec<Mutex<MmioTransport>>,
}

impl Bus {
    pub(crate) fn new(com1: Arc<Mutex<Com1>>, devices: Vec<MmioTransport>) -> Self {
        Self {
            com1,
            cmos: Mutex::default(),
            devices: devices.into_iter().map(Mutex::new).collect(),
        }
    }

    /// The address of the device with this number.
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
        } else {
            data.fill(FLOATING);
        }
    }

    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.device(address) {
            locked(device).write(offset, data);
        }
    }

    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) {
        match self.device(address) {
            Some((device, offset)) => locked(device).read(offset, data),
            None => data.fill(FLOATING),
        }
    }

    fn device(&self, address: u64) -> Option<(&Mutex<MmioTransport>, u64)> {
        let offset = address.checked_sub(HOLE_START)?;
        let device = self.devices.get(usize_from(offset / PAGE))?;
        Some((device, offset % PAGE))
    }
}

fn register(port: u16) -> u8 {
    u8::try_from(port - COM1.start()).unwrap_or(FLOATING)
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
