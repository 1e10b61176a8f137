//! The disks of a machine on PCI: put into slots, also while it runs, and taken out when the guest has let go of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vhd_block::Disk;

use crate::kvm::{IOAPIC_LINES, Vm};
use crate::machine::{MachineDisk, block, event};
use crate::pci::{HOTPLUG_LINE, HotPlug, Msix, PciHost, SLOTS, Vector, WINDOW, Wires};
use crate::virtio::pci::{PciTransport, VECTORS, WINDOW_SIZE};
use crate::{Error, MAX_DISKS};

/// The slot of the first disk; the bridge is before it.
const FIRST: usize = 1;

/// What is in the slots of a machine.
pub(crate) struct Slots {
    vm: Arc<Vm>,
    wires: Arc<dyn Wires>,
    pub(crate) host: PciHost,
    pub(crate) hotplug: HotPlug,
    /// The disk of each slot, also of one that the guest has let go of until that is noticed; nothing after the end.
    disks: Mutex<Option<BTreeMap<usize, Disk>>>,
}

impl Slots {
    /// A bus with nothing on it.
    pub(crate) fn new(vm: Arc<Vm>) -> Result<Self, Error> {
        let event = event()?;
        vm.connect_interrupt(&event, HOTPLUG_LINE)?;
        Ok(Self {
            wires: vm.wires(),
            vm,
            host: PciHost::new(),
            hotplug: HotPlug::new(event),
            disks: Mutex::new(Some(BTreeMap::new())),
        })
    }

    /// Puts a disk into the next free slot, before the machine runs: the guest finds its registers where they are.
    pub(crate) fn equip(&self, disk: MachineDisk) -> Result<usize, Error> {
        let (first, _) = WINDOW;
        self.put(disk, |slot| {
            first + (vhd_block::units::u64_from(slot - FIRST)) * u64::from(WINDOW_SIZE)
        })
    }

    /// Puts a disk into the next free slot of a machine that runs, and says so to the guest, which gives its registers a
    /// place.
    pub(crate) fn add(&self, disk: MachineDisk) -> Result<usize, Error> {
        let slot = self.put(disk, |_| 0)?;
        self.hotplug.announce(slot);
        Ok(slot)
    }

    fn put(&self, disk: MachineDisk, window: impl Fn(usize) -> u64) -> Result<usize, Error> {
        let mut disks = self.disks();
        let disks = disks.as_mut().ok_or(Error::Ended)?;
        let free = (FIRST..SLOTS).find(|slot| !disks.contains_key(slot));
        let count = disks.len() + 1;
        let slot = free.filter(|_| count <= MAX_DISKS).ok_or(Error::Disks { count })?;
        let of_machine = disk.disk.clone();
        let window = u32::try_from(window(slot)).unwrap_or(0);
        self.host.insert(slot, self.function(disk, slot, window)?);
        disks.insert(slot, of_machine);
        Ok(slot)
    }

    /// A disk as a function, with lines for its messages.
    fn function(&self, disk: MachineDisk, slot: usize, window: u32) -> Result<PciTransport, Error> {
        let first = IOAPIC_LINES + u32::try_from(slot - FIRST).unwrap_or(0) * VECTORS;
        let vectors = (first..first + VECTORS).map(|line| {
            let event = event()?;
            self.vm.connect_interrupt(&event, line)?;
            Ok(Vector { event, line })
        });
        let msix = Msix::new(vectors.collect::<Result<_, Error>>()?, Arc::clone(&self.wires));
        let (device, memory, wires) = (block(disk)?, self.vm.memory().clone(), Arc::clone(&self.wires));
        Ok(PciTransport::new(device, memory, msix, wires, window))
    }

    /// Asks the guest to let go of a disk, or again. Once it has, the disk is flushed, and the slot is free: that is `true`.
    pub(crate) fn remove(&self, slot: usize) -> Result<bool, Error> {
        let mut disks = self.disks();
        let disks = disks.as_mut().ok_or(Error::Ended)?;
        let disk = disks.get(&slot).ok_or(Error::NoDisk { slot })?;
        if self.host.is_occupied(slot) {
            self.hotplug.request_release(slot);
            return Ok(false);
        }
        // INV-71, for one disk: its thread has ended. A disk that cannot be flushed stays, so that it can be tried again.
        disk.flush()?;
        disks.remove(&slot);
        Ok(true)
    }

    /// The guest reads a register of hot-plug.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) {
        self.hotplug.read(port, data);
    }

    /// The guest writes to a register of hot-plug: it lets go of slots.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) {
        for slot in HotPlug::released(port, data) {
            self.hotplug.forget(slot);
            drop(self.host.remove(slot));
        }
    }

    /// The machine has ended: all devices end, and their disks are still to be flushed.
    pub(crate) fn close(&self) -> Vec<Disk> {
        let disks = self.disks().take().unwrap_or_default();
        disks.keys().for_each(|slot| drop(self.host.remove(*slot)));
        disks.into_values().collect()
    }

    fn disks(&self) -> MutexGuard<'_, Option<BTreeMap<usize, Disk>>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
