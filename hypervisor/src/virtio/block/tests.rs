//! Queues in real guest memory: what drivers send, and what no driver may send.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::collection::vec;
use proptest::prelude::*;
use vhd_block::Disk;
use vm_memory::{Bytes as _, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::execute::Executor;
use super::serve::Requests;
use crate::mem::{GuestMemory, allocate};
use crate::ram::Ram;
use crate::virtio::Interrupt;
use crate::virtio::queue::{Served, Unusable};
use crate::virtio::ring::{self, Descriptor, NEXT, Rings, WRITE};

const MEMORY: u64 = 1 << 20;
const DISK: usize = 1 << 20;
const QUEUE_SIZE: u16 = 16;
const TABLE: u64 = 0x1000;
const RINGS: Rings = Rings {
    table: TABLE,
    available: 0x2000,
    used: 0x3000,
    size: QUEUE_SIZE,
};
const INDIRECT: u64 = 0x4000;
const HEADER: u64 = 0x5000;
const STATUS: u64 = 0x6000;
const DATA: u64 = 0x1_0000;
/// A status that no request gets.
const UNANSWERED: u8 = 0xee;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// A driver's side of a queue, and a device.
struct Rig {
    memory: GuestMemory,
    served: Served,
    requests: Requests,
    ram: Arc<Ram>,
    sent: u16,
}

impl Rig {
    fn new(read_only: bool) -> Self {
        let memory = allocate(MEMORY).unwrap();
        let (disk, ram) = Ram::disk(DISK);
        Self::with(memory, disk, ram, read_only)
    }

    fn with(memory: GuestMemory, disk: Disk, ram: Arc<Ram>, read_only: bool) -> Self {
        let queue = RINGS.queue(&memory);
        let served = Served {
            memory: memory.clone(),
            queue,
            interrupt: Arc::new(Interrupt::new(EventFd::new(EFD_NONBLOCK).unwrap())),
        };
        Self {
            memory,
            served,
            requests: Requests {
                executor: Executor::new(disk, *b"name-of-the-disk-123", read_only),
                write_through: Arc::default(),
            },
            ram,
            sent: 0,
        }
    }

    /// Makes the chain from this descriptor available.
    fn send(&mut self, head: u16) {
        RINGS.send(&self.memory, self.sent, head);
        self.sent = self.sent.wrapping_add(1);
    }

    fn serve(&mut self, write_through: bool) -> Result<(), Unusable> {
        self.requests.write_through.store(write_through, Ordering::Relaxed);
        while self.served.serve(&mut self.requests)? {}
        Ok(())
    }

    fn answered(&self) -> u16 {
        RINGS.answered(&self.memory)
    }

    /// Bytes that the device says to have filled for the request it answered last.
    fn filled(&self) -> u32 {
        RINGS.filled(&self.memory, self.answered() - 1)
    }

    fn header(&self, kind: u32, sector: u64) {
        self.memory.write_obj(kind, GuestAddress(HEADER)).unwrap();
        self.memory.write_obj(0_u32, GuestAddress(HEADER + 4)).unwrap();
        self.memory.write_obj(sector, GuestAddress(HEADER + 8)).unwrap();
        self.memory.write_obj(UNANSWERED, GuestAddress(STATUS)).unwrap();
    }

    /// Sends a proper request whose data is cut into buffers of these lengths; returns the status.
    fn request(&mut self, kind: u32, sector: u64, fills: bool, lens: &[u32]) -> u8 {
        self.header(kind, sector);
        let mut number = 0;
        let mut add = |address, len, flags| {
            let next = number + 1;
            let it = Descriptor {
                address,
                len,
                flags,
                next,
            };
            it.put(&self.memory, TABLE, number);
            number = next;
        };
        add(HEADER, 16, NEXT);
        let mut address = DATA;
        for len in lens {
            add(address, *len, NEXT | if fills { WRITE } else { 0 });
            address += u64::from(*len);
        }
        add(STATUS, 1, WRITE);
        self.send(0);
        self.serve(false).unwrap();
        self.memory.read_obj(GuestAddress(STATUS)).unwrap()
    }

    fn data(&self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        bytes
    }

    fn set_data(&self, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
    }

    fn snapshot(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    fn on_disk(&self, range: std::ops::Range<usize>) -> Vec<u8> {
        self.ram.bytes.lock().unwrap()[range].to_vec()
    }
}

/// Sector, number of sectors, flags.
type Range = (u64, u32, u32);

/// Ranges of a discard or of zeroes, as the guest writes them.
fn ranges(ranges: &[Range]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (sector, count, flags) in ranges {
        bytes.extend(sector.to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
    }
    bytes
}

#[test]
fn data_goes_both_ways_in_any_pieces() {
    let mut rig = Rig::new(false);
    let bytes: Vec<u8> = (0..2048_u32).map(|it| (it * 7) as u8).collect();
    rig.set_data(&bytes);
    assert_eq!(rig.request(1, 9, false, &[1, 511, 1000, 536]), OK);
    assert_eq!(rig.filled(), 1);
    assert_eq!(rig.on_disk(9 * 512..9 * 512 + 2048), bytes);
    rig.set_data(&[0; 2048]);
    assert_eq!(rig.request(0, 9, true, &[2000, 40, 8]), OK);
    assert_eq!(rig.filled(), 2049);
    assert_eq!(rig.data(2048), bytes);
}

#[test]
fn a_request_longer_than_the_buffer_is_done_whole() {
    let memory = allocate(8 << 20).unwrap();
    let (disk, ram) = Ram::disk(8 << 20);
    let mut rig = Rig::with(memory, disk, ram, false);
    let bytes: Vec<u8> = (0..3_u32 << 20).map(|it| (it / 512) as u8).collect();
    rig.set_data(&bytes);
    assert_eq!(rig.request(1, 1, false, &[3 << 20]), OK);
    rig.set_data(&vec![0; 3 << 20]);
    assert_eq!(rig.request(0, 1, true, &[1 << 20, (2 << 20) - 512, 512]), OK);
    assert!(rig.data(3 << 20) == bytes);
}

#[test]
fn inv_70_a_flush_is_answered_after_the_disk_flushed() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.request(4, 0, false, &[]), OK);
    assert_eq!(rig.ram.flushes.load(Ordering::Relaxed), 1);
    rig.ram.fails.store(true, Ordering::Relaxed);
    assert_eq!(rig.request(4, 0, false, &[]), IOERR);
    assert_eq!(rig.ram.flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn inv_70_a_driver_that_cannot_flush_has_its_writes_flushed() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.request(1, 0, false, &[512]), OK);
    assert_eq!(rig.ram.flushes.load(Ordering::Relaxed), 0);
    rig.send(0);
    rig.serve(true).unwrap();
    assert_eq!(rig.ram.flushes.load(Ordering::Relaxed), 1);
}

#[test]
fn discards_and_zeroes() {
    let mut rig = Rig::new(false);
    rig.ram.bytes.lock().unwrap().fill(7);
    rig.set_data(&ranges(&[(2, 3, 0), (100, 1, 0)]));
    assert_eq!(rig.request(11, 0, false, &[32]), OK);
    assert_eq!(rig.on_disk(1024..2560), [0; 1536]);
    assert_eq!(rig.on_disk(100 * 512..101 * 512), [0; 512]);
    assert_eq!(rig.on_disk(2560..2561), [7]);
    rig.set_data(&ranges(&[(8, 2, 1)]));
    assert_eq!(rig.request(13, 0, false, &[16]), OK);
    assert_eq!(rig.on_disk(4096..5120), [0; 1024]);
}

#[test]
fn a_bad_range_changes_nothing() {
    let mut rig = Rig::new(false);
    rig.ram.bytes.lock().unwrap().fill(7);
    let last = (DISK / 512) as u64;
    let bad: &[(u32, &[Range], u8)] = &[
        (11, &[(0, 1, 0), (last, 1, 0)], IOERR),
        (11, &[(0, 1, 0), (u64::MAX, 1, 0)], IOERR),
        (11, &[(0, 1, 0), (0, u32::MAX, 0)], IOERR),
        (13, &[(0, 1, 0), (1, 1, 2)], UNSUPP),
        (13, &[], IOERR),
        (13, &[(0, 1, 0); 33], IOERR),
    ];
    for (kind, list, status) in bad {
        let bytes = ranges(list);
        rig.set_data(&bytes);
        assert_eq!(rig.request(*kind, 0, false, &[bytes.len() as u32]), *status, "{list:?}");
        assert_eq!(rig.on_disk(0..1024), [7; 1024], "{list:?}");
    }
    rig.set_data(&ranges(&[(0, 1, 0)]));
    assert_eq!(rig.request(11, 0, false, &[15]), IOERR);
}

#[test]
fn the_name_is_twenty_bytes() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.request(8, 0, true, &[20]), OK);
    assert_eq!((rig.data(20), rig.filled()), (b"name-of-the-disk-123".to_vec(), 21));
}

#[test]
fn what_is_refused_says_so() {
    let mut rig = Rig::new(false);
    assert_eq!(rig.request(99, 0, false, &[512]), UNSUPP);
    assert_eq!(rig.request(0, (DISK / 512) as u64, true, &[512]), IOERR);
    assert_eq!(rig.request(0, u64::MAX / 512, true, &[512]), IOERR);
    assert_eq!(rig.request(0, 0, true, &[511]), IOERR);
    let mut frozen = Rig::new(true);
    for kind in [1, 11, 13] {
        frozen.set_data(&ranges(&[(0, 1, 0); 32]));
        assert_eq!(frozen.request(kind, 0, false, &[512]), IOERR, "{kind}");
    }
    assert_eq!(frozen.request(0, 0, true, &[512]), OK);
}

#[test]
fn a_header_that_cannot_be_read_is_answered() {
    let mut rig = Rig::new(false);
    for (address, len) in [(HEADER, 15), (MEMORY - 8, 16), (u64::MAX - 3, 16), (HEADER, 0)] {
        rig.header(0, 0);
        let header = Descriptor {
            address,
            len,
            flags: NEXT,
            next: 1,
        };
        header.put(&rig.memory, TABLE, 0);
        let status = Descriptor {
            address: STATUS,
            len: 1,
            flags: WRITE,
            next: 0,
        };
        status.put(&rig.memory, TABLE, 1);
        rig.send(0);
        rig.serve(false).unwrap();
        let status: u8 = rig.memory.read_obj(GuestAddress(STATUS)).unwrap();
        assert_eq!(status, IOERR, "{address:#x}+{len}");
    }
}

#[test]
fn a_chain_without_an_end_or_a_status_stops_the_queue() {
    let at = |address, len, flags, next| Descriptor {
        address,
        len,
        flags,
        next,
    };
    let chains: &[&[Descriptor]] = &[
        &[at(HEADER, 16, NEXT, 0)],
        &[at(HEADER, 16, NEXT, 99)],
        &[at(HEADER, 16, 0, 0)],
        &[at(STATUS, 1, NEXT | WRITE, 1), at(HEADER, 16, 0, 0)],
        &[at(INDIRECT, 17, ring::INDIRECT, 0)],
        &[at(INDIRECT, 0, ring::INDIRECT, 0)],
        &[at(HEADER, 16, NEXT, 1), at(MEMORY + 1, 1, WRITE, 0)],
    ];
    for chain in chains {
        let mut rig = Rig::new(false);
        for (number, it) in (0..).zip(*chain) {
            it.put(&rig.memory, TABLE, number);
        }
        rig.send(0);
        assert!(rig.serve(false).is_err(), "{chain:?}");
        assert_eq!(rig.answered(), 0, "{chain:?}");
    }
}

#[test]
fn an_impossible_ring_stops_the_queue() {
    let mut rig = Rig::new(false);
    rig.memory
        .write_obj(QUEUE_SIZE + 1, GuestAddress(RINGS.available + 2))
        .unwrap();
    assert!(rig.serve(false).is_err());
    let mut rig = Rig::new(false);
    rig.send(QUEUE_SIZE);
    assert!(rig.serve(false).is_err());
}

fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => DATA..MEMORY,
        2 => Just(HEADER),
        2 => Just(INDIRECT),
        1 => MEMORY - 32..MEMORY + 32,
        1 => any::<u64>(),
    ]
}

fn length() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => prop::sample::select(vec![0, 1, 15, 16, 17, 20, 32, 48, 511, 512, 513, 1024, 4096]),
        1 => any::<u32>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let flags = prop_oneof![6 => 0_u16..4, 1 => Just(ring::INDIRECT), 1 => any::<u16>()];
    (address(), length(), flags, 0..QUEUE_SIZE + 2).prop_map(|(address, len, flags, next)| Descriptor {
        address,
        len,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is in the rings, the device changes what it was given to fill and its own ring, and nothing else; and after a
    /// reset it works.
    #[test]
    fn any_chains(
        direct in vec(descriptor(), usize::from(QUEUE_SIZE)),
        indirect in vec(descriptor(), 8),
        heads in vec(0..QUEUE_SIZE + 1, 1..8),
        kind in prop_oneof![Just(0_u32), Just(1), Just(4), Just(8), Just(11), Just(13), any::<u32>()],
        sector in prop_oneof![0_u64..3000, any::<u64>()],
        index in prop_oneof![9 => Just(None), 1 => any::<u16>().prop_map(Some)],
    ) {
        let mut rig = Rig::new(false);
        rig.header(kind, sector);
        for (number, it) in (0..).zip(&direct) {
            it.put(&rig.memory, TABLE, number);
        }
        for (number, it) in (0..).zip(&indirect) {
            it.put(&rig.memory, INDIRECT, number);
        }
        for head in &heads {
            rig.send(*head);
        }
        if let Some(index) = index {
            rig.memory.write_obj(index, GuestAddress(RINGS.available + 2)).unwrap();
        }
        let before = rig.snapshot();
        let stopped = rig.serve(false).is_err();
        prop_assert!(stopped || rig.answered() == rig.sent);
        let mut after = rig.snapshot();
        let ring = RINGS.used as usize..RINGS.used as usize + 6 + 8 * usize::from(QUEUE_SIZE);
        after[ring.clone()].copy_from_slice(&before[ring]);
        let fillable = direct.iter().chain(&indirect).filter(|it| it.flags & WRITE != 0);
        let fillable = fillable.collect::<Vec<_>>();
        for (at, (now, then)) in after.iter().zip(&before).enumerate() {
            let is_given = || fillable.iter().any(|it| {
                (it.address..it.address.saturating_add(it.len.into())).contains(&(at as u64))
            });
            prop_assert!(now == then || is_given(), "byte {at:#x} was changed");
        }
        let mut fresh = Rig::with(allocate(MEMORY).unwrap(), Disk::new(Arc::clone(&rig.ram) as _), rig.ram, false);
        fresh.set_data(&[9; 512]);
        prop_assert_eq!(fresh.request(1, 0, false, &[512]), OK);
        prop_assert_eq!(fresh.on_disk(0..512), vec![9; 512]);
    }

    /// Proper requests in any order do to the disk what they do to a vector of bytes.
    #[test]
    fn proper_requests(steps in vec((0..4_u8, 0..2047_u64, 1..8_u32, any::<u8>(), 1..512_u32), 1..24)) {
        let mut rig = Rig::new(false);
        let mut model = vec![0; DISK];
        for (step, sector, sectors, fill, cut) in steps {
            let sectors = sectors.min(2048 - sector as u32);
            let len = sectors * 512;
            let range = sector as usize * 512..sector as usize * 512 + len as usize;
            let lens = [cut, len - cut];
            match step {
                0 => {
                    prop_assert_eq!(rig.request(0, sector, true, &lens), OK);
                    prop_assert_eq!(rig.data(len as usize), &model[range]);
                }
                1 => {
                    rig.set_data(&vec![fill; len as usize]);
                    prop_assert_eq!(rig.request(1, sector, false, &lens), OK);
                    model[range].fill(fill);
                }
                step => {
                    rig.set_data(&ranges(&[(sector, sectors, 0)]));
                    let kind = if step == 2 { 11 } else { 13 };
                    prop_assert_eq!(rig.request(kind, 0, false, &[16]), OK);
                    model[range].fill(0);
                }
            }
        }
        prop_assert!(rig.on_disk(0..DISK) == model);
    }
}
