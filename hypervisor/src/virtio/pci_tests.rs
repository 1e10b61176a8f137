use std::sync::Mutex;

use proptest::collection::vec;
use proptest::prelude::*;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::mem::allocate;
use crate::pci::{Message, Vector};
use crate::virtio::block::Block;

/// Where the guest puts the window.
const WINDOW: u32 = 0xd001_0000;
const COMMAND: usize = 4;
const BAR: usize = 0x10;
const DRIVER_OK: u8 = 1 | 2 | 4 | 8;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 64;

/// Notes where doorbells are.
#[derive(Default)]
struct Noted(Mutex<Vec<u64>>);

impl Wires for Noted {
    fn route(&self, _: u32, _: Message) {}

    fn connect_doorbell(&self, _: &EventFd, address: u64) {
        self.0.lock().unwrap().push(address);
    }

    fn disconnect_doorbell(&self, _: &EventFd, address: u64) {
        self.0.lock().unwrap().retain(|at| *at != address);
    }
}

fn transport() -> (PciTransport, Arc<Noted>) {
    let (disk, _) = crate::ram::Ram::disk(1 << 20);
    let block = Block::new(disk, "disk", false, crate::Sandbox::Off).unwrap();
    let noted = Arc::new(Noted::default());
    let wires: Arc<dyn Wires> = noted.clone();
    let vector = |line| Vector {
        event: EventFd::new(EFD_NONBLOCK).unwrap(),
        line,
    };
    let msix = Msix::new((0..VECTORS).map(vector).collect(), Arc::clone(&wires));
    let memory = allocate(1 << 20).unwrap();
    (PciTransport::new(Box::new(block), memory, msix, wires, WINDOW), noted)
}

fn get<const N: usize>(transport: &PciTransport, offset: u32) -> [u8; N] {
    let mut bytes = [0; N];
    transport.read(offset, &mut bytes);
    bytes
}

/// As a driver does it; returns the status at the end.
fn start(transport: &mut PciTransport, high: u32, used: u32) -> u8 {
    transport.write(0x14, &[0]);
    transport.write(0x14, &[3]);
    transport.write(0x08, &1_u32.to_le_bytes());
    transport.write(0x0c, &high.to_le_bytes());
    transport.write(0x14, &[3 | FEATURES_OK]);
    let [status] = get(transport, 0x14);
    if status & FEATURES_OK == 0 {
        return status;
    }
    transport.write(0x16, &[0, 0]);
    transport.write(0x18, &16_u16.to_le_bytes());
    transport.write(0x1a, &1_u16.to_le_bytes());
    for (at, address) in [(0x20, 0x1000), (0x28, 0x2000), (0x30, used)] {
        transport.write(at, &address.to_le_bytes());
        transport.write(at + 4, &0_u32.to_le_bytes());
    }
    transport.write(0x1c, &1_u16.to_le_bytes());
    transport.write(0x14, &[DRIVER_OK]);
    let [status] = get(transport, 0x14);
    status
}

#[test]
fn a_driver_gets_through() {
    let (mut transport, _) = transport();
    assert_eq!(get(&transport, 0x12), [1, 0]);
    assert_eq!(get(&transport, 0x18), 128_u16.to_le_bytes());
    assert_eq!(get(&transport, DEVICE), 2048_u64.to_le_bytes());
    assert_eq!(start(&mut transport, 1, 0x3000), DRIVER_OK);
    assert_eq!((get(&transport, 0x1a), get(&transport, 0x1c)), ([1, 0], [1, 0]));
    // Of a queue that does not exist there is nothing.
    transport.write(0x16, &[1, 0]);
    assert_eq!(get(&transport, 0x18), [0; 8]);
    transport.write(0x14, &[0]);
    assert_eq!((get(&transport, 0x14), get(&transport, 0x1a)), ([0], [0xff, 0xff]));
    assert_eq!(get(&transport, 0x16), [0, 0]);
}

#[test]
fn what_a_driver_may_not_do_is_refused() {
    let (mut transport, _) = transport();
    assert_eq!(start(&mut transport, 1 | 1 << 30, 0x3000) & FEATURES_OK, 0);
    assert_eq!(start(&mut transport, 0, 0x3000) & FEATURES_OK, 0);
    assert_ne!(start(&mut transport, 1, 0xf_fff0) & NEEDS_RESET, 0);
    let [reasons] = get(&transport, ISR);
    assert_eq!((reasons, get(&transport, ISR)), (2, [0]));
    // There are two messages.
    transport.write(0x10, &2_u16.to_le_bytes());
    assert_eq!(get(&transport, 0x10), NO_VECTOR.to_le_bytes());
    transport.write(0x10, &1_u16.to_le_bytes());
    assert_eq!(get(&transport, 0x10), [1, 0]);
}

#[test]
fn kvm_listens_where_the_window_is() {
    let (mut transport, noted) = transport();
    let bells = || noted.0.lock().unwrap().clone();
    assert_eq!((bells(), transport.offset(WINDOW.into())), (vec![], None));
    transport.write_config(COMMAND, &[2, 0]);
    assert_eq!(bells(), [u64::from(WINDOW + DOORBELL)]);
    assert_eq!(transport.offset(u64::from(WINDOW) + 0x14), Some(0x14));
    assert_eq!(transport.offset(u64::from(WINDOW + WINDOW_SIZE)), None);
    assert_eq!(transport.offset(u64::from(WINDOW) - 1), None);
    transport.write_config(BAR, &0xd020_0000_u32.to_le_bytes());
    assert_eq!(bells(), [0xd020_0000 + u64::from(DOORBELL)]);
    transport.write_config(COMMAND, &[0, 0]);
    assert!(bells().is_empty());
}

/// The parts of the window, by the kind that their capability has.
fn parts(transport: &PciTransport) -> Vec<(u8, u32, u32)> {
    let byte = |at: usize| {
        let mut byte = [0];
        transport.read_config(at, &mut byte);
        usize::from(byte[0])
    };
    let dword = |at: usize| {
        (0..4)
            .rev()
            .fold(0_u32, |value, number| value << 8 | byte(at + number) as u32)
    };
    let mut found = Vec::new();
    let mut at = byte(0x34);
    while at != 0 {
        if byte(at) == usize::from(VENDOR_CAPABILITY) {
            found.push((byte(at + 3) as u8, dword(at + 8), dword(at + 12)));
        }
        at = byte(at + 1);
    }
    found
}

#[test]
fn registers_are_found_by_capabilities_and_through_them() {
    let (mut transport, _) = transport();
    let found = parts(&transport);
    let expected = [
        (CAP_COMMON, COMMON, 0x38),
        (CAP_ISR, ISR, 1),
        (CAP_DEVICE, DEVICE, PART),
        (CAP_NOTIFY, DOORBELL, PART),
        (CAP_CONFIG_ACCESS, 0, 0),
    ];
    assert_eq!(found, expected);
    let access = transport.access;
    let mut reach = |offset: u32, len: u32| {
        transport.write_config(access + ACCESS_OFFSET, &offset.to_le_bytes());
        transport.write_config(access + ACCESS_LEN, &len.to_le_bytes());
        let mut data = [0; 4];
        transport.read_config(access + ACCESS_DATA, &mut data);
        data
    };
    assert_eq!(reach(0x12, 2), [1, 0, 0, 0]);
    assert_eq!(reach(DEVICE, 4), 2048_u32.to_le_bytes());
    for (offset, len) in [(WINDOW_SIZE, 4), (1, 4), (0, 3), (0, 0), (u32::MAX, 1)] {
        reach(offset, len);
    }
    reach(0x14, 1);
    transport.write_config(access + ACCESS_DATA, &[3, 0xff, 0xff, 0xff]);
    assert_eq!(get(&transport, 0x14), [3]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever is written where, the device works after a reset.
    #[test]
    fn any_accesses(accesses in vec(
        (any::<bool>(), prop_oneof![4 => 0..0x40_u32, 1 => 0..WINDOW_SIZE], vec(any::<u8>(), 1..=8)),
        0..64,
    )) {
        let (mut transport, noted) = transport();
        for (is_config, at, mut data) in accesses {
            if is_config {
                let at = at as usize % 0x1000;
                transport.write_config(at, &data);
                transport.read_config(at, &mut data);
            } else {
                transport.write(at, &data);
                transport.read(at, &mut data);
            }
        }
        prop_assert_eq!(start(&mut transport, 1, 0x3000), DRIVER_OK);
        prop_assert!(noted.0.lock().unwrap().len() <= 1);
    }
}
