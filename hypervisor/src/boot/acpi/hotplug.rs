//! What the tables say of hot-plug.

use acpi_tables::aml::{
    And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Interrupt, Local,
    Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate, Scope, Store, ZERO,
};
use acpi_tables::{Aml, AmlSink};

use super::bytes;
use crate::pci::{HOTPLUG_LINE, HOTPLUG_PORTS, POWER_BUTTON, SLOTS, bit};

/// What a power button is notified with when it is pressed (ACPI 6.5, section 5.6.6).
const BUTTON_PRESSED: u8 = 0x80;

/// Slots that change while the machine runs, and the power button: registers, a device per slot that can be ejected, and an event device whose
/// interrupt makes the guest ask which slots they are (ACPI 6.5, sections 5.6.6, 5.6.9 and 6.3).
pub(super) fn define(to: &mut dyn AmlSink) {
    let (first, count) = (
        *HOTPLUG_PORTS.start(),
        u8::try_from(HOTPLUG_PORTS.count()).unwrap_or(u8::MAX),
    );
    let registers = [*b"ADDD", *b"LEAV", *b"EJCT", *b"BTTN"].map(|name| FieldEntry::Named(name, 32));
    let (access, lock, update) = (
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
    );
    let region = OpRegion::new("HPRG".into(), OpRegionSpace::SystemIO, &first, &count);
    let field = Field::new("HPRG".into(), access, lock, update, registers.to_vec());
    let slots: Vec<Ready> = (1..SLOTS).map(|number| Ready(slot(number))).collect();
    let notices: Vec<Ready> = (1..SLOTS).map(|slot| Ready(notices(slot))).collect();
    let (added, leaving) = (Path::new("ADDD"), Path::new("LEAV"));
    let take_added = Store::new(&Local(0), &added);
    let take_leaving = Store::new(&Local(1), &leaving);
    let buttons = Path::new("BTTN");
    let take_buttons = Store::new(&Local(2), &buttons);
    let mut scan: Vec<&dyn Aml> = vec![&take_added, &take_leaving, &take_buttons];
    scan.extend(notices.iter().map(|notice| notice as &dyn Aml));
    let is_pressed = And::new(&ZERO, &Local(2), &POWER_BUTTON);
    let button = Path::new("\\_SB_.PWRB");
    let pressed = Notify::new(&button, &BUTTON_PRESSED);
    let press = If::new(&is_pressed, vec![&pressed]);
    scan.push(&press);
    let scan = Method::new("SCAN".into(), 0, true, scan);
    let mut children: Vec<&dyn Aml> = vec![&region, &field];
    children.extend(slots.iter().map(|slot| slot as &dyn Aml));
    children.push(&scan);
    Scope::new("_SB_.PCI0".into(), children).to_aml_bytes(to);

    let identity = Name::new("_HID".into(), &EISAName::new("PNP0C0C"));
    Device::new("_SB_.PWRB".into(), vec![&identity]).to_aml_bytes(to);
    let interrupt = Interrupt::new(true, true, false, false, HOTPLUG_LINE);
    let ask = MethodCall::new("\\_SB_.PCI0.SCAN".into(), Vec::new());
    Device::new(
        "_SB_.GED_".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])),
            &Method::new("_EVT".into(), 1, true, vec![&ask]),
        ],
    )
    .to_aml_bytes(to);
}

/// Definitions that are bytes already.
struct Ready(Vec<u8>);

impl Aml for Ready {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn slot_name(slot: usize) -> String {
    format!("S{slot:03}")
}

/// A slot that can be ejected.
fn slot(slot: usize) -> Vec<u8> {
    let number = u32::try_from(slot).unwrap_or(0);
    let (register, value) = (Path::new("EJCT"), bit(slot));
    let eject = Store::new(&register, &value);
    let address = Name::new("_ADR".into(), &(number << 16));
    let number = Name::new("_SUN".into(), &number);
    let eject = Method::new("_EJ0".into(), 1, true, vec![&eject]);
    let name = slot_name(slot);
    bytes(&Device::new(name.as_str().into(), vec![&address, &number, &eject]))
}

/// What the guest is told of a slot: look at it (1), let go of it (3).
fn notices(slot: usize) -> Vec<u8> {
    let (name, value) = (slot_name(slot), bit(slot));
    let name = Path::new(&name);
    let mut notices = Vec::new();
    for (news, notice) in [(Local(0), 1_u8), (Local(1), 3)] {
        let is_meant = And::new(&ZERO, &news, &value);
        let notify = Notify::new(&name, &notice);
        If::new(&is_meant, vec![&notify]).to_aml_bytes(&mut notices);
    }
    notices
}
