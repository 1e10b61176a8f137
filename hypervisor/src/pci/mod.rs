//! PCI: one bus whose functions are found through memory (ECAM) or through two ports.
//!
//! ```text
//!   host.rs     which function answers a configuration access or owns an address
//!   config.rs   the configuration space of a function: identity, windows, capabilities
//!   hotplug.rs  how the guest learns that slots change
//!   msix.rs     interrupts as messages, each of which can be masked
//!   wires.rs    what KVM has to do for a function: messages, doorbells
//! ```

mod config;
mod host;
mod hotplug;
mod msix;
mod wires;

pub(crate) use config::{ConfigSpace, Identity};
pub(crate) use host::{CONFIG_PORTS, PciHost};
pub(crate) use hotplug::{HOTPLUG_LINE, HOTPLUG_PORTS, HotPlug, News, POWER_BUTTON, bit};
pub(crate) use msix::{Msix, Vector};
pub(crate) use wires::{Message, Wires};

use crate::mem::HOLE_START;

/// Where functions may have their registers: address and bytes.
pub(crate) const WINDOW: (u64, u64) = (HOLE_START, 0x1000_0000);
/// Where the configuration space of the bus is in memory: address and bytes.
pub(crate) const ECAM: (u64, u64) = (0xe000_0000, 1 << 20);
/// Devices on the bus.
pub(crate) const SLOTS: usize = 32;
