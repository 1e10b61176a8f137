//! What a PC has had since ever and Linux still asks for, at fixed ports.

mod cmos;
mod com1;
mod power;

pub(crate) use cmos::Cmos;
pub(crate) use com1::{Com1, PanicWatch};
pub(crate) use power::{PowerPort, RESET, RESET_VALUE, SLEEP_CONTROL, SLEEP_OFF_TYPE, SLEEP_STATUS};

/// The ports of COM1.
pub(crate) const COM1: std::ops::RangeInclusive<u16> = 0x3f8..=0x3ff;
/// The interrupt of COM1.
pub(crate) const COM1_IRQ: u32 = 4;
/// Which register of the clock the next port is.
pub(crate) const CMOS_INDEX: u16 = 0x70;
/// A register of the clock.
pub(crate) const CMOS_DATA: u16 = 0x71;
