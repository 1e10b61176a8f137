//! The controller of hot-plug: three registers that the methods of the DSDT use, and the line of the event device that makes
//! the guest call them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::EventFd;

/// The ports, and which register is where: slots with something new, slots to be released, slots that are released, buttons.
pub(crate) const HOTPLUG_PORTS: std::ops::RangeInclusive<u16> = 0x620..=0x62f;
/// Bit of the last register: the power button was pressed.
pub(crate) const POWER_BUTTON: u32 = 1;
/// The line of the event device.
pub(crate) const HOTPLUG_LINE: u32 = 9;

/// What the guest has to be told: a bit per slot, and one per button.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct News {
    pub(crate) added: u32,
    pub(crate) leaving: u32,
    pub(crate) buttons: u32,
}

/// The controller.
#[derive(Debug)]
pub(crate) struct HotPlug {
    event: EventFd,
    news: Mutex<News>,
}

impl HotPlug {
    /// A controller whose event device is signalled by `event`.
    pub(crate) fn new(event: EventFd) -> Self {
        let news = Mutex::default();
        Self { event, news }
    }

    /// There is something new in a slot.
    pub(crate) fn announce(&self, slot: usize) {
        self.news().added |= bit(slot);
        self.signal();
    }

    /// The guest is asked to let go of what is in a slot. It can be asked again.
    pub(crate) fn request_release(&self, slot: usize) {
        self.news().leaving |= bit(slot);
        self.signal();
    }

    /// The power button is pressed.
    pub(crate) fn press_power_button(&self) {
        self.news().buttons |= POWER_BUTTON;
        self.signal();
    }

    /// Signals again what the guest has not taken: it may not have listened yet.
    pub(crate) fn remind(&self) {
        let news = self.news();
        let waits = *news != News::default();
        drop(news);
        if waits {
            self.signal();
        }
    }

    /// A slot is empty: nothing is said of it any more.
    pub(crate) fn forget(&self, slot: usize) {
        let mut news = self.news();
        news.added &= !bit(slot);
        news.leaving &= !bit(slot);
    }

    /// The guest reads a register, whole; it has taken what is in it with that.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        data.fill(0);
        let Ok(register) = <&mut [u8; 4]>::try_from(data) else {
            return;
        };
        let mut news = self.news();
        let taken = match port - HOTPLUG_PORTS.start() {
            0 => std::mem::take(&mut news.added),
            4 => std::mem::take(&mut news.leaving),
            12 => std::mem::take(&mut news.buttons),
            _ => 0,
        };
        *register = taken.to_le_bytes();
    }

    /// The slots that the guest lets go of with a write.
    pub(crate) fn released(port: u16, data: &[u8]) -> impl Iterator<Item = usize> {
        let is_release = port - HOTPLUG_PORTS.start() == 8;
        let slots = data.try_into().map_or(0, u32::from_le_bytes);
        (0..32).filter(move |slot| is_release && slots & bit(*slot) != 0)
    }

    /// What the guest has not taken yet.
    pub(crate) fn pending(&self) -> News {
        *self.news()
    }

    /// Becomes what was saved: the guest is reminded of it.
    pub(crate) fn restore(&self, news: News) {
        *self.news() = news;
    }

    fn signal(&self) {
        // KVM takes what is written at once; a full counter is a pending interrupt all the same.
        let _ = self.event.write(1);
    }

    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bit of a slot in the registers.
pub(crate) fn bit(slot: usize) -> u32 {
    u32::try_from(slot)
        .ok()
        .and_then(|slot| 1_u32.checked_shl(slot))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn read(controller: &HotPlug, port: u16) -> u32 {
        let mut bytes = [0xff; 4];
        controller.read(port, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn news_are_told_until_they_are_taken() {
        let controller = HotPlug::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let told = || controller.event.read().is_ok();
        controller.remind();
        assert!(!told());
        controller.announce(3);
        controller.announce(31);
        controller.request_release(4);
        assert!(told());
        controller.remind();
        assert!(told());
        assert_eq!(
            (read(&controller, 0x620), read(&controller, 0x624)),
            (1 << 3 | 1 << 31, 1 << 4)
        );
        assert_eq!((read(&controller, 0x620), read(&controller, 0x628)), (0, 0));
        controller.remind();
        assert!(!told());
        controller.press_power_button();
        assert!(told());
        assert_eq!((read(&controller, 0x62c), read(&controller, 0x62c)), (POWER_BUTTON, 0));
        controller.request_release(4);
        controller.forget(4);
        assert_eq!(read(&controller, 0x624), 0);
        controller.announce(1);
        controller.read(0x620, &mut [0; 2]);
        assert_eq!(read(&controller, 0x620), 2);
    }

    #[test]
    fn slots_are_released_by_their_bits() {
        let slots = |port, data: &[u8]| HotPlug::released(port, data).collect::<Vec<_>>();
        assert_eq!(slots(0x628, &(1_u32 << 5 | 1 << 31).to_le_bytes()), [5, 31]);
        assert!(slots(0x620, &[0xff; 4]).is_empty());
        assert!(slots(0x628, &[0xff; 2]).is_empty());
    }
}
