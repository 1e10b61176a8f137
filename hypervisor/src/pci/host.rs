//! The host bridge: configuration accesses and memory accesses find their function.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vhd_block::units::usize_from;

use super::{ConfigSpace, ECAM, Identity, SLOTS};
use crate::virtio::pci::PciTransport;

/// The ports through which the configuration space is reached where memory is not: an address, and data for it.
pub(crate) const CONFIG_PORTS: std::ops::RangeInclusive<u16> = 0xcf8..=0xcff;
const DATA_PORT: u16 = 0xcfc;
/// Bit of the address: it is one.
const ENABLED: u32 = 1 << 31;

/// What is read where there is no function.
const NOTHING: u8 = 0xff;
/// Bytes of a function's configuration space in memory.
const FUNCTION: u64 = 4096;
/// Functions of a device.
const FUNCTIONS: u64 = 8;

/// A bridge without anything of its own, as other machines without firmware have it.
const BRIDGE: Identity = Identity {
    vendor: 0x1b36,
    device: 0x0008,
    revision: 0,
    class: [6, 0, 0],
    subsystem: (0, 0),
};

/// The bus.
pub(crate) struct PciHost {
    bridge: ConfigSpace,
    /// What the ports reach.
    address: Mutex<u32>,
    /// By the number of the device; the bridge has the first.
    slots: Vec<Mutex<Option<PciTransport>>>,
}

impl PciHost {
    /// A bus with the bridge alone.
    pub(crate) fn new() -> Self {
        Self {
            bridge: ConfigSpace::new(BRIDGE),
            address: Mutex::new(0),
            slots: std::iter::repeat_with(Mutex::default).take(SLOTS).collect(),
        }
    }

    /// Puts a function into a slot.
    pub(crate) fn insert(&self, slot: usize, function: PciTransport) {
        *locked(&self.slots[slot]) = Some(function);
    }

    /// Takes what is in a slot. The device ends when that is dropped.
    pub(crate) fn remove(&self, slot: usize) -> Option<PciTransport> {
        locked(self.slots.get(slot)?).take()
    }

    pub(crate) fn is_occupied(&self, slot: usize) -> bool {
        self.slots.get(slot).is_some_and(|slot| locked(slot).is_some())
    }

    /// Does something with what is in each slot that is not empty.
    pub(crate) fn for_each(&self, job: &mut dyn FnMut(usize, &mut PciTransport)) {
        for (slot, function) in self.slots.iter().enumerate() {
            if let Some(function) = locked(function).as_mut() {
                job(slot, function);
            }
        }
    }

    /// What the ports reach.
    pub(crate) fn selected(&self) -> u32 {
        *locked(&self.address)
    }

    pub(crate) fn select(&self, address: u32) {
        *locked(&self.address) = address;
    }

    /// A read of memory, if there is something of the bus.
    pub(crate) fn read_memory(&self, address: u64, data: &mut [u8]) -> bool {
        if let Some(offset) = ecam_offset(address) {
            self.read_config(offset, data);
            return true;
        }
        self.slots.iter().any(|slot| {
            let function = locked(slot);
            let found = function.as_ref().and_then(|it| Some((it, it.offset(address)?)));
            found.map(|(it, offset)| it.read(offset, data)).is_some()
        })
    }

    /// A write to memory, if there is something of the bus.
    pub(crate) fn write_memory(&self, address: u64, data: &[u8]) {
        if let Some(offset) = ecam_offset(address) {
            return self.write_config(offset, data);
        }
        self.slots.iter().any(|slot| {
            let mut function = locked(slot);
            let found = function
                .as_mut()
                .and_then(|it| it.offset(address).map(|offset| (it, offset)));
            found.map(|(it, offset)| it.write(offset, data)).is_some()
        });
    }

    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        match self.through_ports(port, data.len()) {
            Some(offset) => self.read_config(offset, data),
            None if port == *CONFIG_PORTS.start() && data.len() == 4 => {
                data.copy_from_slice(&locked(&self.address).to_le_bytes());
            }
            None => data.fill(NOTHING),
        }
    }

    pub(crate) fn write_port(&self, port: u16, data: &[u8]) {
        match (self.through_ports(port, data.len()), <[u8; 4]>::try_from(data)) {
            (Some(offset), _) => self.write_config(offset, data),
            (None, Ok(address)) if port == *CONFIG_PORTS.start() => {
                *locked(&self.address) = u32::from_le_bytes(address);
            }
            _ => {}
        }
    }

    /// Where in the bus's configuration space the data port leads.
    fn through_ports(&self, port: u16, len: usize) -> Option<u64> {
        let within = port.checked_sub(DATA_PORT)?;
        let address = *locked(&self.address);
        let is_whole = usize::from(within) + len <= 4;
        // Bus, device and function are eight bits lower than in memory, and registers have four bits less.
        let (function, register) = (u64::from(address >> 8 & 0xffff), u64::from(address & 0xfc));
        (is_whole && address & ENABLED != 0).then(|| function * FUNCTION + register + u64::from(within))
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(NOTHING);
        let (device, at) = split(offset);
        match device {
            Some(0) => self.bridge.read(at, data),
            Some(device) => {
                if let Some(slot) = self.slots.get(device)
                    && let Some(function) = locked(slot).as_ref()
                {
                    function.read_config(at, data);
                }
            }
            None => {}
        }
    }

    fn write_config(&self, offset: u64, data: &[u8]) {
        if let (Some(device), at) = split(offset)
            && let Some(slot) = self.slots.get(device)
            && let Some(function) = locked(slot).as_mut()
        {
            function.write_config(at, data);
        }
    }
}

/// The device whose only function this is, and the register.
fn split(offset: u64) -> (Option<usize>, usize) {
    let function = offset / FUNCTION;
    let device = function
        .is_multiple_of(FUNCTIONS)
        .then(|| usize_from(function / FUNCTIONS));
    (device, usize_from(offset % FUNCTION))
}

fn ecam_offset(address: u64) -> Option<u64> {
    let (start, len) = ECAM;
    address.checked_sub(start).filter(|offset| *offset < len)
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dword(host: &PciHost, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        assert!(host.read_memory(ECAM.0 + offset, &mut bytes));
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn the_bridge_is_found_both_ways_and_nothing_else() {
        let host = PciHost::new();
        assert_eq!(dword(&host, 0), 0x0008_1b36);
        assert_eq!(dword(&host, 8), 0x0600_0000);
        assert_eq!(dword(&host, 0x100), 0);
        for function in [1, 8, 9, 255] {
            assert_eq!(dword(&host, function * FUNCTION), u32::MAX);
        }
        let through_ports = |address: u32, port: u16, len: usize| {
            host.write_port(0xcf8, &address.to_le_bytes());
            let mut bytes = vec![0; len];
            host.read_port(port, &mut bytes);
            bytes
        };
        assert_eq!(through_ports(ENABLED, 0xcfc, 4), 0x0008_1b36_u32.to_le_bytes());
        assert_eq!(through_ports(ENABLED, 0xcfe, 2), [8, 0]);
        assert_eq!(through_ports(ENABLED | 8, 0xcff, 1), [6]);
        assert_eq!(through_ports(0, 0xcfc, 4), [0xff; 4]);
        assert_eq!(through_ports(ENABLED | 0x800, 0xcfc, 4), [0xff; 4]);
        assert_eq!(through_ports(ENABLED | 0x1234_5600, 0xcfc, 4), [0xff; 4]);
        assert_eq!(through_ports(ENABLED | 4, 0xcf8, 4), (ENABLED | 4).to_le_bytes());
        // Other devices are nowhere in memory.
        assert!(!host.read_memory(ECAM.0 + ECAM.1, &mut [0; 4]));
    }
}
