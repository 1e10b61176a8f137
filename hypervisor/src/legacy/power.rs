//! The ports that end a machine, and what they say about the end.

use crate::End;

/// The command port of the keyboard controller.
const KEYBOARD: u16 = 0x64;
/// Its command to pulse the reset line of the processor.
const PULSE_RESET: u8 = 0xfe;
/// The reset control register of chipsets since 1996.
const RESET_CONTROL: u16 = 0xcf9;
/// Its bit that resets.
const RESET_NOW: u8 = 1 << 2;
/// The sleep control and sleep status registers, as ACPI calls them.
pub(crate) const SLEEP_CONTROL: u16 = 0x600;
pub(crate) const SLEEP_STATUS: u16 = 0x601;
/// The type of sleep state 5, which is off.
pub(crate) const SLEEP_OFF_TYPE: u8 = 5;
/// It is entered: the type in bits 2 to 4, the trigger in bit 5.
const SLEEP_OFF: u8 = SLEEP_OFF_TYPE << 2 | 1 << 5;
/// The reset register, as ACPI calls it, and what is written there.
pub(crate) const RESET: u16 = 0x602;
pub(crate) const RESET_VALUE: u8 = 1;
/// The port of the pvpanic device.
const PVPANIC: u16 = 0x505;
/// Its events: the guest has panicked; it has, and has loaded a crash kernel.
const PANICKED: u8 = 1;
const CRASH_LOADED: u8 = 2;

/// A port that may end the machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PowerPort(u16);

impl PowerPort {
    pub(crate) fn new(port: u16) -> Option<Self> {
        [KEYBOARD, RESET_CONTROL, SLEEP_CONTROL, SLEEP_STATUS, RESET, PVPANIC]
            .contains(&port)
            .then_some(Self(port))
    }

    /// What a write means.
    pub(crate) fn write(self, value: u8) -> Option<End> {
        match self.0 {
            KEYBOARD if value == PULSE_RESET => Some(End::Reset),
            RESET_CONTROL if value & RESET_NOW != 0 => Some(End::Reset),
            SLEEP_CONTROL if value == SLEEP_OFF => Some(End::PowerOff),
            RESET if value == RESET_VALUE => Some(End::Reset),
            PVPANIC if value & PANICKED != 0 => Some(End::Panic),
            _ => None,
        }
    }

    /// What a read shows: an idle keyboard controller, and the events that pvpanic knows.
    pub(crate) fn read(self) -> u8 {
        match self.0 {
            PVPANIC => PANICKED | CRASH_LOADED,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_ends_the_machine_in_its_way() {
        let end = |port, value| PowerPort::new(port).and_then(|port| port.write(value));
        assert_eq!(end(0x64, 0xfe), Some(End::Reset));
        assert_eq!(end(0x64, 0xd1), None);
        assert_eq!(end(0xcf9, 0x06), Some(End::Reset));
        assert_eq!(end(0xcf9, 0x02), None);
        assert_eq!(end(0x600, 0x34), Some(End::PowerOff));
        assert_eq!(end(0x600, 0x24), None);
        assert_eq!(end(0x602, 1), Some(End::Reset));
        assert_eq!(end(0x505, 1), Some(End::Panic));
        assert_eq!(end(0x505, 2), None);
        assert!(PowerPort::new(0x60).is_none());
    }
}
