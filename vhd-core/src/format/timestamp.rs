//! The time stamp of footers and headers.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 2000-01-01 00:00:00 UTC (specification, "Hard Disk Footer Format"); lasts until 2136.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u32);

/// 2000-01-01 00:00:00 UTC in seconds since 1970-01-01 00:00:00 UTC.
const EPOCH_UNIX_SECONDS: u32 = 946_684_800;

impl Timestamp {
    /// What writers put where they don't know a time, for instance as the parent's in a header.
    pub const UNSET: Self = Self(0);

    /// The whole seconds of `time`. Times before 2000 become [`UNSET`](Self::UNSET), times past the
    /// field's end become the last one it can hold.
    #[must_use]
    pub fn from_system_time(time: SystemTime) -> Self {
        let epoch = UNIX_EPOCH + Duration::from_secs(u64::from(EPOCH_UNIX_SECONDS));
        match time.duration_since(epoch) {
            Ok(since) => Self(u32::try_from(since.as_secs()).unwrap_or(u32::MAX)),
            Err(_) => Self::UNSET,
        }
    }

    /// The present time by the host's clock.
    #[must_use]
    pub fn now() -> Self {
        Self::from_system_time(SystemTime::now())
    }

    /// Seconds since 1970-01-01 00:00:00 UTC.
    #[must_use]
    pub fn to_unix_seconds(self) -> i64 {
        i64::from(EPOCH_UNIX_SECONDS) + i64::from(self.0)
    }
}

/// ISO 8601, as in `2024-02-29T12:00:00Z`.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (days, second) = (self.0 / 86_400, self.0 % 86_400);
        let (mut year, mut day) = (2000, days);
        while day >= days_in_year(year) {
            day -= days_in_year(year);
            year += 1;
        }
        let mut month = 1;
        while day >= days_in_month(year, month) {
            day -= days_in_month(year, month);
            month += 1;
        }
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
            day + 1
        )
    }
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn days_in_year(year: u32) -> u32 {
    365 + u32::from(is_leap(year))
}

fn days_in_month(year: u32, month: u32) -> u32 {
    match month {
        2 => 28 + u32::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn unix(seconds: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn counts_from_2000() {
        assert_eq!(Timestamp::from_system_time(unix(946_684_800)), Timestamp(0));
        assert_eq!(Timestamp::from_system_time(unix(946_684_801)), Timestamp(1));
        // 2024-02-29 12:00:00 UTC
        assert_eq!(Timestamp::from_system_time(unix(1_709_208_000)), Timestamp(762_523_200));
        assert_eq!(Timestamp(762_523_200).to_unix_seconds(), 1_709_208_000);
    }

    #[test]
    fn reads_as_a_date() {
        for (seconds, text) in [
            (0, "2000-01-01T00:00:00Z"),
            (762_523_200, "2024-02-29T12:00:00Z"),
            (31_622_399, "2000-12-31T23:59:59Z"),
            (31_622_400, "2001-01-01T00:00:00Z"),
            // 2100 is no leap year.
            (3_160_857_599, "2100-02-28T23:59:59Z"),
            (3_160_857_600, "2100-03-01T00:00:00Z"),
            (u32::MAX, "2136-02-07T06:28:15Z"),
        ] {
            assert_eq!(Timestamp(seconds).to_string(), text);
        }
    }

    #[test]
    fn saturates() {
        assert_eq!(Timestamp::from_system_time(UNIX_EPOCH), Timestamp::UNSET);
        assert_eq!(
            Timestamp::from_system_time(UNIX_EPOCH - Duration::from_secs(9)),
            Timestamp::UNSET
        );
        assert_eq!(
            Timestamp::from_system_time(unix(946_684_800 + (1 << 32))),
            Timestamp(u32::MAX)
        );
    }

    #[test]
    fn now_is_after_this_was_written() {
        assert!(Timestamp::now() > Timestamp(762_523_200));
    }

    proptest! {
        #[test]
        fn seconds_survive(seconds: u32) {
            let unix_seconds = u64::try_from(Timestamp(seconds).to_unix_seconds()).unwrap();
            prop_assert_eq!(Timestamp::from_system_time(unix(unix_seconds)), Timestamp(seconds));
        }
    }
}
