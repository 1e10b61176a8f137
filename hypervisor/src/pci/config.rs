//! The configuration space of a function (PCI 3.0, chapter 6): 256 bytes, of which the guest can change a few bits.

use crate::state::StateError;

/// Bytes of it.
const LEN: usize = 256;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where capabilities begin.
const FIRST_CAPABILITY: usize = 0x40;

/// Bits of the command register that functions here know: memory is decoded, bus master, no interrupt by a pin.
const MEMORY: u16 = 1 << 1;
const BUS_MASTER: u16 = 1 << 2;
const NO_INTERRUPT_PIN: u16 = 1 << 10;
/// Bit of the status register: there are capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;

/// What a function is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity {
    pub(crate) vendor: u16,
    pub(crate) device: u16,
    pub(crate) revision: u8,
    /// Class, subclass, programming interface.
    pub(crate) class: [u8; 3],
    /// Vendor and device of the board.
    pub(crate) subsystem: (u16, u16),
}

/// The configuration space of a function.
#[derive(Clone, Debug)]
pub(crate) struct ConfigSpace {
    bytes: [u8; LEN],
    /// Bits that the guest can change.
    writable: [u8; LEN],
    /// Where the number of the next capability goes, and where that will be.
    link: usize,
    free: usize,
}

impl ConfigSpace {
    pub(crate) fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: [0; LEN],
            writable: [0; LEN],
            link: CAPABILITIES,
            free: FIRST_CAPABILITY,
        };
        let [class, subclass, interface] = identity.class;
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(0x08, &[identity.revision, interface, subclass, class]);
        space.put(0x2c, &identity.subsystem.0.to_le_bytes());
        space.put(0x2e, &identity.subsystem.1.to_le_bytes());
        space
    }

    /// Registers in memory: `size` bytes, a power of two, at `address` until the guest moves them.
    pub(crate) fn add_window(&mut self, address: u32, size: u32) {
        self.put(BAR0, &address.to_le_bytes());
        self.allow(BAR0, &(!(size - 1)).to_le_bytes());
        self.allow(COMMAND, &(MEMORY | BUS_MASTER | NO_INTERRUPT_PIN).to_le_bytes());
        self.allow(INTERRUPT_LINE, &[0xff]);
    }

    /// Where the registers are, while memory is decoded.
    pub(crate) fn window(&self) -> Option<u32> {
        let command = u16::from_le_bytes([self.bytes[COMMAND], self.bytes[COMMAND + 1]]);
        let address = self.dword(BAR0);
        (command & MEMORY != 0).then_some(address)
    }

    /// Adds a capability with what is behind its number and link; returns where it is.
    pub(crate) fn add_capability(&mut self, number: u8, body: &[u8]) -> usize {
        let at = self.free;
        self.bytes[STATUS] |= HAS_CAPABILITIES;
        self.put(self.link, &[u8::try_from(at).unwrap_or(0)]);
        self.put(at, &[number, 0]);
        self.put(at + 2, body);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Lets the guest change these bits.
    pub(crate) fn allow(&mut self, at: usize, bits: &[u8]) {
        self.writable[at..at + bits.len()].copy_from_slice(bits);
    }

    pub(crate) fn dword(&self, at: usize) -> u32 {
        let mut bytes = [0; 4];
        self.read(at, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The guest reads; zeroes behind the end.
    pub(crate) fn read(&self, at: usize, data: &mut [u8]) {
        for (at, byte) in (at..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The guest writes. What it cannot change stays.
    pub(crate) fn write(&mut self, at: usize, data: &[u8]) {
        for (at, byte) in (at..LEN).zip(data) {
            let writable = self.writable[at];
            self.bytes[at] = self.bytes[at] & !writable | byte & writable;
        }
    }

    /// All of it.
    pub(crate) fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes what the guest can change; everything else must be as it is.
    pub(crate) fn restore(&mut self, saved: &[u8]) -> Result<(), StateError> {
        let wrong = || StateError::damaged("function", "has a configuration space of another machine");
        let saved: &[u8; LEN] = saved.try_into().map_err(|_| wrong())?;
        let same = |at: usize| saved[at] & !self.writable[at] == self.bytes[at] & !self.writable[at];
        if !(0..LEN).all(same) {
            return Err(wrong());
        }
        self.bytes = *saved;
        Ok(())
    }

    /// Sets bytes, whatever the guest may do to them.
    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: [1, 0, 0],
            subsystem: (0x1af4, 2),
        });
        space.add_window(0xd000_0000, 0x8000);
        space
    }

    #[test]
    fn a_window_has_a_size_and_a_place() {
        let mut space = space();
        assert_eq!(space.window(), None);
        space.write(BAR0, &[0xff; 4]);
        assert_eq!(space.dword(BAR0), 0xffff_8000);
        space.write(BAR0, &0xd123_4567_u32.to_le_bytes());
        space.write(COMMAND, &[0xff, 0xff]);
        assert_eq!(space.window(), Some(0xd123_0000));
        assert_eq!(space.dword(COMMAND) & 0xffff, 0x0406);
        assert_eq!(space.dword(0), 0x1042_1af4);
        space.write(0, &[0; 4]);
        assert_eq!(space.dword(0), 0x1042_1af4);
    }

    #[test]
    fn capabilities_are_a_list() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3]);
        let second = space.add_capability(0x11, &[4; 10]);
        assert_eq!(usize::from(space.bytes[CAPABILITIES]), first);
        assert_eq!((space.bytes[first], usize::from(space.bytes[first + 1])), (9, second));
        assert_eq!((space.bytes[second], space.bytes[second + 1]), (0x11, 0));
        assert_eq!(space.bytes[STATUS] & HAS_CAPABILITIES, HAS_CAPABILITIES);
        let mut end = [1; 8];
        space.read(LEN - 4, &mut end);
        assert_eq!(end, [0; 8]);
        space.write(LEN - 1, &[1; 8]);
    }
}
