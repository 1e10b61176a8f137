//! A queue that a driver has handed over, worked off chain by chain, whatever its device does.

use std::sync::Arc;

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT as _, QueueT as _};

use super::Interrupt;
use crate::mem::GuestMemory;

/// A chain of buffers in guest memory.
pub(super) type Chain<'m> = DescriptorChain<&'m GuestMemory>;

/// Why a queue cannot be served any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("its rings cannot be used: {0}")]
    Rings(#[from] Error),
    #[error("a request cannot be answered: {0}")]
    Request(String),
}

/// What a device does with a chain.
pub(super) trait Answer: Send {
    /// Answers a chain of a queue of so many entries; returns how many bytes were filled.
    ///
    /// # Errors
    /// There is no place for an answer.
    fn answer(&mut self, chain: Chain<'_>, queue_size: u16, memory: &GuestMemory) -> Result<u32, Unusable>;
}

/// A queue that the driver has handed over, with all that is needed to answer.
pub(super) struct Served {
    pub(super) memory: GuestMemory,
    pub(super) queue: Queue,
    pub(super) interrupt: Arc<Interrupt>,
}

impl Served {
    /// Answers what is available, at most as many chains as the queue has entries. Returns whether there may be more.
    pub(super) fn serve(&mut self, device: &mut dyn Answer) -> Result<bool, Unusable> {
        self.queue.disable_notification(&self.memory)?;
        let mut left = self.queue.size();
        let result = self.serve_available(device, &mut left);
        // What was answered before something went wrong was answered.
        if left < self.queue.size() && self.queue.needs_notification(&self.memory)? {
            self.interrupt.used();
        }
        result?;
        Ok(left == 0 || self.queue.enable_notification(&self.memory)?)
    }

    fn serve_available(&mut self, device: &mut dyn Answer, left: &mut u16) -> Result<(), Unusable> {
        while *left > 0
            && let Some(chain) = self.queue.iter(&self.memory)?.next()
        {
            let head = chain.head_index();
            let filled = device.answer(chain, self.queue.size(), &self.memory)?;
            self.queue.add_used(&self.memory, head, filled)?;
            *left -= 1;
        }
        Ok(())
    }
}
