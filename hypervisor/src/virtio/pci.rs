//! The virtio-pci transport (virtio 1.2, section 4.1), modern alone: a function with its registers in one window, a doorbell
//! in it, and messages as interrupts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use super::block::VIRTIO_ID_BLOCK;
use super::{Interrupt, Line, Reason, Session, VirtioDevice};
use crate::mem::GuestMemory;
use crate::pci::{ConfigSpace, Identity, Msix, Wires};
use crate::state::{Function, StateError};
use virtio_queue::QueueT as _;

/// Of all virtio devices; the number of a modern device is behind [`FIRST_DEVICE`].
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// Class, subclass and interface of a kind of device: a mass storage controller, or what PCI has no word for.
fn class(device_type: u32) -> [u8; 3] {
    match device_type {
        VIRTIO_ID_BLOCK => [1, 0, 0],
        _ => [0xff, 0, 0],
    }
}

/// Bytes of the window, and what is where in it.
pub(crate) const WINDOW_SIZE: u32 = 0x8000;
const COMMON: u32 = 0;
const COMMON_LEN: usize = 0x38;
const ISR: u32 = 0x1000;
const DEVICE: u32 = 0x2000;
const DOORBELL: u32 = 0x3000;
const MSIX_TABLE: u32 = 0x4000;
const MSIX_PENDING: u32 = 0x5000;
/// Bytes of each part at most.
const PART: u32 = 0x1000;

/// The number of capabilities that vendors define, and the kinds of them that virtio has.
const VENDOR_CAPABILITY: u8 = 9;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_CONFIG_ACCESS: u8 = 5;
/// Where the fields of the last kind are in it, and its end.
const ACCESS_BAR: usize = 4;
const ACCESS_OFFSET: usize = 8;
const ACCESS_LEN: usize = 12;
const ACCESS_DATA: usize = 16;
const ACCESS_END: usize = 20;

/// Messages of a function: one for changes, one for its queue.
pub(crate) const VECTORS: u32 = 2;
/// Stands for no message.
const NO_VECTOR: u16 = 0xffff;

/// Which message a reason sends.
#[derive(Debug)]
struct Choice {
    msix: Arc<Msix>,
    changed: AtomicU16,
    used: AtomicU16,
}

impl Choice {
    fn of(&self, reason: Reason) -> &AtomicU16 {
        match reason {
            Reason::Used => &self.used,
            Reason::Changed => &self.changed,
        }
    }

    fn get(&self, reason: Reason) -> u16 {
        self.of(reason).load(Ordering::Acquire)
    }

    /// A number that is none is not taken, and the driver sees that.
    fn set(&self, reason: Reason, number: u16) {
        let exists = usize::from(number) < self.msix.count();
        self.of(reason)
            .store(if exists { number } else { NO_VECTOR }, Ordering::Release);
    }

    fn reset(&self) {
        self.set(Reason::Used, NO_VECTOR);
        self.set(Reason::Changed, NO_VECTOR);
        self.msix.forget();
    }
}

impl Line for Arc<Choice> {
    fn signal(&self, reason: Reason) {
        self.msix.send(self.get(reason).into());
    }
}

/// A device as a function of PCI.
pub(crate) struct PciTransport {
    session: Session,
    config: ConfigSpace,
    msix: Arc<Msix>,
    choice: Arc<Choice>,
    wires: Arc<dyn Wires>,
    /// Where the upper byte of the control of MSI-X is, and the capability for access through the configuration space.
    msix_control: usize,
    access: usize,
    /// Where the window is, while the doorbell in it is connected.
    connected: Option<u64>,
}

impl PciTransport {
    /// A function whose window is at `address` until the guest moves it.
    pub(crate) fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemory,
        msix: Msix,
        wires: Arc<dyn Wires>,
        address: u32,
    ) -> Self {
        let number = u16::try_from(device.device_type()).unwrap_or(0);
        let mut config = ConfigSpace::new(Identity {
            vendor: VENDOR,
            device: FIRST_DEVICE + number,
            revision: 1,
            class: class(device.device_type()),
            subsystem: (VENDOR, FIRST_DEVICE + number),
        });
        config.add_window(address, WINDOW_SIZE);
        let msix_control = msix.describe(&mut config, MSIX_TABLE, MSIX_PENDING);
        let common_len = u32::try_from(COMMON_LEN).unwrap_or(PART);
        config.add_capability(VENDOR_CAPABILITY, &capability(CAP_COMMON, COMMON, common_len, &[]));
        config.add_capability(VENDOR_CAPABILITY, &capability(CAP_ISR, ISR, 1, &[]));
        config.add_capability(VENDOR_CAPABILITY, &capability(CAP_DEVICE, DEVICE, PART, &[]));
        // All queues have the same doorbell.
        config.add_capability(VENDOR_CAPABILITY, &capability(CAP_NOTIFY, DOORBELL, PART, &[0; 4]));
        let access = capability(CAP_CONFIG_ACCESS, 0, 0, &[0; 4]);
        let access = config.add_capability(VENDOR_CAPABILITY, &access);
        config.allow(access + ACCESS_BAR, &[0xff]);
        config.allow(access + ACCESS_OFFSET, &[0xff; ACCESS_END - ACCESS_OFFSET]);
        let msix = Arc::new(msix);
        let choice = Arc::new(Choice {
            msix: Arc::clone(&msix),
            changed: AtomicU16::new(NO_VECTOR),
            used: AtomicU16::new(NO_VECTOR),
        });
        let interrupt = Arc::new(Interrupt::new(Arc::clone(&choice)));
        Self {
            session: Session::new(device, memory, interrupt),
            config,
            msix,
            choice,
            wires,
            msix_control,
            access,
            connected: None,
        }
    }

    pub(crate) fn device_mut(&mut self) -> &mut dyn VirtioDevice {
        self.session.device_mut()
    }

    /// What is behind the device has another size.
    pub(crate) fn refresh_config(&mut self) {
        self.session.refresh_config();
    }

    pub(crate) fn save(&self) -> Function {
        Function {
            config: self.config.save(),
            msix: Some(self.msix.save()),
            changed: self.choice.get(Reason::Changed).into(),
            used: self.choice.get(Reason::Used).into(),
            virtio: Some(self.session.save()),
        }
    }

    /// Becomes what was saved: a new function of the same kind.
    pub(crate) fn restore(&mut self, saved: &Function) -> Result<(), StateError> {
        let wrong = |what| StateError::damaged("function", what);
        let number = |number: u32| u16::try_from(number).map_err(|_| wrong("has a message that is none"));
        self.config.restore(&saved.config)?;
        self.choice.set(Reason::Changed, number(saved.changed)?);
        self.choice.set(Reason::Used, number(saved.used)?);
        self.msix
            .restore(saved.msix.as_ref().ok_or(wrong("has no messages"))?)?;
        self.move_doorbell();
        self.session
            .restore(saved.virtio.as_ref().ok_or(wrong("has no device"))?)
    }

    /// The offset in the window, of an address that is in it.
    pub(crate) fn offset(&self, address: u64) -> Option<u32> {
        let offset = address.checked_sub(self.config.window()?.into())?;
        u32::try_from(offset).ok().filter(|offset| *offset < WINDOW_SIZE)
    }

    pub(crate) fn read_config(&self, at: usize, data: &mut [u8]) {
        self.config.read(at, data);
        if at == self.access + ACCESS_DATA
            && let Some((offset, len)) = self.accessed()
        {
            let mut piece = [0; 4];
            self.read(offset, &mut piece[..len]);
            data.iter_mut().zip(piece).for_each(|(to, from)| *to = from);
        }
    }

    pub(crate) fn write_config(&mut self, at: usize, data: &[u8]) {
        self.config.write(at, data);
        let mut control = [0];
        if (at..at + data.len()).contains(&self.msix_control) {
            self.config.read(self.msix_control, &mut control);
            self.msix.set_control(control[0]);
        }
        if at == self.access + ACCESS_DATA
            && let Some((offset, len)) = self.accessed()
        {
            let mut piece = [0; 4];
            self.config.read(at, &mut piece);
            self.write(offset, &piece[..len]);
        }
        self.move_doorbell();
    }

    /// What the driver wants to reach through the configuration space, if that is a register.
    fn accessed(&self) -> Option<(u32, usize)> {
        let field = |at: usize| self.config.dword(self.access + at);
        let (bar, offset, len) = (field(ACCESS_BAR) & 0xff, field(ACCESS_OFFSET), field(ACCESS_LEN));
        let is_register = bar == 0 && matches!(len, 1 | 2 | 4) && offset < WINDOW_SIZE && offset.is_multiple_of(len);
        is_register.then(|| (offset, usize::try_from(len).unwrap_or(0)))
    }

    /// Where the window went, there KVM listens.
    fn move_doorbell(&mut self) {
        let window = self.config.window().map(u64::from);
        if window == self.connected {
            return;
        }
        let bell = self.session.device().doorbell();
        if let Some(address) = self.connected.take() {
            self.wires.disconnect_doorbell(bell, address + u64::from(DOORBELL));
        }
        if let Some(address) = window {
            self.wires.connect_doorbell(bell, address + u64::from(DOORBELL));
            self.connected = window;
        }
    }

    /// The guest reads registers.
    pub(crate) fn read(&self, offset: u32, data: &mut [u8]) {
        data.fill(0);
        let at = vhd_block::units::usize_from(u64::from(offset % PART));
        match offset - offset % PART {
            COMMON => {
                let registers = self.common();
                let from = registers.iter().skip(at);
                data.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            }
            ISR if at == 0 => data[0] = self.session.interrupt().take_reasons().to_le_bytes()[0],
            DEVICE => self.session.device().read_config((offset % PART).into(), data),
            MSIX_TABLE => self.msix.read_table(at, data),
            MSIX_PENDING => self.msix.read_pending(at, data),
            _ => {}
        }
    }

    /// The guest writes registers. What is none, or not written whole, is ignored.
    pub(crate) fn write(&mut self, offset: u32, data: &[u8]) {
        let at = vhd_block::units::usize_from(u64::from(offset % PART));
        match offset - offset % PART {
            COMMON => self.set_common(at, data),
            DEVICE => self.session.device_mut().write_config((offset % PART).into(), data),
            // KVM hears the bell itself; this is for where it cannot.
            DOORBELL => self.session.ring(),
            MSIX_TABLE => self.msix.write_table(at, data),
            _ => {}
        }
    }

    /// The registers of the common configuration (section 4.1.4.3).
    fn common(&self) -> [u8; COMMON_LEN] {
        let session = &self.session;
        let mut registers = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| registers[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &session.offered_half.to_le_bytes());
        put(0x04, &session.offered().to_le_bytes());
        put(0x08, &session.accepted_half.to_le_bytes());
        put(0x0c, &session.accepted().to_le_bytes());
        put(0x10, &self.choice.get(Reason::Changed).to_le_bytes());
        put(0x12, &1_u16.to_le_bytes());
        put(0x14, &session.status().to_le_bytes()[..1]);
        put(0x15, &[session.generation()]);
        put(0x16, &session.selected_queue.to_le_bytes()[..2]);
        if let Some(queue) = session.queue() {
            put(0x18, &queue.size().to_le_bytes());
            put(0x1a, &self.choice.get(Reason::Used).to_le_bytes());
            put(0x1c, &u16::from(queue.ready()).to_le_bytes());
            put(0x20, &queue.desc_table().to_le_bytes());
            put(0x28, &queue.avail_ring().to_le_bytes());
            put(0x30, &queue.used_ring().to_le_bytes());
        }
        registers
    }

    fn set_common(&mut self, at: usize, data: &[u8]) {
        let session = &mut self.session;
        match (at, data) {
            (0x00, &[a, b, c, d]) => session.offered_half = u32::from_le_bytes([a, b, c, d]),
            (0x08, &[a, b, c, d]) => session.accepted_half = u32::from_le_bytes([a, b, c, d]),
            (0x0c, &[a, b, c, d]) => session.accept(u32::from_le_bytes([a, b, c, d])),
            (0x10, &[a, b]) => self.choice.set(Reason::Changed, u16::from_le_bytes([a, b])),
            (0x14, &[status]) => {
                session.set_status(status.into());
                if status == 0 {
                    self.choice.reset();
                }
            }
            (0x16, &[a, b]) => session.selected_queue = u16::from_le_bytes([a, b]).into(),
            (0x1a, &[a, b]) if session.queue().is_some() => self.choice.set(Reason::Used, u16::from_le_bytes([a, b])),
            _ => self.set_up_queue(at, data),
        }
    }

    fn set_up_queue(&mut self, at: usize, data: &[u8]) {
        let Some(queue) = self.session.queue_in_setup() else {
            return;
        };
        match (at, data) {
            // A size that is none is refused by the queue, which stays as it is.
            (0x18, &[a, b]) => queue.set_size(u16::from_le_bytes([a, b])),
            (0x1c, &[1, 0]) => queue.set_ready(true),
            (0x20..0x38, &[a, b, c, d]) if at.is_multiple_of(4) => {
                let value = Some(u32::from_le_bytes([a, b, c, d]));
                let (low, high) = if at.is_multiple_of(8) {
                    (value, None)
                } else {
                    (None, value)
                };
                match at & !7 {
                    0x20 => queue.set_desc_table_address(low, high),
                    0x28 => queue.set_avail_ring_address(low, high),
                    _ => queue.set_used_ring_address(low, high),
                }
            }
            _ => {}
        }
    }
}

impl Drop for PciTransport {
    fn drop(&mut self) {
        if let Some(address) = self.connected.take() {
            let bell = self.session.device().doorbell();
            self.wires.disconnect_doorbell(bell, address + u64::from(DOORBELL));
        }
    }
}

/// What is behind number and link of a capability of virtio: its length, kind, window, and the part of it.
fn capability(kind: u8, offset: u32, len: u32, more: &[u8]) -> Vec<u8> {
    const LEN: u8 = 16;
    let mut body = vec![LEN + more.len().to_le_bytes()[0], kind, 0, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(len.to_le_bytes());
    body.extend(more);
    body
}

#[cfg(test)]
#[path = "pci_tests.rs"]
mod tests;
