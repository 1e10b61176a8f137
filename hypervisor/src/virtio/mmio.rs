//! The virtio-mmio transport (virtio 1.2, section 4.2): a page of registers, one doorbell, one edge-triggered interrupt.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT as _};

use super::{Interrupt, VirtioDevice};
use crate::mem::GuestMemory;

/// Bytes of address space of a device.
pub(crate) const PAGE: u64 = 4096;
/// Where the doorbell is in it.
pub(crate) const DOORBELL: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// "virt", little endian.
const MAGIC: u32 = 0x7472_6976;
/// Without the layout of before virtio 1.0.
const VERSION: u32 = 2;
/// "VHD ", little endian: nobody gives these numbers out.
const VENDOR: u32 = 0x2044_4856;
/// The only queue.
const QUEUE: u32 = 0;

/// A device behind registers.
pub(crate) struct MmioTransport {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    /// As the driver sets it up; the device gets a copy when the driver is ready.
    queue: Queue,
    status: u32,
    /// Which half of the features is read.
    offered_half: u32,
    /// Which half of the features is written.
    accepted_half: u32,
    accepted: u64,
    selected_queue: u32,
}

impl MmioTransport {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, interrupt: Arc<Interrupt>) -> Self {
        let queue = new_queue(&*device);
        Self {
            device,
            memory,
            interrupt,
            queue,
            status: 0,
            offered_half: 0,
            accepted_half: 0,
            accepted: 0,
            selected_queue: 0,
        }
    }

    pub(crate) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The guest reads `data` at `offset` of the page. Registers are read whole; anything else reads zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.device.read_config(offset, data);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.register(u32::try_from(offset).unwrap_or(u32::MAX)).to_le_bytes();
        }
    }

    /// The guest writes `data` at `offset` of the page. What is no register, or not written whole, is ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.device.write_config(offset, data);
        } else if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.set_register(u32::try_from(offset).unwrap_or(u32::MAX), u32::from_le_bytes(value));
        }
    }

    fn register(&self, register: u32) -> u32 {
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.device.device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.device.features(), self.offered_half),
            VIRTIO_MMIO_QUEUE_NUM_MAX if self.selected_queue == QUEUE => self.queue.max_size().into(),
            VIRTIO_MMIO_QUEUE_READY if self.selected_queue == QUEUE => self.queue.ready().into(),
            VIRTIO_MMIO_INTERRUPT_STATUS => self.interrupt.reasons(),
            VIRTIO_MMIO_STATUS if self.interrupt.needs_reset() => self.status | VIRTIO_CONFIG_S_NEEDS_RESET,
            VIRTIO_MMIO_STATUS => self.status,
            // The configuration never changes by itself.
            VIRTIO_MMIO_CONFIG_GENERATION => 0,
            _ => 0,
        }
    }

    fn set_register(&mut self, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.offered_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.accepted_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES => self.accept(value),
            VIRTIO_MMIO_QUEUE_SEL => self.selected_queue = value,
            VIRTIO_MMIO_INTERRUPT_ACK => self.interrupt.acknowledge(value),
            VIRTIO_MMIO_STATUS => self.set_status(value),
            // KVM hears the bell itself; this is for where it cannot.
            VIRTIO_MMIO_QUEUE_NOTIFY => {
                let _ = self.device.doorbell().write(1);
            }
            _ if self.selected_queue == QUEUE && !self.is_active() => self.set_up_queue(register, value),
            _ => {}
        }
    }

    fn set_up_queue(&mut self, register: u32, value: u32) {
        let queue = &mut self.queue;
        match register {
            // A size that is none is refused by the queue, which stays as it is.
            VIRTIO_MMIO_QUEUE_NUM => queue.set_size(u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            VIRTIO_MMIO_QUEUE_DESC_LOW => queue.set_desc_table_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_DESC_HIGH => queue.set_desc_table_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW => queue.set_avail_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_AVAIL_HIGH => queue.set_avail_ring_address(None, Some(value)),
            VIRTIO_MMIO_QUEUE_USED_LOW => queue.set_used_ring_address(Some(value), None),
            VIRTIO_MMIO_QUEUE_USED_HIGH => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn is_active(&self) -> bool {
        self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0
    }

    fn accept(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.accepted_half {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    /// The driver gets further, or begins anew with zero.
    fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut added = value & !self.status;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_agree() {
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        self.status |= added;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate();
        }
    }

    fn features_agree(&self) -> bool {
        self.accepted & !self.device.features() == 0 && self.accepted & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&mut self) {
        let negotiated = self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if !negotiated || !self.queue.is_valid(&self.memory) {
            self.interrupt.require_reset();
            return;
        }
        self.queue
            .set_event_idx(self.accepted & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        let queue = std::mem::replace(&mut self.queue, new_queue(&*self.device));
        self.queue.set_ready(true);
        let interrupt = Arc::clone(&self.interrupt);
        self.device
            .activate(self.accepted, self.memory.clone(), queue, interrupt);
    }

    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.reset();
        self.queue = new_queue(&*self.device);
        self.status = 0;
        self.accepted = 0;
        self.offered_half = 0;
        self.accepted_half = 0;
        self.selected_queue = 0;
    }
}

fn new_queue(device: &dyn VirtioDevice) -> Queue {
    Queue::new(device.max_queue_size()).expect("the size of a device's queue is a power of two")
}

fn half(features: u64, half: u32) -> u32 {
    match half {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::mem::allocate;
    use crate::virtio::block::Block;

    const ACKNOWLEDGE: u32 = 1;
    const DRIVER: u32 = 2;
    const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
    const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;

    fn transport() -> MmioTransport {
        let (disk, _) = crate::ram::Ram::disk(1 << 20);
        let block = Block::new(disk, "disk", false).unwrap();
        let interrupt = Arc::new(Interrupt::new().unwrap());
        MmioTransport::new(Box::new(block), allocate(1 << 20).unwrap(), interrupt)
    }

    fn get(transport: &MmioTransport, register: u32) -> u32 {
        let mut bytes = [0; 4];
        transport.read(register.into(), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn set(transport: &mut MmioTransport, register: u32, value: u32) {
        transport.write(register.into(), &value.to_le_bytes());
    }

    /// As a driver does it; returns the status at the end.
    fn start(transport: &mut MmioTransport, high: u32, used: u32) -> u32 {
        set(transport, VIRTIO_MMIO_STATUS, 0);
        set(transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER);
        set(transport, VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        set(transport, VIRTIO_MMIO_DRIVER_FEATURES, high);
        set(transport, VIRTIO_MMIO_STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if get(transport, VIRTIO_MMIO_STATUS) & FEATURES_OK == 0 {
            return get(transport, VIRTIO_MMIO_STATUS);
        }
        set(transport, VIRTIO_MMIO_QUEUE_NUM, 16);
        set(transport, VIRTIO_MMIO_QUEUE_DESC_LOW, 0x1000);
        set(transport, VIRTIO_MMIO_QUEUE_AVAIL_LOW, 0x2000);
        set(transport, VIRTIO_MMIO_QUEUE_USED_LOW, used);
        set(transport, VIRTIO_MMIO_QUEUE_READY, 1);
        set(
            transport,
            VIRTIO_MMIO_STATUS,
            ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK,
        );
        get(transport, VIRTIO_MMIO_STATUS)
    }

    #[test]
    fn a_driver_gets_through() {
        let mut transport = transport();
        assert_eq!(get(&transport, VIRTIO_MMIO_MAGIC_VALUE).to_le_bytes(), *b"virt");
        assert_eq!(get(&transport, VIRTIO_MMIO_CONFIG), 2048);
        assert_eq!(start(&mut transport, 1, 0x3000), 1 | 2 | 4 | 8);
        assert_eq!(get(&transport, VIRTIO_MMIO_QUEUE_READY), 1);
        set(&mut transport, VIRTIO_MMIO_STATUS, 0);
        assert_eq!(get(&transport, VIRTIO_MMIO_STATUS), 0);
        assert_eq!(get(&transport, VIRTIO_MMIO_QUEUE_READY), 0);
    }

    #[test]
    fn features_that_were_not_offered_are_refused() {
        let mut transport = transport();
        assert_eq!(start(&mut transport, 1 | 1 << 30, 0x3000) & FEATURES_OK, 0);
        // Without VERSION_1 it would be a driver of before virtio 1.0.
        assert_eq!(start(&mut transport, 0, 0x3000) & FEATURES_OK, 0);
    }

    #[test]
    fn rings_outside_memory_need_a_reset() {
        let mut transport = transport();
        assert_ne!(start(&mut transport, 1, 0xf_fff0) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
        assert_eq!(start(&mut transport, 1, 0x3000) & VIRTIO_CONFIG_S_NEEDS_RESET, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever is written where, the device works after a reset.
        #[test]
        fn any_accesses(accesses in vec(
            (prop_oneof![4 => (0..0x140_u64).prop_map(|at| at & !3), 1 => 0..0x1000_u64], vec(any::<u8>(), 1..=8)),
            0..64,
        )) {
            let mut transport = transport();
            for (offset, mut data) in accesses {
                transport.write(offset, &data);
                transport.read(offset, &mut data);
            }
            prop_assert_eq!(start(&mut transport, 1, 0x3000), 1 | 2 | 4 | 8);
        }
    }
}
