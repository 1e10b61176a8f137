//! Chains in real guest memory: what drivers send, and what no driver may send.

use proptest::collection::vec;
use proptest::prelude::*;
use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::mem::allocate;
use crate::virtio::queue::Served;
use crate::virtio::ring::{self, NEXT, Rings, WRITE};

const MEMORY: u64 = 1 << 20;
const ENTRIES: u16 = 8;
const RINGS: Rings = Rings {
    table: 0x1000,
    available: 0x2000,
    used: 0x3000,
    size: ENTRIES,
};
const DATA: u64 = 0x1_0000;

/// "Random" numbers that can be told from anything else.
struct Sevens;

impl Read for Sevens {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(7);
        Ok(buffer.len())
    }
}

/// A source that is at its end.
struct Dry;

impl Read for Dry {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }
}

type Descriptor = (u64, u32, u16, u16);

fn served(memory: &GuestMemory, descriptors: &[Descriptor], heads: &[u16]) -> Served {
    let queue = RINGS.queue(memory);
    for (number, (address, len, flags, next)) in (0..).zip(descriptors.iter().copied()) {
        let it = ring::Descriptor {
            address,
            len,
            flags,
            next,
        };
        it.put(memory, RINGS.table, number);
    }
    for (sent, head) in (0..).zip(heads) {
        RINGS.send(memory, sent, *head);
    }
    Served {
        memory: memory.clone(),
        queue,
        interrupt: Arc::new(Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap())),
    }
}

fn bytes(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; MEMORY as usize];
    memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    bytes
}

#[test]
fn buffers_are_filled_as_far_as_they_may() {
    let memory = allocate(MEMORY).unwrap();
    let descriptors = [
        // Two buffers, of which the first can only be read, and one.
        (DATA, 100, NEXT, 1),
        (DATA + 0x1000, 50, WRITE, 0),
        (DATA + 0x2000, 5000, WRITE, 0),
        // More than a request gets.
        (0x2_0000, 1 << 19, WRITE, 0),
        // Outside memory, half outside, and nothing.
        (MEMORY, 16, WRITE, 0),
        (MEMORY - 8, 16, NEXT | WRITE, 2),
        (u64::MAX - 3, 8, WRITE, 0),
        (DATA, 0, WRITE, 0),
    ];
    let mut served = served(&memory, &descriptors, &[0, 2, 3, 4, 5, 6, 7]);
    assert!(!served.serve(&mut Source(Sevens)).unwrap());
    let answered = RINGS.answered(&memory);
    assert_eq!(answered, 7);
    let all: Vec<u32> = (0..7).map(|request| RINGS.filled(&memory, request)).collect();
    assert_eq!(all, [50, 5000, 64 << 10, 0, 0, 0, 0]);
    let bytes = bytes(&memory);
    let sevens = |range: std::ops::Range<usize>| bytes[range].iter().all(|byte| *byte == 7);
    let data = DATA as usize;
    assert!(sevens(data + 0x1000..data + 0x1000 + 50) && sevens(data + 0x2000..data + 0x2000 + 5000));
    assert!(bytes[data..data + 100].iter().all(|byte| *byte == 0));
    assert_eq!((bytes[0x2_0000 + 0xffff], bytes[0x2_0000 + 0x1_0000]), (7, 0));
}

#[test]
fn a_source_that_fails_fills_nothing() {
    let memory = allocate(MEMORY).unwrap();
    let mut served = served(&memory, &[(DATA, 64, WRITE, 0)], &[0]);
    assert!(!served.serve(&mut Source(Dry)).unwrap());
    assert_eq!(RINGS.filled(&memory, 0), 0);
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let address = prop_oneof![8 => 0x4000..MEMORY, 1 => any::<u64>()];
    let len = prop_oneof![8 => 0_u32..10_000, 1 => any::<u32>()];
    (address, len, 0_u16..8, 0..ENTRIES + 2)
}

proptest! {
    /// Whatever is in the table: nothing outside buffers that may be filled changes, and each request is answered or the device
    /// waits for its reset.
    #[test]
    fn any_chains(descriptors in vec(descriptor(), 8), heads in vec(0..ENTRIES + 1, 1..8)) {
        let memory = allocate(MEMORY).unwrap();
        let mut served = served(&memory, &descriptors, &heads);
        let before = bytes(&memory);
        let stopped = loop {
            match served.serve(&mut Source(Sevens)) {
                Ok(true) => {}
                Ok(false) => break false,
                Err(_) => break true,
            }
        };
        let answered = RINGS.answered(&memory);
        prop_assert!(stopped || usize::from(answered) == heads.len());
        let ring = RINGS.used as usize..RINGS.used as usize + 6 + 8 * usize::from(ENTRIES);
        let is_table = descriptors.iter().any(|it| it.2 & 4 != 0);
        let after = bytes(&memory);
        for (at, (now, then)) in after.iter().zip(&before).enumerate() {
            let is_given = || descriptors.iter().any(|it| {
                it.2 & WRITE != 0 && (it.0..it.0.saturating_add(it.1.into())).contains(&(at as u64))
            });
            // A table of descriptors in what was filled leads anywhere: then only the value shows who it was.
            prop_assert!(now == then || ring.contains(&at) || is_given() || is_table && *now == 7, "byte {at:#x}");
        }
    }
}
