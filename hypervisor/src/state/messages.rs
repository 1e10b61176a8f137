//! What is in the sections. Tags are never used for anything else again; what is new gets a new one, and a section whose
//! readers must know it says so in `requires`. Absence is the state of a device that was just switched on.

use virtio_queue::{Queue, QueueState, QueueT as _};

use super::StateError;

/// The header of a section.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Header {
    #[prost(string, tag = "1")]
    pub(super) kind: String,
    #[prost(uint32, tag = "2")]
    pub(super) instance: u32,
    #[prost(uint32, tag = "3")]
    pub(super) version: u32,
    #[prost(string, repeated, tag = "4")]
    pub(super) requires: Vec<String>,
    #[prost(uint64, tag = "5")]
    pub(super) length: u64,
    #[prost(bytes = "vec", tag = "6")]
    pub(super) digest: Vec<u8>,
}

/// What the machine is.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Machine {
    /// `vhd-1` or `mmio`.
    #[prost(string, tag = "1")]
    pub(crate) machine_type: String,
    #[prost(uint32, tag = "2")]
    pub(crate) cpus: u32,
    /// Bytes.
    #[prost(uint64, tag = "3")]
    pub(crate) memory: u64,
    /// The version of the program that wrote it, for people.
    #[prost(string, tag = "4")]
    pub(crate) writer: String,
}

/// Guest memory in the file.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Memory {
    /// Where it begins in the file.
    #[prost(uint64, tag = "1")]
    pub(super) offset: u64,
    /// Bytes of a piece.
    #[prost(uint32, tag = "2")]
    pub(super) piece: u32,
    /// The pieces that are not all zero, ascending.
    #[prost(message, repeated, tag = "3")]
    pub(super) pieces: Vec<Piece>,
}

/// A piece of memory with something in it.
#[derive(Clone, PartialEq, prost::Message)]
pub(super) struct Piece {
    #[prost(uint32, tag = "1")]
    pub(super) number: u32,
    /// BLAKE3 of the whole piece, zeroes included.
    #[prost(bytes = "vec", tag = "2")]
    pub(super) digest: Vec<u8>,
}

/// What processors say about themselves: entries of `KVM_SET_CPUID2`, the same for all of them.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CpuTable {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<CpuEntry>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct CpuEntry {
    #[prost(uint32, tag = "1")]
    pub(crate) function: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) index: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) flags: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) eax: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) ebx: u32,
    #[prost(uint32, tag = "6")]
    pub(crate) ecx: u32,
    #[prost(uint32, tag = "7")]
    pub(crate) edx: u32,
}

/// A processor. Structures of KVM are bytes, whose length is checked.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Processor {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) mp_state: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) regs: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) sregs: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) xsave: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    pub(crate) xcrs: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    pub(crate) debug_regs: Vec<u8>,
    #[prost(bytes = "vec", tag = "7")]
    pub(crate) lapic: Vec<u8>,
    #[prost(message, repeated, tag = "8")]
    pub(crate) msrs: Vec<Msr>,
    #[prost(bytes = "vec", tag = "9")]
    pub(crate) events: Vec<u8>,
    #[prost(uint32, tag = "10")]
    pub(crate) tsc_khz: u32,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Msr {
    #[prost(uint32, tag = "1")]
    pub(crate) index: u32,
    #[prost(fixed64, tag = "2")]
    pub(crate) value: u64,
}

/// Interrupt controllers, timer and clock, as structures of KVM.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Interrupts {
    /// The two 8259, then the I/O APIC.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) chips: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) pit: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) clock: Vec<u8>,
}

/// COM1.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Serial {
    /// Divisor (2), interrupt enable and identification, line control and status, modem control and status, scratch.
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) registers: Vec<u8>,
    /// What the guest can read.
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) received: Vec<u8>,
    /// What waits for room there.
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) pending: Vec<u8>,
    /// The guest has written that it panicked.
    #[prost(bool, tag = "4")]
    pub(crate) panicked: bool,
    /// Bytes of that text that were written last.
    #[prost(uint32, tag = "5")]
    pub(crate) matched: u32,
}

/// The clock.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Cmos {
    #[prost(uint32, tag = "1")]
    pub(crate) index: u32,
}

/// The bus of `vhd-1` and its hot-plug.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct Bus {
    /// What the ports of the configuration space reach.
    #[prost(uint32, tag = "1")]
    pub(crate) address: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) added: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) leaving: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) buttons: u32,
    /// The slot that was filled last.
    #[prost(uint32, tag = "5")]
    pub(crate) last: u32,
}

/// A function of PCI.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Function {
    #[prost(bytes = "vec", tag = "1")]
    pub(crate) config: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub(crate) msix: Option<Messages>,
    /// Which message a change sends, and which one the queue.
    #[prost(uint32, tag = "3")]
    pub(crate) changed: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) used: u32,
    #[prost(message, optional, tag = "5")]
    pub(crate) virtio: Option<Virtio>,
}

/// MSI-X of a function.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Messages {
    #[prost(uint32, tag = "1")]
    pub(crate) control: u32,
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) entries: Vec<Vec<u8>>,
    #[prost(bool, repeated, tag = "3")]
    pub(crate) pending: Vec<bool>,
}

/// A virtio device, whatever transport it is behind.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Virtio {
    #[prost(uint32, tag = "1")]
    pub(crate) device_type: u32,
    #[prost(uint64, tag = "2")]
    pub(crate) offered: u64,
    #[prost(uint64, tag = "3")]
    pub(crate) accepted: u64,
    #[prost(uint32, tag = "4")]
    pub(crate) status: u32,
    #[prost(uint32, tag = "5")]
    pub(crate) offered_half: u32,
    #[prost(uint32, tag = "6")]
    pub(crate) accepted_half: u32,
    #[prost(uint32, tag = "7")]
    pub(crate) selected_queue: u32,
    #[prost(uint32, tag = "8")]
    pub(crate) reasons: u32,
    #[prost(bool, tag = "9")]
    pub(crate) needs_reset: bool,
    /// As the driver sets it up.
    #[prost(message, optional, tag = "10")]
    pub(crate) in_setup: Option<QueueMessage>,
    /// As the device serves it.
    #[prost(message, optional, tag = "11")]
    pub(crate) served: Option<QueueMessage>,
    /// A disk: the driver flushes by itself.
    #[prost(bool, tag = "12")]
    pub(crate) writeback: bool,
    /// How often the configuration changed by itself, the lowest byte of it.
    #[prost(uint32, tag = "13")]
    pub(crate) generation: u32,
}

/// A queue.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub(crate) struct QueueMessage {
    #[prost(uint32, tag = "1")]
    size: u32,
    #[prost(bool, tag = "2")]
    ready: bool,
    #[prost(uint64, tag = "3")]
    descriptors: u64,
    #[prost(uint64, tag = "4")]
    available: u64,
    #[prost(uint64, tag = "5")]
    used: u64,
    #[prost(uint32, tag = "6")]
    next_available: u32,
    #[prost(uint32, tag = "7")]
    next_used: u32,
    #[prost(bool, tag = "8")]
    event_index: bool,
}

impl From<&Queue> for QueueMessage {
    fn from(queue: &Queue) -> Self {
        let state = queue.state();
        Self {
            size: state.size.into(),
            ready: state.ready,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
            next_available: queue.next_avail().into(),
            next_used: queue.next_used().into(),
            event_index: state.event_idx_enabled,
        }
    }
}

impl QueueMessage {
    /// The queue, of a device whose queues have at most `max_size` entries.
    pub(crate) fn queue(&self, max_size: u16) -> Result<Queue, StateError> {
        let wrong = || StateError::damaged("virtio", "has a queue that is none");
        let number = |number: u32| u16::try_from(number).map_err(|_| wrong());
        let state = QueueState {
            max_size,
            next_avail: number(self.next_available)?,
            next_used: number(self.next_used)?,
            event_idx_enabled: self.event_index,
            size: number(self.size)?,
            ready: self.ready,
            desc_table: self.descriptors,
            avail_ring: self.available,
            used_ring: self.used,
        };
        Queue::try_from(state).map_err(|_| wrong())
    }
}
