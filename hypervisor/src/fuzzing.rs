//! What a fuzz target does with its input: accesses of a guest to a device on PCI, with the code of the worker. Not part of the
//! crate that others use.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::mem::{GuestMemory, allocate};
use crate::pci::{Message, Msix, Vector, Wires};
use crate::ram::Ram;
use crate::sandbox::Sandbox;
use crate::virtio::VirtioDevice;
use crate::virtio::block::Block;
use crate::virtio::pci::{PciTransport, VECTORS, WINDOW_SIZE};
use crate::virtio::ring::{Descriptor, NEXT, Rings, WRITE};
use crate::virtio::rng::Rng;

const MEMORY: u64 = 1 << 20;
const DISK: usize = 1 << 20;
const WINDOW: u32 = 0xd000_0000;
const DOORBELL: u32 = 0x3000;

/// Where the driver at the end has its rings and buffers.
const RINGS: Rings = Rings {
    table: 0x1000,
    available: 0x2000,
    used: 0x3000,
    size: 16,
};
const HEADER: u32 = 0x4000;
const DATA: u32 = 0x5000;
const STATUS: u32 = 0x6000;
const LEN: u32 = 512;
/// What no answer is.
const UNANSWERED: u8 = 0xee;

/// How long an answer may take: nothing is measured by it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Nobody listens.
struct NoWires;

impl Wires for NoWires {
    fn route(&self, _: u32, _: Message) {}
    fn connect_doorbell(&self, _: &EventFd, _: u64) {}
    fn disconnect_doorbell(&self, _: &EventFd, _: u64) {}
}

/// One byte for the device, then accesses: a byte for what is accessed, how, and with how many bytes; four for where; the bytes
/// that are written.
///
/// # Panics
/// When the device does not work after a reset.
pub fn virtio_pci(input: &[u8]) {
    let Some((kind, mut accesses)) = input.split_first() else {
        return;
    };
    let is_rng = kind & 1 == 1;
    let memory = allocate(MEMORY).expect("there is memory");
    let mut device = function(is_rng, &memory);
    while let Some(access) = Access::take(&mut accesses) {
        access.perform(&mut device, &memory);
    }
    // What is saved now is restored, or refused.
    device.device_mut().pause();
    let saved = device.save();
    let mut again = function(is_rng, &memory);
    again.device_mut().pause();
    let restored = again.restore(&saved);
    again.device_mut().resume();
    drop((again, restored));
    device.device_mut().resume();
    works(&mut device, is_rng, &memory);
}

/// A device as the worker makes it.
fn function(is_rng: bool, memory: &GuestMemory) -> PciTransport {
    let device: Box<dyn VirtioDevice> = match is_rng {
        true => Box::new(Rng::new(Sandbox::Off).expect("there is a source of random numbers")),
        false => Box::new(Block::new(Ram::disk(DISK).0, "fuzz", false, Sandbox::Off).expect("a thread can be started")),
    };
    let vector = |line| Vector {
        event: EventFd::new(EFD_NONBLOCK).expect("an event counter can be made"),
        line,
    };
    let wires: Arc<dyn Wires> = Arc::new(NoWires);
    let msix = Msix::new((0..VECTORS).map(vector).collect(), Arc::clone(&wires));
    PciTransport::new(device, memory.clone(), msix, wires, WINDOW)
}

/// An access of a guest.
struct Access<'a> {
    place: u8,
    at: u32,
    /// As many bytes are read, if nothing is written.
    len: usize,
    data: &'a [u8],
}

impl<'a> Access<'a> {
    fn take(input: &mut &'a [u8]) -> Option<Self> {
        let (how, rest) = input.split_first()?;
        let (at, rest) = rest.split_first_chunk()?;
        let len = 1 << (how >> 2 & 3);
        let is_write = how & 16 == 0;
        let (data, rest) = rest.split_at_checked(if is_write { len } else { 0 })?;
        *input = rest;
        Some(Self {
            place: how & 3,
            at: u32::from_le_bytes(*at),
            len,
            data,
        })
    }

    fn perform(&self, device: &mut PciTransport, memory: &GuestMemory) {
        let mut buffer = vec![0; self.len];
        let config = vhd_block::units::usize_from((self.at % 4096).into());
        let register = self.at % WINDOW_SIZE;
        match (self.place, self.data.is_empty()) {
            (0, true) => device.read_config(config, &mut buffer),
            (0, false) => device.write_config(config, self.data),
            (1, true) => device.read(register, &mut buffer),
            (1, false) => device.write(register, self.data),
            (2, _) => {
                let address = GuestAddress(u64::from(self.at) % MEMORY);
                // What goes beyond the end is not written.
                let _ = memory.write_slice(self.data, address);
            }
            _ => device.write(DOORBELL, &[0; 2]),
        }
    }
}

/// A driver resets the device, and its first request is answered.
fn works(device: &mut PciTransport, is_rng: bool, memory: &GuestMemory) {
    let put = |at: u32, bytes: &[u8]| {
        memory
            .write_slice(bytes, GuestAddress(at.into()))
            .expect("it is in memory");
    };
    for status in [0, 1, 3] {
        device.write(0x14, &[status]);
    }
    // Version 1, and nothing else.
    for (register, value) in [(0x08, 0), (0x0c, 0), (0x08, 1), (0x0c, 1_u32)] {
        device.write(register, &value.to_le_bytes());
    }
    device.write(0x14, &[11]);
    device.write(0x16, &[0; 2]);
    device.write(0x18, &RINGS.size.to_le_bytes());
    for (register, address) in [(0x20, RINGS.table), (0x28, RINGS.available), (0x30, RINGS.used)] {
        let address = address.to_le_bytes();
        device.write(register, &address[..4]);
        device.write(register + 4, &address[4..]);
    }
    RINGS.clear(memory);
    device.write(0x1c, &1_u16.to_le_bytes());
    let descriptor = |number: u16, address: u32, len: u32, flags: u16| {
        let it = Descriptor {
            address: address.into(),
            len,
            flags,
            next: number + 1,
        };
        it.put(memory, RINGS.table, number);
    };
    if is_rng {
        descriptor(0, DATA, LEN, WRITE);
    } else {
        put(HEADER, &[0; 16]);
        put(STATUS, &[UNANSWERED]);
        descriptor(0, HEADER, 16, NEXT);
        descriptor(1, DATA, LEN, NEXT | WRITE);
        descriptor(2, STATUS, 1, WRITE);
    }
    RINGS.send(memory, 0, 0);
    device.write(0x14, &[15]);
    let mut status = [0];
    device.read(0x14, &mut status);
    assert_eq!(status, [15], "the device does not get ready after a reset");
    device.write(DOORBELL, &[0; 2]);
    let begun = Instant::now();
    while RINGS.answered(memory) != 1 {
        assert!(begun.elapsed() < PATIENCE, "the device does not answer after a reset");
        thread::yield_now();
    }
    if !is_rng {
        let status: u8 = memory.read_obj(GuestAddress(STATUS.into())).expect("it is in memory");
        assert_eq!(status, 0, "the disk cannot be read after a reset");
    }
}

#[cfg(test)]
#[path = "fuzz_replay.rs"]
mod replay_tests;
