//! A queue as its driver lays it out in guest memory: for tests of devices, and for the fuzz target.

#[cfg(test)]
use virtio_queue::{Queue, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};

use crate::mem::GuestMemory;

/// Another descriptor follows.
pub(crate) const NEXT: u16 = 1;
/// The device fills the buffer.
pub(crate) const WRITE: u16 = 2;
/// The buffer is a table of descriptors.
#[cfg(test)]
pub(crate) const INDIRECT: u16 = 4;

/// Bytes of a descriptor.
const LEN: u64 = 16;

/// An entry of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor {
    pub(crate) address: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    pub(crate) next: u16,
}

impl Descriptor {
    /// As it is in memory.
    pub(crate) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }

    /// Where an entry of a table is.
    pub(crate) fn place(table: u64, number: u16) -> u64 {
        table + u64::from(number) * LEN
    }

    /// Writes it into a table.
    pub(crate) fn put(self, memory: &GuestMemory, table: u64, number: u16) {
        put(memory, Self::place(table, number), &self.bytes());
    }
}

/// Where the parts of a queue are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rings {
    pub(crate) table: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
    pub(crate) size: u16,
}

impl Rings {
    /// The queue as the device gets it, with nothing in it.
    #[cfg(test)]
    pub(crate) fn queue(&self, memory: &GuestMemory) -> Queue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        let low = |address: u64| u32::try_from(address).ok();
        queue.set_desc_table_address(low(self.table), None);
        queue.set_avail_ring_address(low(self.available), None);
        queue.set_used_ring_address(low(self.used), None);
        queue.set_ready(true);
        self.clear(memory);
        queue
    }

    /// Nothing is available, and nothing answered.
    pub(crate) fn clear(&self, memory: &GuestMemory) {
        for ring in [self.available, self.used] {
            put(memory, ring, &[0; 4]);
        }
    }

    /// Makes a chain available, after so many others.
    pub(crate) fn send(&self, memory: &GuestMemory, sent: u16, head: u16) {
        let slot = self.available + 4 + u64::from(sent % self.size) * 2;
        put(memory, slot, &head.to_le_bytes());
        put(memory, self.available + 2, &sent.wrapping_add(1).to_le_bytes());
    }

    /// How many chains are answered.
    pub(crate) fn answered(&self, memory: &GuestMemory) -> u16 {
        let count = memory.read_obj(GuestAddress(self.used + 2));
        count.expect("the ring is in memory")
    }

    /// Bytes that the device says to have filled for an answer.
    #[cfg(test)]
    pub(crate) fn filled(&self, memory: &GuestMemory, answer: u16) -> u32 {
        let slot = self.used + 4 + u64::from(answer % self.size) * 8;
        memory.read_obj(GuestAddress(slot + 4)).expect("the ring is in memory")
    }
}

fn put(memory: &GuestMemory, at: u64, bytes: &[u8]) {
    let written = memory.write_slice(bytes, GuestAddress(at));
    written.expect("the place is in memory");
}
