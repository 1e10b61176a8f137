//! What a driver and a device agree on, whatever the transport: status, features, the queue (virtio 1.2, sections 2 and 3).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT as _};

use super::{Interrupt, VirtioDevice};
use crate::mem::GuestMemory;
use crate::state::{StateError, Virtio};

/// The only queue.
const QUEUE: u32 = 0;

/// A device as its driver sees it, behind any transport.
pub(crate) struct Session {
    device: Box<dyn VirtioDevice>,
    memory: GuestMemory,
    interrupt: Arc<Interrupt>,
    /// As the driver sets it up; the device gets it when the driver is ready.
    queue: Queue,
    status: u32,
    /// Which half of the features is read.
    pub(super) offered_half: u32,
    /// Which half of the features is written.
    pub(super) accepted_half: u32,
    accepted: u64,
    pub(super) selected_queue: u32,
    /// How often the configuration changed by itself.
    generation: u8,
}

impl Session {
    pub(super) fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory, interrupt: Arc<Interrupt>) -> Self {
        let queue = new_queue(&*device);
        Self {
            device,
            memory,
            interrupt,
            queue,
            status: 0,
            offered_half: 0,
            accepted_half: 0,
            accepted: 0,
            selected_queue: 0,
            generation: 0,
        }
    }

    /// A driver that reads the configuration in parts sees by it that they do not belong together.
    pub(super) fn generation(&self) -> u8 {
        self.generation
    }

    /// What is behind the device has another size: the driver is told, if there is one.
    pub(super) fn refresh_config(&mut self) {
        if !self.device.refresh_config() {
            return;
        }
        self.generation = self.generation.wrapping_add(1);
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.interrupt.changed();
        }
    }

    pub(crate) fn device(&self) -> &dyn VirtioDevice {
        &*self.device
    }

    pub(super) fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        &mut *self.device
    }

    pub(crate) fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// The driver rings by itself where KVM does not hear it.
    pub(super) fn ring(&self) {
        // An event counter takes a one unless it is about to overflow, and then the device is awake anyway.
        let _ = self.device.doorbell().write(1);
    }

    pub(super) fn offered(&self) -> u32 {
        half(self.device.features(), self.offered_half)
    }

    pub(super) fn accepted(&self) -> u32 {
        half(self.accepted, self.accepted_half)
    }

    /// The half of the features that the driver takes.
    pub(super) fn accept(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        let value = u64::from(value);
        match self.accepted_half {
            0 => self.accepted = self.accepted & !0xffff_ffff | value,
            1 => self.accepted = self.accepted & 0xffff_ffff | value << 32,
            _ => {}
        }
    }

    pub(super) fn status(&self) -> u32 {
        match self.interrupt.needs_reset() {
            true => self.status | VIRTIO_CONFIG_S_NEEDS_RESET,
            false => self.status,
        }
    }

    /// The driver gets further, or begins anew with zero.
    pub(super) fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        let mut added = value & !self.status;
        if added & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_agree() {
            added &= !VIRTIO_CONFIG_S_FEATURES_OK;
        }
        self.status |= added;
        if added & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            self.activate();
        }
    }

    /// The selected queue; `None` for one that does not exist.
    pub(super) fn queue(&self) -> Option<&Queue> {
        (self.selected_queue == QUEUE).then_some(&self.queue)
    }

    /// The same while the driver may set it up.
    pub(super) fn queue_in_setup(&mut self) -> Option<&mut Queue> {
        let is_active = self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0;
        (self.selected_queue == QUEUE && !is_active).then_some(&mut self.queue)
    }

    /// The state as a message. The device is paused.
    pub(super) fn save(&self) -> Virtio {
        Virtio {
            device_type: self.device.device_type(),
            offered: self.device.features(),
            accepted: self.accepted,
            status: self.status,
            offered_half: self.offered_half,
            accepted_half: self.accepted_half,
            selected_queue: self.selected_queue,
            reasons: self.interrupt.reasons(),
            needs_reset: self.interrupt.needs_reset(),
            in_setup: Some((&self.queue).into()),
            served: self.device.served().as_ref().map(Into::into),
            writeback: self.device.save(),
            generation: self.generation.into(),
        }
    }

    /// Becomes what was saved. The device is paused, and new.
    pub(super) fn restore(&mut self, saved: &Virtio) -> Result<(), StateError> {
        let wrong = |what| StateError::damaged("virtio", what);
        if saved.device_type != self.device.device_type() {
            return Err(wrong("is of another kind of device"));
        }
        self.device.offer(saved.offered)?;
        let in_setup = saved.in_setup.as_ref().ok_or(wrong("has no queue"))?;
        self.queue = in_setup.queue(self.device.max_queue_size())?;
        self.accepted = saved.accepted;
        self.status = saved.status;
        self.offered_half = saved.offered_half;
        self.accepted_half = saved.accepted_half;
        self.selected_queue = saved.selected_queue;
        self.generation = saved.generation.to_le_bytes()[0];
        self.interrupt.restore(saved.reasons, saved.needs_reset);
        if let Some(served) = &saved.served {
            let queue = served.queue(self.device.max_queue_size())?;
            if !self.features_agree() || !queue.is_valid(&self.memory) || !is_sound(&queue, &self.memory) {
                return Err(wrong("has a queue that cannot be served"));
            }
            let interrupt = Arc::clone(&self.interrupt);
            self.device
                .activate(self.accepted, self.memory.clone(), queue, interrupt);
        }
        self.device.restore(saved.writeback)
    }

    fn features_agree(&self) -> bool {
        self.accepted & !self.device.features() == 0 && self.accepted & (1 << VIRTIO_F_VERSION_1) != 0
    }

    fn activate(&mut self) {
        let negotiated = self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0;
        if !negotiated || !self.queue.is_valid(&self.memory) {
            self.interrupt.require_reset();
            return;
        }
        self.queue
            .set_event_idx(self.accepted & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        let queue = std::mem::replace(&mut self.queue, new_queue(&*self.device));
        self.queue.set_ready(true);
        let interrupt = Arc::clone(&self.interrupt);
        self.device
            .activate(self.accepted, self.memory.clone(), queue, interrupt);
    }

    fn reset(&mut self) {
        self.device.reset();
        self.interrupt.reset();
        self.queue = new_queue(&*self.device);
        self.status = 0;
        self.accepted = 0;
        self.offered_half = 0;
        self.accepted_half = 0;
        self.selected_queue = 0;
    }
}

/// Whether no more is available than the queue has entries.
fn is_sound(queue: &Queue, memory: &GuestMemory) -> bool {
    let available = queue.avail_idx(memory, Ordering::Acquire);
    available.is_ok_and(|available| available.0.wrapping_sub(queue.next_avail()) <= queue.size())
}

fn new_queue(device: &dyn VirtioDevice) -> Queue {
    Queue::new(device.max_queue_size()).expect("the size of a device's queue is a power of two")
}

fn half(features: u64, half: u32) -> u32 {
    match half {
        0 => (features & 0xffff_ffff) as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}
