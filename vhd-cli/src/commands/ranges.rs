//! Ranges that differ, as many as are worth keeping.

use std::fmt;

use serde::Serialize;
use vhd_core::device::ByteRange;
use vhd_core::units::u64_from;

use crate::human;

/// Ranges that a person is shown.
const SHOWN_RANGES: usize = 10;
/// Ranges in a JSON object: enough to act on, and few enough to keep.
const JSON_RANGES: usize = 10_000;

/// A range that differs.
#[derive(Serialize)]
struct DifferentRange {
    start: u64,
    length: u64,
    /// The partitions it lies in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    partitions: Vec<String>,
}

/// The ranges that differ.
#[derive(Default, Serialize)]
pub(crate) struct RangeList {
    pub(crate) range_count: u64,
    ranges: Vec<DifferentRange>,
    truncated: bool,
}

impl RangeList {
    /// Counts a range, and keeps it if there are not too many already.
    pub(crate) fn add(&mut self, range: ByteRange, partitions: Vec<String>) {
        self.range_count += 1;
        if self.ranges.len() < JSON_RANGES {
            self.ranges.push(DifferentRange {
                start: range.start,
                length: range.len,
                partitions,
            });
        } else {
            self.truncated = true;
        }
    }
}

impl fmt::Display for RangeList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for range in self.ranges.iter().take(SHOWN_RANGES) {
            let (start, end) = (range.start, range.start + range.length);
            write!(f, "  {start:#x}..{end:#x}  {}", human::binary(range.length))?;
            if !range.partitions.is_empty() {
                write!(f, "  {}", range.partitions.join(", "))?;
            }
            writeln!(f)?;
        }
        let more = self.range_count.saturating_sub(u64_from(SHOWN_RANGES));
        if more > 0 {
            writeln!(f, "  and {}", human::count(more, "more range"))?;
        }
        Ok(())
    }
}
