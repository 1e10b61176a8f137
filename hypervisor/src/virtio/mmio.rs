//! The virtio-mmio transport (virtio 1.2, section 4.2): a page of registers, one doorbell, one edge-triggered interrupt.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INTERRUPT_ACK,
    VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE, VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW,
    VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW, VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM,
    VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY, VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH,
    VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_STATUS, VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};
use virtio_queue::QueueT as _;

use super::{Interrupt, Session, VirtioDevice};
use crate::mem::GuestMemory;
use crate::state::{StateError, Virtio};

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

/// A device behind registers.
pub(crate) struct MmioTransport {
    session: Session,
}

impl MmioTransport {
    pub(crate) fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, interrupt: Arc<Interrupt>) -> Self {
        let session = Session::new(device, memory, interrupt);
        Self { session }
    }

    pub(crate) fn device(&self) -> &dyn VirtioDevice {
        self.session.device()
    }

    pub(crate) fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        self.session.device_mut()
    }

    pub(crate) fn save(&self) -> Virtio {
        self.session.save()
    }

    pub(crate) fn restore(&mut self, saved: &Virtio) -> Result<(), StateError> {
        self.session.restore(saved)
    }

    /// The guest reads `data` at `offset` of the page. Registers are read whole; anything else reads zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.session.device().read_config(offset, data);
        } else if let Ok(register) = <&mut [u8; 4]>::try_from(data) {
            *register = self.register(u32::try_from(offset).unwrap_or(u32::MAX)).to_le_bytes();
        }
    }

    /// The guest writes `data` at `offset` of the page. What is no register, or not written whole, is ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(u64::from(VIRTIO_MMIO_CONFIG)) {
            self.session.device_mut().write_config(offset, data);
        } else if let Ok(value) = <[u8; 4]>::try_from(data) {
            self.set_register(u32::try_from(offset).unwrap_or(u32::MAX), u32::from_le_bytes(value));
        }
    }

    fn register(&self, register: u32) -> u32 {
        let session = &self.session;
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => session.device().device_type(),
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => session.offered(),
            VIRTIO_MMIO_QUEUE_NUM_MAX => session.queue().map_or(0, |queue| queue.max_size().into()),
            VIRTIO_MMIO_QUEUE_READY => session.queue().map_or(0, |queue| queue.ready().into()),
            VIRTIO_MMIO_INTERRUPT_STATUS => session.interrupt().reasons(),
            VIRTIO_MMIO_STATUS => session.status(),
            VIRTIO_MMIO_CONFIG_GENERATION => session.generation().into(),
            _ => 0,
        }
    }

    fn set_register(&mut self, register: u32, value: u32) {
        let session = &mut self.session;
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => session.offered_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => session.accepted_half = value,
            VIRTIO_MMIO_DRIVER_FEATURES => session.accept(value),
            VIRTIO_MMIO_QUEUE_SEL => session.selected_queue = value,
            VIRTIO_MMIO_INTERRUPT_ACK => session.interrupt().acknowledge(value),
            VIRTIO_MMIO_STATUS => session.set_status(value),
            // KVM hears the bell itself; this is for where it cannot.
            VIRTIO_MMIO_QUEUE_NOTIFY => session.ring(),
            _ => self.set_up_queue(register, value),
        }
    }

    fn set_up_queue(&mut self, register: u32, value: u32) {
        let Some(queue) = self.session.queue_in_setup() else {
            return;
        };
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
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use virtio_bindings::bindings::virtio_config::{
        VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    };
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::mem::allocate;
    use crate::virtio::block::Block;

    const ACKNOWLEDGE: u32 = 1;
    const DRIVER: u32 = 2;
    const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
    const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;

    fn transport() -> MmioTransport {
        let (disk, _) = crate::ram::Ram::disk(1 << 20);
        let block = Block::new(disk, "disk", false, crate::Sandbox::Off).unwrap();
        let interrupt = Arc::new(Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap()));
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
