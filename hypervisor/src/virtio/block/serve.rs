//! A queue worked off.

use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress};

use super::execute::{Answer, Executor};
use super::request::{Malformed, parse};
use crate::mem::GuestMemory;
use crate::virtio::Interrupt;

/// Why a queue cannot be served any further.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("its rings cannot be used: {0}")]
    Rings(#[from] Error),
    #[error("a request has no place for its status: {0:?}")]
    Request(Malformed),
}

/// A queue that the driver has handed over, with all that is needed to answer.
pub(super) struct Served {
    pub(super) memory: GuestMemory,
    pub(super) queue: Queue,
    pub(super) interrupt: std::sync::Arc<Interrupt>,
}

impl Served {
    /// Executes what is available, at most as many requests as the queue has entries. Returns whether there may be more.
    pub(super) fn serve(&mut self, executor: &mut Executor, write_through: bool) -> Result<bool, Unusable> {
        self.queue.disable_notification(&self.memory)?;
        let mut left = self.queue.size();
        let result = self.serve_available(executor, write_through, &mut left);
        // What was answered before something went wrong was answered.
        if left < self.queue.size() && self.queue.needs_notification(&self.memory)? {
            self.interrupt.used();
        }
        result?;
        Ok(left == 0 || self.queue.enable_notification(&self.memory)?)
    }

    fn serve_available(
        &mut self,
        executor: &mut Executor,
        write_through: bool,
        left: &mut u16,
    ) -> Result<(), Unusable> {
        while *left > 0
            && let Some(chain) = self.queue.iter(&self.memory)?.next()
        {
            let head = chain.head_index();
            let filled = answer(chain, self.queue.size(), &self.memory, executor, write_through)?;
            self.queue.add_used(&self.memory, head, filled)?;
            *left -= 1;
        }
        Ok(())
    }
}

/// Answers one chain; returns how many bytes were filled, the status included.
fn answer(
    chain: DescriptorChain<&GuestMemory>,
    queue_size: u16,
    memory: &GuestMemory,
    executor: &mut Executor,
    write_through: bool,
) -> Result<u32, Unusable> {
    let (answer, status) = match parse(chain, queue_size, memory) {
        Ok(request) => (executor.execute(&request, memory, write_through), request.status),
        Err(malformed) => {
            tracing::warn!(?malformed, "the guest sent a malformed disk request");
            (Answer::invalid(), malformed.status.ok_or(Unusable::Request(malformed))?)
        }
    };
    put_status(memory, status, answer.status)?;
    Ok(answer.filled.saturating_add(1))
}

fn put_status(memory: &GuestMemory, at: GuestAddress, status: u8) -> Result<(), Unusable> {
    memory
        .write_obj(status, at)
        .map_err(|error| Unusable::Rings(Error::GuestMemory(error)))
}
