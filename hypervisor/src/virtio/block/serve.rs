//! A chain answered: parsed, executed, its status written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use virtio_queue::Error;
use vm_memory::{Bytes as _, GuestAddress};

use super::execute::{self, Executor};
use super::request::parse;
use crate::mem::GuestMemory;
use crate::virtio::queue::{Answer, Chain, Unusable};

/// What answers the requests to a disk.
pub(super) struct Requests {
    pub(super) executor: Executor,
    /// Each write is durable when it is answered. The device changes it.
    pub(super) write_through: Arc<AtomicBool>,
}

impl Answer for Requests {
    /// The bytes that were filled are counted with the status.
    fn answer(&mut self, chain: Chain<'_>, queue_size: u16, memory: &GuestMemory) -> Result<u32, Unusable> {
        let (answer, status) = match parse(chain, queue_size, memory) {
            Ok(request) => {
                let write_through = self.write_through.load(Ordering::Acquire);
                let answer = self.executor.execute(&request, memory, write_through);
                (answer, request.status)
            }
            Err(malformed) => {
                tracing::warn!(?malformed, "the guest sent a malformed disk request");
                let nowhere = || Unusable::Request(format!("it has no place for its status: {malformed:?}"));
                (execute::Answer::invalid(), malformed.status.ok_or_else(nowhere)?)
            }
        };
        put_status(memory, status, answer.status)?;
        Ok(answer.filled.saturating_add(1))
    }
}

fn put_status(memory: &GuestMemory, at: GuestAddress, status: u8) -> Result<(), Unusable> {
    memory
        .write_obj(status, at)
        .map_err(|error| Unusable::Rings(Error::GuestMemory(error)))
}
