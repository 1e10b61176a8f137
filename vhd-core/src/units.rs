//! Units of measure: newtypes that keep the three number spaces of a VHD apart.
//!
//! A VHD knows offsets in the *file*, offsets on the *virtual disk* and sector numbers in its block
//! table. Mixing two of them is the classical bug of disk-image code, so where two of them meet they
//! have types of their own.

use std::fmt;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

pub use vhd_block::units::{checked_align_up, u64_from, usize_from};

/// Bytes in a sector: every structure and address of a VHD counts in these (specification, "Overview").
pub const SECTOR_SIZE: u64 = 512;

/// A byte offset in the file that holds an image.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct FileOffset(pub u64);

/// A byte offset on the virtual disk, the one a guest sees.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct VirtualOffset(pub u64);

/// The index of a block of the virtual disk, and so of its entry in the block allocation table.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BlockIndex(pub u32);

/// Whole seconds since 1970-01-01 00:00:00 UTC, up to the end of the year 9999: the times that records hold. Any of them
/// is a time that the host can represent, which is not true of every number in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct UnixSeconds(u64);

impl UnixSeconds {
    /// The last second of the year 9999.
    pub const MAX: Self = Self(253_402_300_799);

    /// The whole seconds of `time`; times out of range become the nearest one in it.
    #[must_use]
    pub fn from_system_time(time: SystemTime) -> Self {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self(since.as_secs().min(Self::MAX.0))
    }

    /// The time.
    #[must_use]
    pub fn to_system_time(self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.0)
    }
}

impl TryFrom<u64> for UnixSeconds {
    type Error = String;

    fn try_from(seconds: u64) -> Result<Self, String> {
        if seconds > Self::MAX.0 {
            return Err(format!(
                "the time {seconds} is behind the year 9999, whose last second is {}",
                Self::MAX.0
            ));
        }
        Ok(Self(seconds))
    }
}

impl From<UnixSeconds> for u64 {
    fn from(seconds: UnixSeconds) -> Self {
        seconds.0
    }
}

impl FileOffset {
    /// The offset `bytes` further on; `None` past the largest offset.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl VirtualOffset {
    /// The offset `bytes` further on; `None` past the largest offset.
    #[must_use]
    pub fn checked_add(self, bytes: u64) -> Option<Self> {
        self.0.checked_add(bytes).map(Self)
    }
}

impl BlockIndex {
    /// This index for a slice.
    #[must_use]
    pub fn as_usize(self) -> usize {
        usize_from(u64::from(self.0))
    }
}

impl fmt::Debug for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{:#x}", self.0)
    }
}

impl fmt::Debug for VirtualOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk:{:#x}", self.0)
    }
}

impl fmt::Debug for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block:{}", self.0)
    }
}

impl fmt::Display for FileOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for VirtualOffset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for BlockIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recorded_time_is_a_time() {
        for seconds in [0, 1, u64::from(UnixSeconds::MAX)] {
            let time = UnixSeconds::try_from(seconds).unwrap();
            assert_eq!(UnixSeconds::from_system_time(time.to_system_time()), time);
        }
        for bad in [u64::from(UnixSeconds::MAX) + 1, u64::MAX >> 1, u64::MAX] {
            UnixSeconds::try_from(bad).unwrap_err();
            assert!(serde_json::from_str::<UnixSeconds>(&bad.to_string()).is_err());
        }
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(5);
        assert_eq!(UnixSeconds::from_system_time(before), UnixSeconds::default());
    }
}
