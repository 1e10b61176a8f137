//! The thread that serves the queue of a device. The guest's processors never wait for it.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vhd_block::with_causes;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::Interrupt;
use super::queue::{Answer, Served};
use crate::mem::GuestMemory;
use crate::sandbox::{Sandbox, Task};

/// A thread that serves a queue whenever its bell rings. It ends when this is dropped.
pub(crate) struct QueueThread {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the device and its thread share.
struct Shared {
    /// What is served; nothing before the driver is ready, and after it broke the rules. Held while chains are answered.
    served: Mutex<Option<Served>>,
    doorbell: EventFd,
    ends: AtomicBool,
    /// Changed while nothing is answered.
    paused: AtomicBool,
}

impl Shared {
    fn served(&self) -> MutexGuard<'_, Option<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl QueueThread {
    /// Starts the thread. If it is to be confined, it puts itself under the rules for disks before it serves anything: not before,
    /// since the whole process can be put under rules only while no thread has some of its own.
    pub(super) fn start(name: &str, mut device: impl Answer + 'static, sandbox: Sandbox) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            served: Mutex::new(None),
            doorbell: EventFd::new(0)?,
            ends: AtomicBool::new(false),
            paused: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let mut rules = Some(sandbox);
            work(&of_thread, &mut device, &mut rules);
        })?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// Serves a queue from now on.
    pub(super) fn activate(&self, memory: GuestMemory, queue: Queue, interrupt: Arc<Interrupt>) {
        *self.shared.served() = Some(Served {
            memory,
            queue,
            interrupt,
        });
        // The driver may have rung before.
        self.ring();
    }

    /// Serves nothing any more: on return guest memory is not touched.
    pub(super) fn reset(&self) {
        *self.shared.served() = None;
    }

    /// Serves nothing until [`resume`](Self::resume): on return guest memory is not touched.
    pub(super) fn pause(&self) {
        let _idle = self.shared.served();
        self.shared.paused.store(true, Ordering::Release);
    }

    pub(super) fn resume(&self) {
        self.shared.paused.store(false, Ordering::Release);
        self.ring();
    }

    /// The queue that is served.
    pub(super) fn queue(&self) -> Option<Queue> {
        // A queue has no clone, only its state.
        let served = self.shared.served();
        let state = served.as_ref().map(|served| served.queue.state());
        state.and_then(|state| Queue::try_from(state).ok())
    }

    /// The guest goes on from a saved state: answers may have been on their way to it when that was saved.
    pub(super) fn answer_again(&self) {
        if let Some(served) = self.shared.served().as_ref() {
            served.interrupt.used();
        }
    }

    /// What the driver rings.
    pub(super) fn doorbell(&self) -> &EventFd {
        &self.shared.doorbell
    }

    fn ring(&self) {
        // An event counter takes a one unless it is about to overflow, and then the thread is awake anyway.
        let _ = self.shared.doorbell.write(1);
    }
}

impl Drop for QueueThread {
    fn drop(&mut self) {
        self.reset();
        self.shared.ends.store(true, Ordering::Release);
        self.ring();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn work(shared: &Shared, device: &mut dyn Answer, rules: &mut Option<Sandbox>) {
    while shared.doorbell.read().is_ok() {
        loop {
            if shared.ends.load(Ordering::Acquire) {
                return;
            }
            if !serve_once(shared, device, rules) {
                break;
            }
        }
    }
}

/// Answers a batch; returns whether there may be more. Between batches a reset gets in. `rules` are those that the thread is not
/// under yet.
fn serve_once(shared: &Shared, device: &mut dyn Answer, rules: &mut Option<Sandbox>) -> bool {
    let mut served = shared.served();
    let Some(serving) = served.as_mut().filter(|_| !shared.paused.load(Ordering::Acquire)) else {
        return false;
    };
    if let Some(sandbox) = *rules {
        if let Err(error) = sandbox.confine_thread(Task::Disk) {
            // Without its rules it serves nothing.
            tracing::error!(error = with_causes(&error), "a device is not served");
            serving.interrupt.require_reset();
            *served = None;
            return false;
        }
        *rules = None;
    }
    match serving.serve(device) {
        Ok(more) => more,
        Err(error) => {
            tracing::warn!(%error, "a device waits for its driver to reset it");
            serving.interrupt.require_reset();
            *served = None;
            false
        }
    }
}
