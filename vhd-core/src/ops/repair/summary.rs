//! The changes of a repair, for people.

use std::fmt;

use super::journal::{Change, Journal};
use crate::storage::is_zero;

/// Bytes that are shown of a change.
const SHOWN: usize = 8;

/// One change of a repair, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChangeSummary {
    /// Where it starts in the file, in bytes.
    pub offset: u64,
    /// Its bytes.
    pub len: u64,
    /// What stands there.
    pub old: ByteSummary,
    /// What is to stand there.
    pub new: ByteSummary,
}

/// Bytes, in short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ByteSummary {
    /// The file ends before them.
    Absent,
    /// They are zero.
    Zero,
    /// The file ends before them, from now on.
    Cut,
    /// They are copied from this offset of the file.
    CopyOf(u64),
    /// They begin like this.
    Begin(Vec<u8>),
}

impl ByteSummary {
    fn of(bytes: &[u8]) -> Self {
        if is_zero(bytes) {
            return Self::Zero;
        }
        Self::Begin(bytes[..bytes.len().min(SHOWN)].to_vec())
    }
}

impl fmt::Display for ByteSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => f.write_str("nothing"),
            Self::Cut => f.write_str("cut off"),
            Self::Zero => f.write_str("zeroes"),
            Self::CopyOf(offset) => write!(f, "a copy of {offset:#x}"),
            Self::Begin(bytes) => {
                bytes.iter().try_for_each(|byte| write!(f, "{byte:02x} "))?;
                f.write_str("...")
            }
        }
    }
}

impl Journal {
    /// The changes in the order of the file, in short. Zeroes that come with a longer file are not among them.
    #[must_use]
    pub fn summary(&self) -> Vec<ChangeSummary> {
        let summaries = self.records.iter().map(|record| {
            let (old, new) = match &record.change {
                Change::Replace { old, new } => (ByteSummary::of(old), ByteSummary::of(new)),
                Change::Append(new) => (ByteSummary::Absent, ByteSummary::of(new)),
                Change::Cut(old) => (ByteSummary::of(old), ByteSummary::Cut),
                Change::Copy { from, .. } => (ByteSummary::Absent, ByteSummary::CopyOf(*from)),
            };
            ChangeSummary {
                offset: record.offset,
                len: record.len(),
                old,
                new,
            }
        });
        summaries.collect()
    }
}
