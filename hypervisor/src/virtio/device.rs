//! What a transport needs of a device.

use std::sync::Arc;

use virtio_queue::Queue;

use super::Interrupt;
use super::queue_thread::QueueThread;
use crate::mem::GuestMemory;
use crate::state::StateError;

/// A device with one queue, whatever transport it is behind.
pub(crate) trait VirtioDevice: Send {
    /// The number of the kind of device.
    fn device_type(&self) -> u32;

    /// The features that it offers.
    fn features(&self) -> u64;

    /// The most entries of its queue, a power of two.
    fn max_queue_size(&self) -> u16;

    /// Fills `data` with the configuration from `offset`; zeroes behind its end.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// A write to the configuration. What cannot be written is ignored.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// The driver is ready: serve its queue from now on. `features` are those of both sides.
    fn activate(&mut self, features: u64, memory: GuestMemory, queue: Queue, interrupt: Arc<Interrupt>);

    /// The thread that serves its queue.
    fn thread(&self) -> &QueueThread;

    /// Stop serving. On return the device does not touch guest memory.
    fn reset(&mut self) {
        self.thread().reset();
    }

    /// Serve nothing for now. On return the device does not touch guest memory, and nothing that it was asked for is on its
    /// way.
    fn pause(&mut self) {
        self.thread().pause();
    }

    /// Go on after [`pause`](Self::pause), with what came meanwhile.
    fn resume(&mut self) {
        self.thread().resume();
    }

    /// What is behind the device may have another size now: its configuration says so from here on. Whether it has changed.
    fn refresh_config(&mut self) -> bool;

    /// The queue that is served; `None` if none is. The device is paused.
    fn served(&self) -> Option<Queue> {
        self.thread().queue()
    }

    /// What its driver has chosen in the configuration.
    fn save(&self) -> bool;

    /// Becomes what was saved; the queue is served already, if one was.
    fn restore(&mut self, saved: bool) -> Result<(), StateError>;

    /// Offers these features instead of all.
    ///
    /// # Errors
    /// One of them is none that it has.
    fn offer(&mut self, features: u64) -> Result<(), StateError>;

    /// What the driver rings to say that there is work.
    fn doorbell(&self) -> &vmm_sys_util::eventfd::EventFd {
        self.thread().doorbell()
    }
}
