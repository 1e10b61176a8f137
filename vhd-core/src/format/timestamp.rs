//! The time stamp of footers and headers.

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
