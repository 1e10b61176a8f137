//! virtio-rng: random numbers of the host for the guest (virtio 1.2, section 5.4).
//!
//! Each buffer that the guest gives is filled. What the guest says of its buffers is checked: those that it only lets be read are
//! passed over, and one that is not in its memory ends the request with what was filled before.

use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use vhd_block::units::{u64_from, usize_from};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::Queue;
use vm_memory::Bytes as _;

use crate::mem::GuestMemory;
use crate::sandbox::Sandbox;
use crate::state::StateError;
use crate::virtio::queue::{Answer, Chain, Unusable};
use crate::virtio::queue_thread::QueueThread;
use crate::virtio::{Interrupt, VirtioDevice, offer_again};

/// The number of entropy sources (virtio 1.2, section 5).
pub(crate) const VIRTIO_ID_RNG: u32 = 4;

/// Where random numbers of the host come from.
const SOURCE: &str = "/dev/urandom";
/// Entries of the queue.
const QUEUE_SIZE: u16 = 64;
/// Bytes that a request gets at most: Linux asks for 64 or fewer.
const MOST: u64 = 64 << 10;
/// Bytes that are drawn at a time.
const PIECE: usize = 4096;

/// A source of random numbers as a device.
pub(crate) struct Rng {
    thread: QueueThread,
    offered: u64,
}

impl Rng {
    /// A device with a thread of its own.
    pub(crate) fn new(sandbox: Sandbox) -> io::Result<Self> {
        let source = File::open(SOURCE)?;
        Ok(Self {
            thread: QueueThread::start("rng", Source(source), sandbox)?,
            offered: [VIRTIO_F_VERSION_1, VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC]
                .iter()
                .fold(0, |bits, bit| bits | 1 << bit),
        })
    }
}

/// Fills buffers of the guest.
struct Source<R>(R);

impl<R: Read + Send> Answer for Source<R> {
    fn answer(&mut self, chain: Chain<'_>, _queue_size: u16, memory: &GuestMemory) -> Result<u32, Unusable> {
        let mut left = MOST;
        for buffer in chain.writable() {
            let len = u64::from(buffer.len()).min(left);
            let mut at = 0;
            while at < len {
                let mut piece = [0; PIECE];
                let piece = &mut piece[..usize_from(len - at).min(PIECE)];
                let place = buffer.addr().0.checked_add(at).map(vm_memory::GuestAddress);
                let filled = self.0.read_exact(piece).is_ok()
                    && place.is_some_and(|place| memory.write_slice(piece, place).is_ok());
                if !filled {
                    return Ok(filled_of(left - at));
                }
                at += u64_from(piece.len());
            }
            left -= len;
        }
        Ok(filled_of(left))
    }
}

/// Bytes that were filled, of a request that has room for these.
fn filled_of(left: u64) -> u32 {
    u32::try_from(MOST - left).unwrap_or(0)
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn max_queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        // It has none.
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, _features: u64, memory: GuestMemory, queue: Queue, interrupt: Arc<Interrupt>) {
        self.thread.activate(memory, queue, interrupt);
    }

    fn thread(&self) -> &QueueThread {
        &self.thread
    }

    fn refresh_config(&mut self) -> bool {
        false
    }

    fn save(&self) -> bool {
        false
    }

    fn restore(&mut self, _saved: bool) -> Result<(), StateError> {
        self.thread.answer_again();
        Ok(())
    }

    fn offer(&mut self, features: u64) -> Result<(), StateError> {
        self.offered = offer_again(self.offered, features)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
