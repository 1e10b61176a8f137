//! The disks of a machine on PCI: put into slots, also while it runs, and taken out when the guest has let go of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vhd_block::Disk;

use crate::error::host;
use crate::kvm::{IOAPIC_LINES, Vm};
use crate::machine::{MachineDisk, block, event};
use crate::pci::{HOTPLUG_LINE, HotPlug, Msix, News, PciHost, SLOTS, Vector, WINDOW, Wires};
use crate::sandbox::Sandbox;
use crate::state::{Bus, Function, Section, StateError, StateFile, section};
use crate::virtio::VirtioDevice;
use crate::virtio::pci::{PciTransport, VECTORS, WINDOW_SIZE};
use crate::virtio::rng::Rng;
use crate::{Error, MAX_DISKS};

/// The slot of the first disk; the bridge is before it.
pub(crate) const FIRST: usize = 1;

/// The slot of a source of random numbers, behind those of disks.
pub(crate) const RNG: usize = SLOTS - 1;

/// How long the guest is given before it is asked once more.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// What is in the slots of a machine.
pub(crate) struct Slots {
    vm: Arc<Vm>,
    wires: Arc<dyn Wires>,
    pub(crate) host: PciHost,
    pub(crate) hotplug: HotPlug,
    /// Nothing after the end.
    disks: Mutex<Option<Disks>>,
}

/// The disks of a machine.
#[derive(Default)]
struct Disks {
    /// By their slots, also those that the guest has let go of, until that is noticed.
    slots: BTreeMap<usize, Slot>,
    /// The slot that was filled last.
    last: usize,
}

struct Slot {
    disk: Disk,
    /// When the guest was asked to let go of it.
    asked: Option<Instant>,
}

impl Disks {
    /// The next slot to fill. One that was emptied waits longest: the guest may still be told of what was in it.
    fn next(&self) -> Result<usize, Error> {
        let count = self.slots.len() + 1;
        let turns = (self.last + 1..RNG).chain(FIRST..=self.last.min(RNG - 1));
        let mut free = turns.filter(|slot| !self.slots.contains_key(slot));
        free.next().filter(|_| count <= MAX_DISKS).ok_or(Error::Disks { count })
    }
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
            disks: Mutex::new(Some(Disks::default())),
        })
    }

    /// Puts a disk into the next free slot, before the machine runs: the guest finds its registers where they are.
    pub(crate) fn equip(&self, disk: MachineDisk) -> Result<usize, Error> {
        self.put(disk, None, window)
    }

    /// Gives the machine a source of random numbers, before it runs: in its own slot, or again in the one in which it was saved.
    pub(crate) fn equip_rng(&self, again: Option<usize>, sandbox: Sandbox) -> Result<(), Error> {
        let device = Rng::new(sandbox).map_err(host("open the source of random numbers"))?;
        let (slot, window) = again.map_or_else(|| (RNG, window(RNG)), |slot| (slot, 0));
        let window = u32::try_from(window).unwrap_or(0);
        let function = self.function(Box::new(device), slot, window)?;
        self.host.insert(slot, function);
        Ok(())
    }

    /// Puts a disk into the slot in which it was saved.
    pub(crate) fn equip_again(&self, slot: usize, disk: MachineDisk) -> Result<usize, Error> {
        self.put(disk, Some(slot), |_| 0)
    }

    /// The state of the bus and of what is in its slots.
    pub(crate) fn save(&self) -> Vec<Section> {
        let News {
            added,
            leaving,
            buttons,
        } = self.hotplug.pending();
        let last = self.disks().as_ref().map_or(0, |disks| disks.last);
        let bus = Bus {
            address: self.host.selected(),
            added,
            leaving,
            buttons,
            last: u32::try_from(last).unwrap_or(0),
        };
        let mut sections = vec![section("bus", 0, &bus)];
        self.host.for_each(&mut |slot, function| {
            sections.push(section("function", u32::try_from(slot).unwrap_or(0), &function.save()));
        });
        sections
    }

    /// Gives the bus, and what is in its slots, the state of those that were saved.
    pub(crate) fn restore(&self, saved: &StateFile) -> Result<(), StateError> {
        let bus: Bus = saved.one("bus")?;
        let Bus {
            added,
            leaving,
            buttons,
            ..
        } = bus;
        self.host.select(bus.address);
        self.hotplug.restore(News {
            added,
            leaving,
            buttons,
        });
        if let Some(disks) = self.disks().as_mut() {
            disks.last = vhd_block::units::usize_from(bus.last.into()) % SLOTS;
        }
        let functions: BTreeMap<usize, Function> = saved.devices()?.into_iter().collect();
        let mut restored = Ok(());
        self.host.for_each(&mut |slot, function| {
            let wrong = || StateError::damaged("function", "is not that of a device of the machine");
            let again = functions.get(&slot).ok_or_else(wrong);
            let again = again.and_then(|message| function.restore(message));
            restored = std::mem::replace(&mut restored, Ok(())).and(again);
        });
        restored
    }

    /// The disks, in their slots.
    pub(crate) fn open_disks(&self) -> Vec<Disk> {
        let disks = self.disks();
        let slots = disks.iter().flat_map(|disks| disks.slots.values());
        slots.map(|slot| slot.disk.clone()).collect()
    }

    /// Puts a disk into the next free slot of a machine that runs, and says so to the guest, which gives its registers a
    /// place.
    pub(crate) fn add(&self, disk: MachineDisk) -> Result<usize, Error> {
        let slot = self.put(disk, None, |_| 0)?;
        self.hotplug.announce(slot);
        Ok(slot)
    }

    fn put(&self, disk: MachineDisk, slot: Option<usize>, window: impl Fn(usize) -> u64) -> Result<usize, Error> {
        let mut disks = self.disks();
        let disks = disks.as_mut().ok_or(Error::Ended)?;
        let slot = match slot {
            Some(slot) => slot,
            None => disks.next()?,
        };
        let of_machine = disk.disk.clone();
        let window = u32::try_from(window(slot)).unwrap_or(0);
        let function = self.function(block(disk)?, slot, window)?;
        self.hotplug.forget(slot);
        self.host.insert(slot, function);
        disks.last = slot;
        let (disk, asked) = (of_machine, None);
        disks.slots.insert(slot, Slot { disk, asked });
        Ok(slot)
    }

    /// A device as a function, with lines for its messages.
    fn function(&self, device: Box<dyn VirtioDevice>, slot: usize, window: u32) -> Result<PciTransport, Error> {
        let first = IOAPIC_LINES + u32::try_from(slot - FIRST).unwrap_or(0) * VECTORS;
        let vectors = (first..first + VECTORS).map(|line| {
            let event = event()?;
            self.vm.connect_interrupt(&event, line)?;
            Ok(Vector { event, line })
        });
        let msix = Msix::new(vectors.collect::<Result<_, Error>>()?, Arc::clone(&self.wires));
        let (memory, wires) = (self.vm.memory().clone(), Arc::clone(&self.wires));
        Ok(PciTransport::new(device, memory, msix, wires, window))
    }

    /// Asks the guest to let go of a disk, or again. Once it has, the disk is flushed, and the slot is free: that is `true`.
    pub(crate) fn remove(&self, slot: usize) -> Result<bool, Error> {
        let mut disks = self.disks();
        let disks = disks.as_mut().ok_or(Error::Ended)?;
        let in_slot = disks.slots.get_mut(&slot).ok_or(Error::NoDisk { slot })?;
        if self.host.is_occupied(slot) {
            if in_slot.asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN) {
                in_slot.asked = Some(Instant::now());
                self.hotplug.request_release(slot);
            }
            return Ok(false);
        }
        // INV-71, for one disk: its thread has ended. A disk that cannot be flushed stays, so that it can be tried again.
        in_slot.disk.flush()?;
        disks.slots.remove(&slot);
        Ok(true)
    }

    /// Gives the disk in a slot another size, and says so to the guest.
    pub(crate) fn resize(&self, slot: usize, size: u64) -> Result<(), Error> {
        let disk = {
            let disks = self.disks();
            let disks = disks.as_ref().ok_or(Error::Ended)?;
            disks.slots.get(&slot).ok_or(Error::NoDisk { slot })?.disk.clone()
        };
        // It may take its time; others do not wait for it.
        disk.resize(size)?;
        self.refresh();
        Ok(())
    }

    /// Says to the guest which disks have another size than it knows.
    pub(crate) fn refresh(&self) {
        self.host.for_each(&mut |_, function| function.refresh_config());
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
        (FIRST..SLOTS).for_each(|slot| drop(self.host.remove(slot)));
        disks.slots.into_values().map(|slot| slot.disk).collect()
    }

    fn disks(&self) -> MutexGuard<'_, Option<Disks>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the registers of what is in a slot are, until the guest moves them.
fn window(slot: usize) -> u64 {
    let (first, _) = WINDOW;
    first + vhd_block::units::u64_from(slot - FIRST) * u64::from(WINDOW_SIZE)
}
