//! The real-time clock: the host's time in UTC. Nothing can be set.

use std::time::{SystemTime, UNIX_EPOCH};

/// Registers with the time. Those of alarms read zero.
const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
/// Status: no update in progress, the usual time base.
const STATUS_A: u8 = 0x0a;
const TIME_BASE: u8 = 0x26;
/// Status: 24 hours, digits in BCD.
const STATUS_B: u8 = 0x0b;
const HOURS_24: u8 = 0x02;
/// Status: the battery is good.
const STATUS_D: u8 = 0x0d;
const BATTERY: u8 = 0x80;
/// Where the century is, by convention.
const CENTURY: u8 = 0x32;

/// The clock.
#[derive(Debug, Default)]
pub(crate) struct Cmos {
    index: u8,
}

impl Cmos {
    /// The register that is read next. The highest bit masks interrupts and is no part of it.
    pub(crate) fn select(&mut self, index: u8) {
        self.index = index & 0x7f;
    }

    /// The register that was selected.
    pub(crate) fn selected(&self) -> u8 {
        self.index
    }

    pub(crate) fn read(&self) -> u8 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        register(self.index, now.map_or(0, |now| now.as_secs()))
    }
}

fn register(index: u8, seconds: u64) -> u8 {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let value = match index {
        SECONDS => second % 60,
        MINUTES => second / 60 % 60,
        HOURS => second / 3600,
        // 1970 began on a Thursday; Sunday is 1.
        WEEKDAY => (days + 4) % 7 + 1,
        DAY => day,
        MONTH => month,
        YEAR => year % 100,
        CENTURY => year / 100,
        STATUS_A => return TIME_BASE,
        STATUS_B => return HOURS_24,
        STATUS_D => return BATTERY,
        _ => return 0,
    };
    // Two decimal digits, a nibble each.
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0)
}

/// Year, month and day of the month, of days since 1970-01-01 in the Gregorian calendar.
fn date(days: u64) -> (u64, u64, u64) {
    let is_leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut left) = (1970, days);
    loop {
        let length = if is_leap(year) { 366 } else { 365 };
        if left < length {
            break;
        }
        left -= length;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if left < length {
            break;
        }
        left -= length;
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_is_in_decimal_digits() {
        // 2024-02-29 23:59:58, a Thursday.
        let read = |index| register(index, 1_709_251_198);
        assert_eq!([read(YEAR), read(MONTH), read(DAY)], [0x24, 0x02, 0x29]);
        assert_eq!([read(HOURS), read(MINUTES), read(SECONDS)], [0x23, 0x59, 0x58]);
        assert_eq!([read(CENTURY), read(WEEKDAY)], [0x20, 5]);
    }

    #[test]
    fn days_become_dates() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(11_016), (2000, 2, 29));
        assert_eq!(date(11_017), (2000, 3, 1));
        assert_eq!(date(20_453), (2025, 12, 31));
    }
}
