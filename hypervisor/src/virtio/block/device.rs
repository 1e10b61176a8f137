//! The device with its thread. The guest's processors never wait for a disk.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vhd_block::units::usize_from;
use vhd_block::{Disk, with_causes};
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use super::config::{self, Config, QUEUE_SIZE, WRITEBACK};
use super::execute::{DiskId, Executor};
use super::serve::Served;
use crate::mem::GuestMemory;
use crate::sandbox::{Sandbox, Task};
use crate::state::StateError;
use crate::virtio::{Interrupt, VirtioDevice};

/// The number of block devices (virtio 1.2, section 5).
const VIRTIO_ID_BLOCK: u32 = 2;

/// A disk as a device.
pub(crate) struct Block {
    disk: Disk,
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    offered: u64,
    negotiated: u64,
    config: Config,
}

/// What the device and its thread share.
struct Shared {
    /// What is served; nothing before the driver is ready, and after it broke the rules. Held while requests are executed.
    served: Mutex<Option<Served>>,
    doorbell: EventFd,
    ends: AtomicBool,
    /// Changed while nothing is executed.
    paused: AtomicBool,
    write_through: AtomicBool,
}

impl Shared {
    fn served(&self) -> MutexGuard<'_, Option<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Block {
    /// A device for `disk`, called `name` in the guest (20 bytes of it), with a thread of its own.
    pub(crate) fn new(disk: Disk, name: &str, read_only: bool, sandbox: Sandbox) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            served: Mutex::new(None),
            doorbell: EventFd::new(0)?,
            ends: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            write_through: AtomicBool::new(false),
        });
        let config = config::config(&disk);
        let executor = Executor::new(disk.clone(), id(name), read_only);
        let of_worker = Arc::clone(&shared);
        let worker = thread::Builder::new().name(format!("disk {name}")).spawn(move || {
            match sandbox.confine_thread(Task::Disk) {
                Ok(()) => work(&of_worker, executor),
                // Without its rules it serves nothing.
                Err(error) => tracing::error!(error = with_causes(&error), "a disk is not served"),
            }
        })?;
        Ok(Self {
            disk,
            shared,
            worker: Some(worker),
            offered: config::features(read_only),
            negotiated: 0,
            config,
        })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.reset();
        self.shared.ends.store(true, Ordering::Release);
        // An event counter takes a one unless it is about to overflow, and then the thread is awake anyway.
        let _ = self.shared.doorbell.write(1);
        if let Some(worker) = self.worker.take() {
            let _ = worker.join();
        }
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        self.offered
    }

    fn max_queue_size(&self) -> u16 {
        QUEUE_SIZE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (usize_from(offset)..).zip(data) {
            *byte = self.config.get(at).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if usize_from(offset) == WRITEBACK
            && let [writeback] = *data
            && config::may_choose_writeback(self.negotiated)
        {
            let writeback = writeback & 1;
            self.config[WRITEBACK] = writeback;
            self.shared.write_through.store(writeback == 0, Ordering::Release);
        }
    }

    fn activate(&mut self, features: u64, memory: GuestMemory, queue: Queue, interrupt: Arc<Interrupt>) {
        self.negotiated = features;
        let must = config::must_write_through(features);
        self.config[WRITEBACK] = u8::from(!must);
        self.shared.write_through.store(must, Ordering::Release);
        *self.shared.served() = Some(Served {
            memory,
            queue,
            interrupt,
        });
        // The driver may have rung before.
        let _ = self.shared.doorbell.write(1);
    }

    fn reset(&mut self) {
        self.negotiated = 0;
        *self.shared.served() = None;
    }

    fn pause(&mut self) {
        let _idle = self.shared.served();
        self.shared.paused.store(true, Ordering::Release);
    }

    fn resume(&mut self) {
        self.shared.paused.store(false, Ordering::Release);
        let _ = self.shared.doorbell.write(1);
    }

    fn refresh_config(&mut self) -> bool {
        let mut config = config::config(&self.disk);
        config[WRITEBACK] = self.config[WRITEBACK];
        std::mem::replace(&mut self.config, config) != config
    }

    fn served(&self) -> Option<Queue> {
        // A queue has no clone, only its state.
        let served = self.shared.served();
        let state = served.as_ref().map(|served| served.queue.state());
        state.and_then(|state| Queue::try_from(state).ok())
    }

    fn save(&self) -> bool {
        self.config[WRITEBACK] != 0
    }

    fn restore(&mut self, writeback: bool) -> Result<(), StateError> {
        self.config[WRITEBACK] = u8::from(writeback);
        self.shared.write_through.store(!writeback, Ordering::Release);
        if let Some(served) = self.shared.served().as_ref() {
            // Its answers may have been on their way to the guest when the state was saved.
            served.interrupt.used();
        }
        Ok(())
    }

    fn offer(&mut self, features: u64) -> Result<(), StateError> {
        if features & !self.offered != 0 {
            return Err(StateError::Features {
                missing: features & !self.offered,
            });
        }
        self.offered = features;
        Ok(())
    }

    fn doorbell(&self) -> &EventFd {
        &self.shared.doorbell
    }
}

/// The thread: serves whenever the bell rings.
fn work(shared: &Shared, mut executor: Executor) {
    while shared.doorbell.read().is_ok() {
        loop {
            if shared.ends.load(Ordering::Acquire) {
                return;
            }
            if !serve_once(shared, &mut executor) {
                break;
            }
        }
    }
}

/// Executes a batch; returns whether there may be more. Between batches a reset gets in.
fn serve_once(shared: &Shared, executor: &mut Executor) -> bool {
    let mut served = shared.served();
    let Some(serving) = served.as_mut().filter(|_| !shared.paused.load(Ordering::Acquire)) else {
        return false;
    };
    match serving.serve(executor, shared.write_through.load(Ordering::Acquire)) {
        Ok(more) => more,
        Err(error) => {
            tracing::warn!(%error, "a disk waits for its driver to reset it");
            serving.interrupt.require_reset();
            *served = None;
            false
        }
    }
}

/// The name as GET_ID gives it, padded with zeroes.
fn id(name: &str) -> DiskId {
    let mut id = DiskId::default();
    for (to, from) in id.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    id
}
