//! The operations of a storage file, as data.

use std::io::{self, IoSlice};

use vhd_core::units::u64_from;

/// A kind of call on a storage file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OperationKind {
    /// A plain or vectored read.
    Read,
    /// A plain or vectored write.
    Write,
    /// Asking for the length.
    Len,
    /// Setting the length.
    SetLen,
    /// Making everything durable.
    Sync,
    /// Punching a hole.
    PunchHole,
    /// Zeroing a range.
    ZeroRange,
    /// Reserving space.
    Allocate,
    /// Asking whether an offset is a hole.
    Segment,
    /// Sharing a range of another file.
    Share,
}

impl OperationKind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Read,
        Self::Write,
        Self::Len,
        Self::SetLen,
        Self::Sync,
        Self::PunchHole,
        Self::ZeroRange,
        Self::Allocate,
        Self::Segment,
        Self::Share,
    ];

    /// The kinds that change the file or make a change durable.
    pub const CHANGES: [Self; 7] = [
        Self::Write,
        Self::SetLen,
        Self::Sync,
        Self::PunchHole,
        Self::ZeroRange,
        Self::Allocate,
        Self::Share,
    ];

    /// Whether a call of this kind changes the file or makes a change durable.
    #[must_use]
    pub fn is_change(self) -> bool {
        Self::CHANGES.contains(&self)
    }
}

/// One call on a storage file: what, and where. A `SetLen` has the new length as its offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// The kind of call.
    pub kind: OperationKind,
    /// The first byte concerned.
    pub offset: u64,
    /// The number of bytes concerned.
    pub len: u64,
}

impl Operation {
    /// An operation of `kind` on `len` bytes from `offset`.
    #[must_use]
    pub const fn new(kind: OperationKind, offset: u64, len: u64) -> Self {
        Self { kind, offset, len }
    }
}

/// All bytes of a vectored call.
pub(crate) fn total(lengths: impl Iterator<Item = usize>) -> u64 {
    lengths.map(u64_from).sum()
}

/// The bytes of a vectored write, one after the other.
pub(crate) fn joined(bufs: &[IoSlice<'_>]) -> Vec<u8> {
    bufs.iter().flat_map(|buf| buf.iter().copied()).collect()
}

/// The end of a range, where the file system could hold it.
pub(crate) fn checked_end(offset: u64, len: u64) -> io::Result<u64> {
    let end = offset.checked_add(len).filter(|&end| i64::try_from(end).is_ok());
    end.ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("{offset:#x}+{len:#x} is past any file"),
        )
    })
}
