//! The device with its thread. The guest's processors never wait for a disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vhd_block::Disk;
use vhd_block::units::usize_from;
use virtio_queue::Queue;

use super::config::{self, Config, QUEUE_SIZE, WRITEBACK};
use super::execute::{DiskId, Executor};
use super::serve::Requests;
use crate::mem::GuestMemory;
use crate::sandbox::Sandbox;
use crate::state::StateError;
use crate::virtio::queue_thread::QueueThread;
use crate::virtio::{Interrupt, VirtioDevice, offer_again};

/// The number of block devices (virtio 1.2, section 5).
pub(crate) const VIRTIO_ID_BLOCK: u32 = 2;

/// A disk as a device.
pub(crate) struct Block {
    disk: Disk,
    thread: QueueThread,
    write_through: Arc<AtomicBool>,
    offered: u64,
    negotiated: u64,
    config: Config,
}

impl Block {
    /// A device for `disk`, called `name` in the guest (20 bytes of it), with a thread of its own.
    pub(crate) fn new(disk: Disk, name: &str, read_only: bool, sandbox: Sandbox) -> io::Result<Self> {
        let config = config::config(&disk);
        let write_through = Arc::new(AtomicBool::new(false));
        let requests = Requests {
            executor: Executor::new(disk.clone(), id(name), read_only),
            write_through: Arc::clone(&write_through),
        };
        Ok(Self {
            disk,
            thread: QueueThread::start(&format!("disk {name}"), requests, sandbox)?,
            write_through,
            offered: config::features(read_only),
            negotiated: 0,
            config,
        })
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
            self.write_through.store(writeback == 0, Ordering::Release);
        }
    }

    fn activate(&mut self, features: u64, memory: GuestMemory, queue: Queue, interrupt: Arc<Interrupt>) {
        self.negotiated = features;
        let must = config::must_write_through(features);
        self.config[WRITEBACK] = u8::from(!must);
        self.write_through.store(must, Ordering::Release);
        self.thread.activate(memory, queue, interrupt);
    }

    fn thread(&self) -> &QueueThread {
        &self.thread
    }

    fn reset(&mut self) {
        self.negotiated = 0;
        self.thread.reset();
    }

    fn refresh_config(&mut self) -> bool {
        let mut config = config::config(&self.disk);
        config[WRITEBACK] = self.config[WRITEBACK];
        std::mem::replace(&mut self.config, config) != config
    }

    fn save(&self) -> bool {
        self.config[WRITEBACK] != 0
    }

    fn restore(&mut self, writeback: bool) -> Result<(), StateError> {
        self.config[WRITEBACK] = u8::from(writeback);
        self.write_through.store(!writeback, Ordering::Release);
        self.thread.answer_again();
        Ok(())
    }

    fn offer(&mut self, features: u64) -> Result<(), StateError> {
        self.offered = offer_again(self.offered, features)?;
        Ok(())
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
